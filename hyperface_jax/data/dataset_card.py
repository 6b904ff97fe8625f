"""The card of a prepared dataset: Markdown for people."""

import datetime
from collections.abc import Sequence

import numpy as np

from hyperface_jax.data import prepared
from hyperface_jax.data.face_set import FaceSet
from hyperface_jax.data.name_lists import escape
from hyperface_jax.data.preparing import VERSION, Written
from hyperface_jax.data.shard_facts import Facts, Repeat

DUPLICATES = "duplicates.tsv"


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
        f"{prepared.LICENCE_LINE}{license_text or prepared.NO_LICENCE}",
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
