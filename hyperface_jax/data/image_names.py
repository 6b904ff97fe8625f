"""Which files are images, by their names."""

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff")


def is_image(name: str) -> bool:
    """True for a file name that an image may have."""
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")
