"""What stands beside the shards of a prepared dataset: lists, facts, card."""

import datetime
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from hyperface_jax.data import pairs, prepared
from hyperface_jax.data.face_set import FaceSet, fingerprint_of
from hyperface_jax.data.name_lists import escape, write_names
from hyperface_jax.data.preparing import SPLIT, VERSION, Written
from hyperface_jax.data.records import ids_of

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
    facts = gather(written)
    with (folder / prepared.LABELS).open("wb") as file:
        np.save(file, facts.labels)
    write_names(folder / prepared.IDENTITIES, ([n] for n in faces.identities))
    write_names(folder / prepared.REJECTED, written.rejected)
    repeats = duplicates(written)
    write_names(folder / DUPLICATES, _duplicate_rows(faces, repeats))
    split: dict[str, Any] = {"fingerprint": _fingerprint(faces, written)}
    if pairs_path:
        split["pairs"] = _pairs(faces, written, pairs_path).to_json()
    metadata = {"source": source, "source_fingerprint": source_fingerprint}
    _write_info(written, name, facts, metadata | {"splits": {SPLIT: split}})
    text = card(faces, written, facts, repeats, name, source, license_text)
    (folder / prepared.CARD).write_text(text)


class Facts(NamedTuple):
    """Of all shards together.

    Attributes:
      labels: int32 [N], of each stored record.
      shard_lengths: records of each shard.
      num_bytes: of all serialised records.
      shapes: (height, width) -> images.
    """

    labels: np.ndarray
    shard_lengths: list[int]
    num_bytes: int
    shapes: Counter[tuple[int, int]]


def gather(written: Written) -> Facts:
    """Reads the parts once, one after the other."""
    labels, num_bytes, shapes = [], 0, Counter()
    for part in written.parts():
        labels.append(part.labels)
        num_bytes += part.num_bytes
        found, number = np.unique(part.sizes, axis=0, return_counts=True)
        shapes.update(
            {(int(h), int(w)): int(n) for (h, w), n in zip(found, number, strict=True)}
        )
    lengths = [len(part) for part in labels]
    return Facts(np.concatenate(labels), lengths, num_bytes, shapes)


class Repeat(NamedTuple):
    """Stored records with one payload.

    Attributes:
      rows: index in the source set of each, rising.
      labels: of each.
    """

    rows: np.ndarray
    labels: np.ndarray


def duplicates(written: Written) -> list[Repeat]:
    """Groups of records whose payloads are equal, by their hash.

    A pass over the parts for each value of 4 bits of the hash holds a sixteenth of
    them in memory.
    """
    found = []
    for bucket in range(16):
        hashes, rows, labels = [], [], []
        for part in written.parts():
            mine = part.hashes[:, 0] >> np.uint64(60) == bucket
            hashes.append(part.hashes[mine])
            rows.append(part.rows[mine])
            labels.append(part.labels[mine])
        found += _equal(*(np.concatenate(a) for a in (hashes, rows, labels)))
    return sorted(found, key=lambda repeat: int(repeat.rows[0]))


def _equal(hashes: np.ndarray, rows: np.ndarray, labels: np.ndarray) -> list[Repeat]:
    order = np.lexsort((hashes[:, 1], hashes[:, 0]))
    same = (hashes[order][1:] == hashes[order][:-1]).all(axis=1)
    if not same.any():
        return []
    starts = np.flatnonzero(~np.concatenate([[False], same]))
    groups = np.split(order, starts[1:])
    return [
        Repeat(rows[group], labels[group])
        for group in map(np.sort, groups)
        if len(group) > 1
    ]


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
    return fingerprint_of(faces.fingerprint, lost) if lost else faces.fingerprint


def _pairs(faces: FaceSet, written: Written, path: str) -> pairs.Pairs:
    rows = np.concatenate([part.rows for part in written.parts()])
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


def card(
    faces: FaceSet,
    written: Written,
    facts: Facts,
    repeats: Sequence[Repeat],
    name: str,
    source: str,
    license_text: str,
) -> str:
    """Markdown for people: what is in the dataset, and what was left out and why."""
    counts = np.bincount(facts.labels, minlength=faces.num_classes)
    counts = counts[counts > 0]
    edges = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]
    histogram = []
    for low, high in zip(edges, [*edges[1:], None], strict=True):
        inside = (counts >= low) & (counts < (high or np.inf))
        title = f"{low}" if high == low + 1 else f"{low}–{high - 1 if high else ''}"
        histogram.append(f"| {title} | {inside.sum():,} | {counts[inside].sum():,} |")
    most = facts.shapes.most_common(10)
    across = sum(len(set(repeat.labels.tolist())) > 1 for repeat in repeats)
    today = datetime.datetime.now(datetime.UTC)
    lines = [
        f"# {name}",
        "",
        f"- Source: {source}",
        f"- Licence: {license_text or 'not stated by whoever prepared it'}",
        f"- Prepared: {today:%Y-%m-%d}, version {VERSION}",
        f"- Identities: {len(counts):,}",
        f"- Images: {len(facts.labels):,} ({facts.num_bytes:,} bytes)",
        f"- Images an identity: {counts.min():,} to {counts.max():,}, median "
        f"{np.median(counts):g}, mean {counts.mean():.1f}",
        f"- Rejected records: {len(written.rejected):,} (all in {prepared.REJECTED})",
        f"- Exact duplicates: {sum(len(r.rows) - 1 for r in repeats):,} images in "
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
        *(f"| {height} x {width} | {n:,} |" for (height, width), n in most),
    ]
    if len(facts.shapes) > 10:
        others = len(facts.labels) - sum(n for _, n in most)
        lines.append(f"| {len(facts.shapes) - 10:,} other sizes | {others:,} |")
    if written.rejected:
        lines += ["", "| first rejected records | reason |", "|---|---|"]
        lines += [f"| {escape(id_)} | {why} |" for id_, why in written.rejected[:20]]
    return "\n".join(lines) + "\n"
