"""Opens a dataset by name: prepares it once as TFDS/ArrayRecord, then reads it.

A new dataset is one builder and a row in `DATASETS`.
"""

import hashlib
import logging
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from hyperface_jax.data import face_folder, synth_faces
from hyperface_jax.data.face_set import FaceSet
from hyperface_jax.data.pairs import Pairs

log = logging.getLogger(__name__)


def default_data_dir() -> str:
    """Where TFDS keeps datasets: $TFDS_DATA_DIR or ~/tensorflow_datasets."""
    return os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")


def _synth_faces(config: str, path: str, pairs_path: str, data_dir: str):
    del path, pairs_path
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


def _face_folder(config: str, path: str, pairs_path: str, data_dir: str):
    if not path:
        raise ValueError("data.path is empty, expected a folder or tar of identities")
    if not epath.Path(path).exists():
        raise ValueError(f"data.path {path}: not found, expected a folder or a tar")
    builder_config = face_folder.FaceFolderConfig(
        name=config or epath.Path(path).name.split(".")[0],
        path=path,
        pairs_path=pairs_path,
    )
    builder = face_folder.FaceFolder(
        config=builder_config, data_dir=data_dir, file_format="array_record"
    )
    _check_source(builder, path, pairs_path)
    return builder


DATASETS: dict[str, Callable[..., tfds.core.DatasetBuilder]] = {
    "synth_faces": _synth_faces,
    "face_folder": _face_folder,
}


def _check_source(builder: Any, path: str, pairs_path: str) -> None:
    """A prepared copy must not hide that the user's folder has changed."""
    if not _is_prepared(builder):
        return
    found = face_folder.source_fingerprint(face_folder.find_images(path), pairs_path)
    if found != builder.info.metadata.get("source_fingerprint"):
        raise ValueError(
            f"data.path {path}: its files differ from those in the prepared copy "
            f"{builder.data_path}; give another data.config name or delete the copy"
        )


def _is_prepared(builder: Any) -> bool:
    return epath.Path(builder.data_path).exists()


def prepare(
    name: str, *, config: str, path: str = "", pairs_path: str = "", data_dir: str = ""
) -> Any:
    """Builds the dataset unless it is there already.

    Args:
      name: row of `DATASETS`.
      config: "laptop", "tiny" ... of synth_faces; a name of your choice of face_folder.
      path: folder or tar (face_folder).
      pairs_path: LFW pairs file (face_folder).
      data_dir: where prepared datasets are kept; default `default_data_dir()`.

    Returns:
      A TFDS builder that is ready to be read.
    """
    if name not in DATASETS:
        raise ValueError(
            f"data.name is {name!r}, expected one of {', '.join(DATASETS)}"
        )
    # File names of shards may not depend on the user's TFDS defaults.
    root = str(epath.Path(data_dir or default_data_dir()).expanduser())
    builder = DATASETS[name](config, path, pairs_path, root)
    if not _is_prepared(builder):
        log.info("preparing %s in %s", name, builder.data_path)
        builder.download_and_prepare()
    return builder


def open_split(builder: Any, split: str) -> FaceSet:
    """A split of a prepared builder as a FaceSet, in the order of its records."""
    meta = builder.info.metadata["splits"]
    if split not in meta:
        raise ValueError(
            f"split {split!r} is not in {builder.info.name}: {', '.join(meta)}"
        )
    facts = meta[split]
    source = builder.as_data_source(
        split, decoders={"image": tfds.decode.SkipDecoding()}
    )
    counts = np.asarray(facts["counts"])
    if counts.sum() != len(source):
        raise ValueError(
            f"{builder.data_path}: split {split} has {len(source)} records, its "
            f"metadata promises {counts.sum()}; delete the folder to prepare it anew"
        )
    labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    return FaceSet(
        name=f"{builder.info.full_name} {split}",
        source=source,
        rows=np.arange(len(source)),
        labels=labels,
        source_labels=labels,
        identities=tuple(facts["identities"]),
        fingerprint=_fingerprint(builder, split),
        pairs=Pairs.from_json(facts["pairs"]) if "pairs" in facts else None,
        gallery=np.asarray(facts.get("gallery", []), int),
        probes=np.asarray(facts.get("probes", []), int),
    )


def _fingerprint(builder: Any, split: str) -> str:
    """Of content and order, not of the path: people, counts and bytes of the shards."""
    facts = builder.info.metadata["splits"][split]
    digest = hashlib.sha256()
    digest.update(repr((builder.info.name, str(builder.info.version))).encode())
    digest.update("\n".join(facts["identities"]).encode())
    digest.update(np.asarray(facts["counts"], "<i8").tobytes())
    digest.update(str(builder.info.splits[split].num_bytes).encode())
    return digest.hexdigest()[:16]
