"""TFDS builder `face_folder`: a folder or tar of identities, NAME/xxx.jpg.

With a pairs file in LFW's format, images must be called NAME/NAME_%04d.*, as in LFW.
"""

import dataclasses
import hashlib
import logging
import tarfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from hyperface_jax.data import pairs
from hyperface_jax.data.decode import BadImageError, decode_image

log = logging.getLogger(__name__)

SPLIT = "faces"
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


@dataclasses.dataclass(kw_only=True)
class FaceFolderConfig(tfds.core.BuilderConfig):
    """Where the images are.

    Attributes:
      path: folder or tar of NAME/xxx.jpg (any depth above NAME).
      pairs_path: LFW pairs file, or "".
    """

    path: str = ""
    pairs_path: str = ""


@dataclasses.dataclass(frozen=True)
class FoundImage:
    """One image of the source: who, which, how large, and how to read it."""

    identity: str
    name: str
    size: int
    read: Callable[[], bytes]

    @property
    def id(self) -> str:
        """NAME/file without suffix."""
        return f"{self.identity}/{self.name.rsplit('.', 1)[0]}"


class FaceFolder(tfds.core.GeneratorBasedBuilder):
    """A user's own faces; unreadable images are left out and listed."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "label": np.int64,
                    "id": tfds.features.Text(),
                }
            ),
            metadata=tfds.core.MetadataDict(),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        del dl_manager
        c = self.builder_config
        assert isinstance(c, FaceFolderConfig)
        assert self.info.metadata is not None
        found = find_images(c.path)
        kept, rejected = _readable(found)
        if not kept:
            raise ValueError(
                f"data.path {c.path}: none of {len(found)} images can be read, the "
                f"first: {next(iter(rejected.items()))}"
            )
        names, counts = np.unique(
            [image.identity for image in kept], return_counts=True
        )
        for lost in sorted({i.identity for i in found} - set(names.tolist())):
            log.warning("%s: no readable image of %s, left out", c.path, lost)
        split: dict[str, Any] = {
            "identities": names.tolist(),
            "counts": counts.tolist(),
        }
        if c.pairs_path:
            rows = {image.id: row for row, image in enumerate(kept)}
            split["pairs"] = pairs.read_lfw_pairs(c.pairs_path, rows).to_json()
        self.info.metadata.update(
            source=c.path,
            source_fingerprint=source_fingerprint(found, c.pairs_path),
            rejected=rejected,
            splits={SPLIT: split},
        )
        return {SPLIT: self._generate_examples(kept)}

    def _generate_examples(
        self, images: list[FoundImage]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        labels = np.unique([image.identity for image in images], return_inverse=True)[1]
        for row, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield (
                row,
                {"image": image.read(), "label": int(label), "id": image.id},
            )


def find_images(path: str) -> list[FoundImage]:
    """All images below a folder or in a tar, sorted by identity and name.

    Raises:
      ValueError: the path is missing or holds no NAME/image.
    """
    where = epath.Path(path)
    if not where.exists():
        raise ValueError(f"data.path {path}: not found, expected a folder or a tar")
    found = _in_folder(where) if where.is_dir() else _in_tar(path)
    if not found:
        raise ValueError(
            f"data.path {path}: no images found, expected NAME/xxx.jpg "
            f"({', '.join(SUFFIXES)})"
        )
    return sorted(found, key=lambda image: (image.identity, image.name))


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def _in_folder(folder: epath.Path) -> list[FoundImage]:
    return [
        FoundImage(person.name, file.name, file.stat().length, file.read_bytes)
        for person in folder.iterdir()
        if person.is_dir()
        for file in person.iterdir()
        if _is_image(file.name)
    ]


def _in_tar(path: str) -> list[FoundImage]:
    try:
        archive = tarfile.open(path)  # noqa: SIM115 (images are read from it later)
        members = archive.getmembers()
    except tarfile.TarError as error:
        raise ValueError(f"data.path {path}: not a readable tar ({error})") from None

    def reader(member: tarfile.TarInfo) -> Callable[[], bytes]:
        def read() -> bytes:
            stream = archive.extractfile(member)
            return b"" if stream is None else stream.read()

        return read

    found = []
    for member in members:
        parts = member.name.split("/")
        if member.isfile() and len(parts) >= 2 and _is_image(parts[-1]):
            found.append(FoundImage(parts[-2], parts[-1], member.size, reader(member)))
    return found


def _readable(images: list[FoundImage]) -> tuple[list[FoundImage], dict[str, str]]:
    """Splits into images that decode, and id -> reason for those that do not."""
    kept, rejected = [], {}
    for image in images:
        try:
            decode_image(image.read(), 16)
        except (BadImageError, OSError, tarfile.TarError) as error:
            rejected[image.id] = str(error)
            log.warning("%s left out: %s", image.id, error)
        else:
            kept.append(image)
    return kept, rejected


def source_fingerprint(images: list[FoundImage], pairs_path: str) -> str:
    """Changes when an image is added, removed, renamed or resized, or the pairs do."""
    digest = hashlib.sha256()
    for image in images:
        digest.update(f"{image.identity}/{image.name}\t{image.size}\n".encode())
    if pairs_path and epath.Path(pairs_path).exists():
        digest.update(epath.Path(pairs_path).read_bytes())
    return digest.hexdigest()[:16]
