"""What stands beside the shards of a prepared dataset: lists, facts, card."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from hyperface_jax.data import pairs, prepared
from hyperface_jax.data.dataset_card import DUPLICATES, card
from hyperface_jax.data.face_set import FaceSet, fingerprint_of
from hyperface_jax.data.name_lists import write_names
from hyperface_jax.data.preparing import SPLIT, VERSION, Written
from hyperface_jax.data.records import ids_of
from hyperface_jax.data.shard_facts import Facts, Repeat, duplicates, gather


def describe(
    faces: FaceSet,
    written: Written,
    *,
    name: str,
    source: str,
    license_text: str = "",
    pairs_path: str = "",
) -> None:
    """Writes TFDS's metadata, labels, names, rejections, duplicates and the card.

    Args:
      faces: what was stored.
      written: its shards.
      name: of the dataset.
      source: where it came from, for people.
      license_text: as given by the user.
      pairs_path: verification pairs in LFW's format, by image id; or "".
    """
    folder = written.folder
    facts = gather(written)
    with (folder / prepared.LABELS).open("wb") as file:
        np.save(file, facts.labels)
    write_names(folder / prepared.IDENTITIES, ([n] for n in faces.identities))
    if all(len(part.ids) == len(part.rows) for part in written.parts()):
        ids = ([id_] for part in written.parts() for id_ in part.ids)
        write_names(folder / prepared.IDS, ids)
    write_names(folder / prepared.REJECTED, written.rejected)
    repeats = duplicates(written)
    write_names(folder / DUPLICATES, _duplicate_rows(faces, repeats))
    split: dict[str, Any] = {"fingerprint": _fingerprint(faces, written)}
    split |= _tests(faces, written, pairs_path)
    # To see later whether the source has changed.
    metadata = {"source": source, "source_fingerprint": faces.fingerprint}
    _write_info(written, name, facts, metadata | {"splits": {SPLIT: split}})
    text = card(faces, written, facts, repeats, name, source, license_text)
    (folder / prepared.CARD).write_text(text)


def _duplicate_rows(
    faces: FaceSet, repeats: Sequence[Repeat]
) -> list[tuple[str, str, str]]:
    """An exclusion list that keeps the first of each group within an identity.

    The same picture under two names is wrong under one of them at least, and nobody
    can tell which from the bytes: all of them are listed.
    """
    rows = []
    for repeat in repeats:
        records = faces.read(repeat.rows.tolist())
        ids = [r["id"] if isinstance(r, dict) else "?" for r in records]
        people = sorted({faces.identities[label] for label in repeat.labels})
        if len(people) > 1:
            names = ", ".join(people)
            rows += [("image", id_, f"same bytes under {names}") for id_ in ids]
        else:
            rows += [("image", id_, f"same bytes as {ids[0]}") for id_ in ids[1:]]
    return rows


def _fingerprint(faces: FaceSet, written: Written) -> str:
    """The source's own where nothing was changed: a run may go on with the copy."""
    lost = [row for part in written.parts() for row, _, _ in part.rejected]
    if not (lost or written.how):
        return faces.fingerprint
    return fingerprint_of(faces.fingerprint, lost, written.how)


def _tests(faces: FaceSet, written: Written, pairs_path: str) -> dict[str, Any]:
    """Pairs, gallery and probes as rows of the copy: of the file, or the source's."""
    has_tests = faces.pairs is not None or len(faces.gallery) or len(faces.probes)
    if not (pairs_path or has_tests):
        return {}
    rows = np.concatenate([part.rows for part in written.parts()])
    stored = np.full(len(faces.source), -1)
    stored[faces.rows[rows]] = np.arange(len(rows))

    def moved(old: np.ndarray) -> np.ndarray:
        new = stored[old]
        if len(lost := np.unique(old[new < 0])):
            raise ValueError(
                f"{faces.name}: {len(lost)} of the images that its test pairs, gallery "
                "or probes name are excluded or rejected, expected all of them"
            )
        return new

    tests: dict[str, Any] = {}
    if pairs_path:
        tests["pairs"] = _pairs(faces, written, pairs_path, stored).to_json()
    elif faces.pairs is not None:
        first, second = moved(faces.pairs.first), moved(faces.pairs.second)
        kept = dataclasses.replace(faces.pairs, first=first, second=second)
        tests["pairs"] = kept.to_json()
    if len(faces.gallery) and len(faces.probes):
        tests["gallery"] = moved(faces.gallery).tolist()
        tests["probes"] = moved(faces.probes).tolist()
    return tests


def _pairs(
    faces: FaceSet, written: Written, path: str, stored: np.ndarray
) -> pairs.Pairs:
    known = ids_of(faces.source)
    ids = {id_: int(stored[row]) for id_, row in known.items() if stored[row] >= 0}
    try:
        return pairs.read_lfw_pairs(path, ids)
    except ValueError as error:
        for id_, why in written.rejected:
            if f"no image {id_} " in str(error):
                raise ValueError(f"{error}: it was rejected, {why}") from None
        raise


def _write_info(
    written: Written, name: str, facts: Facts, metadata: Mapping[str, Any]
) -> None:
    template = tfds.core.ShardedFileTemplate(
        data_dir=epath.Path(written.folder),
        dataset_name=name,
        split=SPLIT,
        filetype_suffix="array_record",
    )
    tfds.folder_dataset.write_metadata(
        data_dir=os.fspath(written.folder),
        features=prepared.features(),
        split_infos=[
            tfds.core.SplitInfo(
                name=SPLIT,
                shard_lengths=facts.shard_lengths,
                num_bytes=facts.num_bytes,
                filename_template=template,
            )
        ],
        version=VERSION,
        check_data=False,
        description=f"{name}, prepared by hyperface_jax; see {prepared.CARD}",
        metadata=tfds.core.MetadataDict(metadata),
        disable_shuffling=True,
    )
