"""Opens a dataset by name: prepared once as TFDS/ArrayRecord, or as it is at a path.

A new dataset that is drawn or downloaded is one builder and a row in `GENERATED`; a new
set of users' files is a row in `builders.BUILDERS`.
"""

import dataclasses
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from etils import epath

from hyperface_jax.data import (
    builders,
    caching,
    describing,
    pairs,
    prepared,
    preparing,
    sources,
    synth_faces,
)
from hyperface_jax.data.face_set import FaceSet
from hyperface_jax.data.name_lists import read_names
from hyperface_jax.data.records import ids_of

log = logging.getLogger(__name__)


def default_data_dir() -> str:
    """Where TFDS keeps datasets: $TFDS_DATA_DIR or ~/tensorflow_datasets."""
    named = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    return os.path.expanduser(named)


def _synth_faces(config: str, data_dir: str) -> Any:
    config = config or "laptop"
    if config not in synth_faces.CONFIGS:
        raise ValueError(
            f"data.config is {config!r}, expected one of "
            f"{', '.join(synth_faces.CONFIGS)} for synth_faces"
        )
    return synth_faces.SynthFaces(
        config=synth_faces.CONFIGS[config],
        data_dir=data_dir,
        file_format="array_record",
    )


GENERATED: dict[str, Callable[[str, str], Any]] = {"synth_faces": _synth_faces}
DATASETS = (*GENERATED, *builders.BUILDERS)


def open_dataset(
    name: str,
    *,
    config: str,
    path: str = "",
    pairs_path: str = "",
    data_dir: str = "",
    copy_to: str = "",
) -> dict[str, FaceSet]:
    """Splits of a dataset by name.

    With a path its files are read as they are, whatever `name` says; only
    name="face_folder" converts them first. Without one the dataset is drawn, or must
    have been prepared.

    Args:
      name: of `DATASETS`.
      config: "laptop", "tiny" ... of synth_faces; else the name it was prepared under.
      path: of the source; several with commas between.
      pairs_path: verification pairs in LFW's format, by image id; or "".
      data_dir: where prepared datasets are kept; default `default_data_dir()`.
      copy_to: local folder to copy files to before they are read; "": not.

    Raises:
      ValueError: no such dataset, or nothing at the path.
    """
    if name not in DATASETS:
        raise ValueError(
            f"data.name is {name!r}, expected one of {', '.join(DATASETS)}"
        )
    # File names of shards may not depend on the user's TFDS defaults.
    root = str(epath.Path(data_dir or default_data_dir()).expanduser())
    if name == "face_folder":
        return {"train": _face_folder(config, path, pairs_path, root)}
    elif path:
        paths = sources.split_paths(path)
        if copy_to:
            paths = tuple(caching.copy_to_disk(p, copy_to) for p in paths)
        return {"train": sources.open_paths(paths, pairs_path=pairs_path)}
    elif name in GENERATED:
        builder = GENERATED[name](config, root)
        if not epath.Path(builder.data_path).exists():
            _remove_stale(epath.Path(builder.data_path).parent)
            log.info("preparing %s in %s", name, builder.data_path)
            builder.download_and_prepare()
    else:
        folder = str(_prepared_folder(name, config, root))
        builder = tfds.builder_from_directory(
            caching.copy_to_disk(folder, copy_to) if copy_to else folder
        )
    return {split: prepared.open_split(builder, split) for split in builder.info.splits}


def _remove_stale(folder: epath.Path) -> None:
    """What killed preparations of TFDS's own left behind, if nobody writes there."""
    if not folder.exists():
        return
    for left in folder.glob("incomplete.*"):
        newest = max((f.stat().mtime for f in left.iterdir()), default=0)
        if time.time() - newest > 3600:
            left.rmtree()


def folder_of(name: str, config: str, data_dir: str) -> epath.Path:
    """Where a prepared dataset is, or is to be; in a bucket, too."""
    root = epath.Path(data_dir or default_data_dir()).expanduser()
    return root / name / (config or "default") / preparing.VERSION


def writable_folder_of(name: str, config: str, data_dir: str) -> Path:
    """`folder_of` a dataset that is to be written.

    Raises:
      ValueError: it is in a bucket.
    """
    folder = folder_of(name, config, data_dir)
    if "://" in str(folder):
        raise ValueError(
            f"{folder}: a dataset is written to a local folder, and can be copied there"
        )
    return Path(folder)


def _prepared_folder(name: str, config: str, data_dir: str) -> epath.Path:
    folder = folder_of(name, config, data_dir)
    if not folder.exists():
        raise ValueError(
            f"{folder} is not there: give --config.data.path=..., or prepare it with "
            f"python -m hyperface_jax.prepare --source ... --name {name} "
            f"--config {config or 'default'}"
        )
    return folder


def _face_folder(config: str, path: str, pairs_path: str, data_dir: str) -> FaceSet:
    """Converts a folder or tar once; later the copy must still be of these files.

    Pairs are no part of the copy: they are read each time.
    """
    if not path:
        raise ValueError("data.path is empty, expected a folder or tar of identities")
    faces = sources.open_paths(path)
    folder = writable_folder_of("face_folder", config or faces.name, data_dir)
    if not folder.exists():
        convert(
            faces,
            folder,
            name="face_folder",
            source=path,
            options=preparing.Options(
                verify=True,
                workers=0 if len(faces) < 20_000 else os.cpu_count() or 1,
            ),
        )
    builder = tfds.builder_from_directory(str(folder))
    if (builder.info.metadata or {}).get("source_fingerprint") != faces.fingerprint:
        raise ValueError(
            f"data.path {path}: its files differ from those in the prepared copy "
            f"{folder}, or an older hyperface_jax made it; give another data.config "
            "name or delete the copy"
        )
    copy = prepared.open_split(builder, "train")
    if not pairs_path:
        return copy
    try:
        found = pairs.read_lfw_pairs(pairs_path, ids_of(copy.source))
    except ValueError as error:
        for id_, why in read_names(folder / prepared.REJECTED):
            if f"no image {id_} " in str(error):
                raise ValueError(f"{error}: it was rejected, {why}") from None
        raise
    return dataclasses.replace(copy, pairs=found)


def convert(
    faces: FaceSet,
    folder: Path,
    *,
    name: str,
    source: str,
    options: preparing.Options,
    pairs_path: str = "",
    license_text: str = "",
) -> None:
    """Writes a FaceSet as a prepared dataset; resumes where it was stopped.

    Args:
      faces: what to store.
      folder: of the finished dataset.
      name: of the dataset.
      source: where it came from, for the card.
      options: how.
      pairs_path: verification pairs in LFW's format, by image id; or "".
      license_text: as given by the user.

    Raises:
      ValueError: the folder exists, or no image can be used.
    """
    if folder.exists() and any(folder.iterdir()):
        preparing.tidy(folder)
        raise ValueError(f"{folder} exists already; delete it to prepare it anew")
    with preparing.locked(folder):
        written = preparing.write_shards(faces, folder, name=name, options=options)
        describing.describe(
            faces,
            written,
            name=name,
            source=source,
            license_text=license_text,
            pairs_path=pairs_path,
        )
        kept = sum(len(part.rows) for part in written.parts())
        preparing.publish(written)
    for id_, why in written.rejected[:20]:
        log.warning("%s left out: %s", id_, why)
    if len(written.rejected) > 20:
        log.warning(
            "%d more left out: %s",
            len(written.rejected) - 20,
            folder / prepared.REJECTED,
        )
    log.info("%s: %d images of %d people", folder, kept, faces.num_classes)
