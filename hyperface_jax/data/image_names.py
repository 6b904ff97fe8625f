"""Which files are images, by their names, and their order."""

from collections.abc import Iterable

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff")


def is_image(name: str) -> bool:
    """True for a file name that an image may have."""
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def by_person(names: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """`sorted(names)` of (person, file), person by person.

    One sort of 42 million takes minutes in which no other thread runs, and other hosts
    take this one for lost (`host_watch`).
    """
    files: dict[str, list[str]] = {}
    for person, file in names:
        files.setdefault(person, []).append(file)
    return [
        (person, file) for person in sorted(files) for file in sorted(files[person])
    ]
