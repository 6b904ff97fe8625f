"""TFDS builders of users' own faces: ms1m, casia_webface, vggface2, glint360k, faces.

All read whatever `sources.open_paths` opens; they differ in name only, so that a config
can say which set it means. `python -m hyperface_jax.prepare` writes their folders with
`preparing`, which can resume; the classes are for `tfds.load` and for Apache Beam:

    import hyperface_jax.data.builders, tensorflow_datasets as tfds
    builder = tfds.builder("ms1m", config="retinaface_t1", data_dir=...)  # prepared
"""

import dataclasses
import functools
import importlib.util
import logging
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow_datasets as tfds

from hyperface_jax.data import prepared, preparing, shards, sources

log = logging.getLogger(__name__)


@dataclasses.dataclass(kw_only=True)
class FacesConfig(tfds.core.BuilderConfig):
    """Where the images are.

    Attributes:
      path: of the source, or several with commas between.
      verify: decode every image and leave out those that fail.
      images_per_shard: at most.
    """

    path: str = ""
    verify: bool = True
    images_per_shard: int = 16384


class FacesBuilder(tfds.core.ShardBasedBuilder, skip_registration=True):
    """Faces with identities, in the order of their source."""

    VERSION = tfds.core.Version(preparing.VERSION)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=prepared.features(),
            disable_shuffling=True,
        )

    def _shard_iterators_per_split(
        self, dl_manager: Any
    ) -> dict[str, list[Callable[[], Iterator[tuple[int, dict[str, Any]]]]]]:
        del dl_manager
        c = self.builder_config
        if not isinstance(c, FacesConfig) or not c.path:
            raise ValueError(
                f"{self.name}: not prepared, and no path to prepare it from; use "
                "python -m hyperface_jax.prepare or FacesConfig(path=...)"
            )
        faces = sources.open_paths(c.path)
        options = preparing.Options(
            verify=c.verify, images_per_shard=c.images_per_shard
        )
        tasks = preparing.shard_tasks(faces, options)
        return {preparing.SPLIT: [functools.partial(_examples, task) for task in tasks]}


def _examples(task: shards.ShardTask) -> Iterator[tuple[int, dict[str, Any]]]:
    for k, image, label, id_, _, _ in shards.examples(task, []):
        yield task.first_row + k, {"image": image, "label": label, "id": id_}


class Ms1m(FacesBuilder):
    """MS1M in any of its cleanings (MS1MV2, MS1MV3, RetinaFace-t1)."""


class CasiaWebface(FacesBuilder):
    """CASIA-WebFace."""


class Vggface2(FacesBuilder):
    """VGGFace2."""


class Glint360k(FacesBuilder):
    """Glint360K."""


class FaceFolder(FacesBuilder):
    """A folder or tar of identities."""


class Faces(FacesBuilder):
    """Any other set of faces with identities."""


BUILDERS: dict[str, type[FacesBuilder]] = {
    "ms1m": Ms1m,
    "casia_webface": CasiaWebface,
    "vggface2": Vggface2,
    "glint360k": Glint360k,
    "face_folder": FaceFolder,
    "faces": Faces,
}


def prepare_with_beam(
    name: str, config: FacesConfig, *, data_dir: str, runner: str
) -> None:
    """Prepares a set that outgrows one machine through TFDS's Beam support.

    All workers must see the source and `data_dir`. Rejected records are left out and
    counted; the lists and the card that `preparing` writes are not made.

    Args:
      name: of `BUILDERS`.
      config: names the source.
      data_dir: root of the prepared datasets.
      runner: of Beam that needs no options of its own, e.g. "DirectRunner".

    Raises:
      ValueError: Apache Beam is not installed, or no image can be used.
    """
    if importlib.util.find_spec("apache_beam") is None:
        raise ValueError(
            "--beam_runner needs Apache Beam: pip install 'hyperface_jax[beam]'"
        )
    images = len(sources.open_paths(config.path))
    builder = BUILDERS[name](
        config=config, data_dir=data_dir, file_format="array_record"
    )
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(beam_runner=runner)
    )
    kept = builder.info.splits[preparing.SPLIT].num_examples
    if not kept:
        builder.data_path.rmtree()
        raise ValueError(f"{config.path}: none of {images} images can be used")
    if kept < images:
        log.warning("%d of %d images are left out", images - kept, images)
