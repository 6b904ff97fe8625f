"""A tiny dataset of coloured patches, written by our own code in milliseconds."""

import io

import numpy as np
from PIL import Image


def jpeg(array: np.ndarray, quality: int = 90, mode: str = "RGB") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).convert(mode).save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def person_image(person: int, index: int, size: int = 32) -> np.ndarray:
    """A smooth pattern of the person plus noise of the image."""
    person_rng = np.random.default_rng([7, person])
    coarse = person_rng.uniform(40, 215, (4, 4, 3)).astype(np.uint8)
    image = np.asarray(
        Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC), float
    )
    noise = np.random.default_rng([8, person, index]).normal(0, 12, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def write_folder(path, *, people: int = 12, images: int = 4, size: int = 32):
    """NAME/NAME_%04d.jpg, as LFW."""
    for person in range(people):
        name = f"Person_{person:02d}"
        (path / name).mkdir(parents=True)
        for index in range(images):
            data = jpeg(person_image(person, index, size))
            (path / name / f"{name}_{index + 1:04d}.jpg").write_bytes(data)
    return path


def write_pairs(path, *, people: int = 12, folds: int = 3):
    """Per fold one genuine pair of each of its people and as many impostor pairs."""
    each = people // folds
    lines = [f"{folds}\t{each}"]
    for fold in range(folds):
        names = [f"Person_{fold * each + k:02d}" for k in range(each)]
        lines += [f"{name}\t1\t2" for name in names]
        lines += [
            f"{name}\t1\t{names[(k + 1) % each]}\t2" for k, name in enumerate(names)
        ]
    path.write_text("\n".join(lines) + "\n")
    return path


def refusal(work):
    """The message of the ValueError that ends `work`, or ""."""
    try:
        work()
    except ValueError as error:
        return str(error)
    return ""


class NoImages:
    """A source of which only the length is asked."""

    def __init__(self, count: int):
        self._count = count

    def __len__(self) -> int:
        return self._count
