"""What stands beside the shards of a prepared dataset: lists, facts, card."""

import datetime
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from hyperface_jax.data import pairs, prepared
from hyperface_jax.data.face_set import FaceSet, fingerprint_of
from hyperface_jax.data.preparing import SPLIT, VERSION, Written
from hyperface_jax.data.records import ids_of
from hyperface_jax.data.shards import Part

log = logging.getLogger(__name__)

DUPLICATES = "duplicates.tsv"


def describe(
    faces: FaceSet,
    written: Written,
    *,
    name: str,
    source: str,
    source_fingerprint: str,
    license_text: str = "",
    pairs_path: str = "",
) -> None:
    """Writes TFDS's metadata, labels, names, rejections, duplicates and the card.

    Args:
      faces: what was stored.
      written: its shards.
      name: of the dataset.
      source: where it came from, for people.
      source_fingerprint: to see later whether the source has changed.
      license_text: as given by the user.
      pairs_path: verification pairs in LFW's format, by image id; or "".
    """
    folder = written.folder
    rows = np.concatenate([part.rows for part in written.parts])
    labels = np.concatenate([part.labels for part in written.parts])
    with (folder / prepared.LABELS).open("wb") as file:
        np.save(file, labels)
    _write_lines(folder / prepared.IDENTITIES, faces.identities)
    _write_lines(
        folder / prepared.REJECTED, [f"{id_}\t{why}" for id_, why in written.rejected]
    )
    repeats = duplicates(written.parts)
    _write_lines(folder / DUPLICATES, _duplicate_lines(faces, rows, labels, repeats))
    split: dict[str, Any] = {"fingerprint": _fingerprint(faces, written, rows)}
    if pairs_path:
        split["pairs"] = _pairs(faces, rows, written, pairs_path).to_json()
    metadata = {"source": source, "source_fingerprint": source_fingerprint}
    _write_info(written, name, metadata | {"splits": {SPLIT: split}})
    text = card(faces, written, labels, repeats, name, source, license_text)
    (folder / prepared.CARD).write_text(text)


def duplicates(parts: Sequence[Part]) -> list[np.ndarray]:
    """Groups (indices of stored records) whose payloads are equal, by their hash."""
    hashes = np.concatenate([part.hashes for part in parts])
    order = np.lexsort((hashes[:, 1], hashes[:, 0]))
    same = (hashes[order][1:] == hashes[order][:-1]).all(axis=1)
    starts = np.flatnonzero(~np.concatenate([[False], same]))
    groups = np.split(order, starts[1:]) if same.any() else []
    return [np.sort(group) for group in groups if len(group) > 1]


def _duplicate_lines(
    faces: FaceSet, rows: np.ndarray, labels: np.ndarray, groups: Sequence[np.ndarray]
) -> list[str]:
    """An exclusion list that keeps the first of each group within an identity.

    The same picture under two names is wrong under one of them at least, and nobody
    can tell which from the bytes: all of them are listed.
    """
    lines = []
    for group in groups:
        records = faces.read(rows[group].tolist())
        ids = [r["id"] if isinstance(r, dict) else "?" for r in records]
        people = [faces.identities[label] for label in labels[group]]
        if len(set(people)) > 1:
            names = ", ".join(sorted(set(people)))
            lines += [f"image\t{id_}\tsame bytes under {names}" for id_ in ids]
        else:
            lines += [f"image\t{id_}\tsame bytes as {ids[0]}" for id_ in ids[1:]]
    return lines


def _fingerprint(faces: FaceSet, written: Written, rows: np.ndarray) -> str:
    """The source's own where nothing was changed: a run may go on with the copy."""
    whole = len(rows) == len(faces)
    return faces.fingerprint if whole else fingerprint_of(faces.fingerprint, rows)


def _pairs(
    faces: FaceSet, rows: np.ndarray, written: Written, path: str
) -> pairs.Pairs:
    stored = np.full(len(faces.source), -1)
    stored[faces.rows[rows]] = np.arange(len(rows))
    known = ids_of(faces.source)
    ids = {id_: int(stored[row]) for id_, row in known.items() if stored[row] >= 0}
    try:
        return pairs.read_lfw_pairs(path, ids)
    except ValueError as error:
        for id_, why in written.rejected:
            if f"no image {id_} " in str(error):
                raise ValueError(f"{error}: it was rejected, {why}") from None
        raise


def _write_info(written: Written, name: str, metadata: Mapping[str, Any]) -> None:
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
                shard_lengths=[len(part.rows) for part in written.parts],
                num_bytes=sum(part.num_bytes for part in written.parts),
                filename_template=template,
            )
        ],
        version=VERSION,
        check_data=False,
        description=f"{name}, prepared by hyperface_jax; see {prepared.CARD}",
        metadata=tfds.core.MetadataDict(metadata),
        disable_shuffling=True,
    )


def card(
    faces: FaceSet,
    written: Written,
    labels: np.ndarray,
    repeats: Sequence[np.ndarray],
    name: str,
    source: str,
    license_text: str,
) -> str:
    """Markdown for people: what is in the dataset, and what was left out and why."""
    counts = np.bincount(labels, minlength=faces.num_classes)
    counts = counts[counts > 0]
    edges = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]
    histogram = []
    for low, high in zip(edges, [*edges[1:], None], strict=True):
        inside = (counts >= low) & (counts < (high or np.inf))
        title = f"{low}" if high == low + 1 else f"{low}–{high - 1 if high else ''}"
        histogram.append(f"| {title} | {inside.sum():,} | {counts[inside].sum():,} |")
    sizes = np.concatenate([part.sizes for part in written.parts])
    shapes, number = np.unique(sizes, axis=0, return_counts=True)
    most = np.argsort(-number)[:10]
    across = sum(len(set(labels[group])) > 1 for group in repeats)
    today = datetime.datetime.now(datetime.UTC)
    num_bytes = sum(part.num_bytes for part in written.parts)
    lines = [
        f"# {name}",
        "",
        f"- Source: {source}",
        f"- Licence: {license_text or 'not stated by whoever prepared it'}",
        f"- Prepared: {today:%Y-%m-%d}, version {VERSION}",
        f"- Identities: {len(counts):,}",
        f"- Images: {len(labels):,} ({num_bytes:,} bytes)",
        f"- Images an identity: {counts.min():,} to {counts.max():,}, median "
        f"{np.median(counts):g}, mean {counts.mean():.1f}",
        f"- Rejected records: {len(written.rejected):,} (all in {prepared.REJECTED})",
        f"- Exact duplicates: {sum(len(g) - 1 for g in repeats):,} images in "
        f"{len(repeats):,} groups, {across:,} of them across identities "
        f"({DUPLICATES}, a list for --exclude)",
        "",
        "Embeddings computed from these images are biometric data.",
        "",
        "| images an identity | identities | images |",
        "|---:|---:|---:|",
        *histogram,
        "",
        "| height x width | images |",
        "|---:|---:|",
        *(f"| {shapes[k][0]} x {shapes[k][1]} | {number[k]:,} |" for k in most),
    ]
    if len(shapes) > 10:
        others = number.sum() - number[most].sum()
        lines.append(f"| {len(shapes) - 10:,} other sizes | {others:,} |")
    if written.rejected:
        lines += ["", "| first rejected records | reason |", "|---|---|"]
        lines += [f"| {id_} | {why} |" for id_, why in written.rejected[:20]]
    return "\n".join(lines) + "\n"


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines))
