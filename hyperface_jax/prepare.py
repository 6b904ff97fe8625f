"""Turns users' files into a prepared dataset (TFDS, array_record).

    python -m hyperface_jax.prepare --source /data/ms1m-retinaface-t1 --name ms1m
    python -m hyperface_jax.prepare --source faces.tar --name faces --verify

reads InsightFace's RecordIO, lists of images, folders and tars of identities, writes
<data_dir>/<name>/<config>/<version> and a card of what is in it. Killed, it goes on
where it was; nothing half-written ever has the final name. Training names the set:

    python -m hyperface_jax.main --config configs/sfr.py:data=ms1m --workdir runs/ms1m
"""

import argparse
import logging
import os
import re
from collections.abc import Sequence

from hyperface_jax import command_line
from hyperface_jax.data import (
    alignment,
    builders,
    datasets,
    edits,
    face_crops,
    image_list,
    landmarks,
    pairs,
    preparing,
    sources,
)
from hyperface_jax.data.face_set import concatenate
from hyperface_jax.data.records import ids_of

log = logging.getLogger("hyperface_jax.prepare")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = command_line.Parser(
        prog="python -m hyperface_jax.prepare",
        description="Turns users' files into a prepared dataset.",
    )
    add = p.add_argument
    add(
        "--source",
        action="append",
        required=True,
        metavar="PATH",
        help="folder with train.rec, list, folder or tar of people; may be repeated",
    )
    add("--name", default="faces", choices=list(builders.BUILDERS), help="dataset")
    add("--config", default="default", help="a name for this version of it")
    add("--data_dir", default="", help="default: $TFDS_DATA_DIR, ~/tensorflow_datasets")
    add("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    add("--images_per_shard", type=int, default=16384)
    add("--verify", action="store_true", help="decode every image; reject what fails")
    add(
        "--exclude",
        action="append",
        default=[],
        metavar="FILE",
        help="to leave out: lines identity<TAB>NAME or image<TAB>ID",
    )
    add("--pairs", default="", metavar="FILE", help="verification pairs, LFW's format")
    add("--list_root", default="", metavar="DIR", help="paths of a list start here")
    add("--list_format", default="auto", choices=["auto", *image_list.LISTS])
    add("--landmarks", default="", metavar="FILE", help="five points an image: align")
    add("--detector", default="", choices=["", "yunet"], help="find the points")
    add("--detector_model", default="", metavar="FILE", help="the detector's weights")
    add("--size", default="112x112", metavar="HxW", help="of aligned faces")
    add("--licence", "--license", default="", metavar="TEXT", help="for the card")
    add(
        "--beam_runner",
        default="",
        metavar="NAME",
        help="write with Apache Beam instead, e.g. DirectRunner",
    )
    return p


def prepare(arguments: argparse.Namespace) -> None:
    """Runs a parsed command line.

    Raises:
      ValueError: one line on what is wrong with an argument or a file.
    """
    a = arguments
    if len(a.source) > 1 and a.pairs:
        raise ValueError(f"--pairs is given with {len(a.source)} sources, expected one")
    if a.pairs and not os.path.exists(a.pairs):
        raise ValueError(f"--pairs {a.pairs}: not found")
    if not re.fullmatch(r"[\w-][\w.-]*", a.config):
        raise ValueError(f"--config is {a.config!r}, expected a plain name")
    if a.images_per_shard < 1 or a.workers < 0:
        raise ValueError("--images_per_shard must be positive and --workers >= 0")
    folder = datasets.writable_folder_of(a.name, a.config, a.data_dir)
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} exists already; delete it to prepare it anew")
    if a.beam_runner:
        _check_beam(a)
        builders.prepare_with_beam(
            a.name,
            builders.FacesConfig(
                name=a.config,
                path=",".join(a.source),
                verify=a.verify,
                images_per_shard=a.images_per_shard,
            ),
            data_dir=str(folder.parents[2]),
            runner=a.beam_runner,
        )
        return
    faces = concatenate(
        [
            sources.open_path(p, list_root=a.list_root, list_format=a.list_format)
            for p in a.source
        ]
    )
    if a.pairs and getattr(faces.source, "ids", None) is not None:
        pairs.read_lfw_pairs(a.pairs, ids_of(faces.source))  # errors before the work
    if a.exclude:
        faces = edits.exclude(faces, edits.read_all_exclusions(a.exclude))
    log.info("%s: %d images of %d people", faces.name, len(faces), faces.num_classes)
    datasets.convert(
        faces,
        folder,
        name=a.name,
        source=", ".join(a.source),
        pairs_path=a.pairs,
        license_text=a.licence,
        options=preparing.Options(
            verify=a.verify,
            images_per_shard=a.images_per_shard,
            workers=0 if len(faces) <= a.images_per_shard else a.workers,
            aligner=_aligner(a),
            origin=_origin(a),
        ),
    )


def _check_beam(a: argparse.Namespace) -> None:
    """Refuses what TFDS's own way of writing has no place for."""
    defaults = parser()
    kept = ("source", "name", "config", "data_dir", "verify", "images_per_shard")
    for key, value in vars(a).items():
        if key in (*kept, "beam_runner", "workers"):
            continue
        if value != defaults.get_default(key):
            raise ValueError(
                f"--{key} is {value!r} with --beam_runner, expected none: it writes "
                "all images of a source as they are"
            )


def _origin(a: argparse.Namespace) -> str:
    """What a preparation that is resumed must have in common with its beginning."""
    files = [*a.exclude, *filter(None, [a.landmarks, a.detector_model])]
    sizes = [os.path.getsize(file) for file in files if os.path.exists(file)]
    return repr((a.source, a.list_root, a.list_format, files, sizes))


def _aligner(a: argparse.Namespace) -> face_crops.Aligner | None:
    if a.landmarks and a.detector:
        raise ValueError("--landmarks and --detector are both given, expected one")
    if not (a.landmarks or a.detector):
        return None
    height, _, width = a.size.partition("x")
    if not (height.isdigit() and width.isdigit()):
        raise ValueError(f"--size is {a.size!r}, expected HxW such as 112x112")
    size = int(height), int(width)
    alignment.template(*size)  # says which sizes there are
    if a.landmarks:
        landmarks.read_landmarks(a.landmarks)  # errors now, and not in a worker
        return face_crops.Aligner(face_crops.ListedLandmarks(a.landmarks), size)
    if not a.detector_model:
        raise ValueError("--detector yunet needs --detector_model, an .onnx file")
    return face_crops.Aligner(face_crops.DetectedLandmarks(a.detector_model), size)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; a wrong input ends with one line and status 1."""
    command_line.run(prepare, parser(), argv)


if __name__ == "__main__":
    main()
