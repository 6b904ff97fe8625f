"""Whether the files of one IJB folder agree with each other."""

import logging

import numpy as np
from jaxtyping import Int

from hyperface_jax.evaluation.ijb import IjbMetadata

log = logging.getLogger(__name__)


def check_agreement(meta: IjbMetadata, name: str) -> None:
    """Warns of what makes a protocol mean something else, such as a probe enrolled.

    Args:
      meta: from `ijb.read_ijb`.
      name: of the set, for the messages.

    Raises:
      ValueError: a template is two people.
    """
    subject = _subjects(meta, name)
    for what in (*_enrolment_faults(meta), *_pair_faults(meta, subject)):
        log.warning("%s: %s", name, what)


def _subjects(meta: IjbMetadata, name: str) -> Int[np.ndarray, " T"]:
    """Subject of each template by the 1:N files; -1 where they do not have it."""
    subject = np.full(len(meta.template_ids), -1)
    for enrolled in (*meta.galleries, *([meta.probes] if meta.probes else ())):
        before = subject[enrolled.template]
        clash = np.flatnonzero((before >= 0) & (before != enrolled.subject))
        if len(clash):
            k = clash[0]
            template = meta.template_ids[enrolled.template[k]]
            raise ValueError(
                f"{name}: template {template} is subject {before[k]} in one 1:N file "
                f"and {enrolled.subject[k]} in another"
            )
        subject[enrolled.template] = enrolled.subject
    return subject


def _enrolment_faults(meta: IjbMetadata) -> list[str]:
    if meta.probes is None or not meta.galleries:
        return []
    found = []
    enrolled = np.concatenate([gallery.template for gallery in meta.galleries])
    if count := np.isin(meta.probes.template, enrolled).sum():
        found.append(f"{count} probes are templates of a gallery: they find themselves")
    first, second = (np.unique(gallery.subject) for gallery in meta.galleries)
    if count := len(np.intersect1d(first, second)):
        found.append(f"{count} subjects are in both galleries, expected none")
    return found


def _pair_faults(meta: IjbMetadata, subject: Int[np.ndarray, " T"]) -> list[str]:
    found = []
    if count := np.count_nonzero(meta.first == meta.second):
        found.append(f"{count} pairs compare a template with itself")
    first, second = subject[meta.first], subject[meta.second]
    wrong = (first >= 0) & (second >= 0) & ((first == second) != meta.is_genuine)
    if count := np.count_nonzero(wrong):
        k = np.flatnonzero(wrong)[0]
        a, b = (meta.template_ids[rows[k]] for rows in (meta.first, meta.second))
        found.append(
            f"the labels of {count} pairs contradict the subjects of the 1:N files, "
            f"the first: templates {a} and {b}"
        )
    return found
