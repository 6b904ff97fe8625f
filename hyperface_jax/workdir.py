"""The folder of a run: config, versions and results, each file whole or absent."""

import contextlib
import io
import json
import platform
import subprocess
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath

CONFIG = "config.json"
RESULTS = "results.json"
REPORT = "report.html"
SCORES = "scores.npz"
TABLE_MD = "results.md"
TABLE_TEX = "results.tex"

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def absolute(path: epath.PathLike) -> epath.Path:
    """The folder as an absolute path, which Orbax needs; "~" is the home folder.

    A bucket (gs://bucket/run) is absolute already, and resolve() would put it below the
    current folder.
    """
    if is_bucket(path):
        return epath.Path(path)
    return epath.Path(path).expanduser().resolve()


def is_bucket(path: epath.PathLike) -> bool:
    """Whether a path names objects (gs://...): whole or absent, never appended to."""
    return "://" in str(path)


def create(path: epath.PathLike) -> epath.Path:
    """Makes the folder and checks that it can be written to.

    Raises:
      ValueError: it cannot, with the reason.
    """
    try:
        folder = absolute(path)
        exists = folder.exists()
    except (ImportError, KeyError) as error:  # no library, or none for such addresses
        reason = error if isinstance(error, ImportError) else "unknown kind of address"
        raise ValueError(
            f"workdir {path}: {reason} (gs:// needs pip install -e '.[gcs]')"
        ) from None
    if exists and not folder.is_dir():
        raise ValueError(f"workdir {folder}: is a file, expected a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".write_test_{jax.process_index()}"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        reason = error.strerror or str(error)
        raise ValueError(f"workdir {folder}: cannot be written to ({reason})") from None
    return folder


@contextlib.contextmanager
def whole_file(path: epath.Path, mode: str = "w") -> Iterator[Any]:
    """A file to write to, under a temporary name until all is written.

    In a bucket, where an object appears when it is closed and renaming is copying, what
    is written waits in memory instead. So no half-written file is ever seen.

    Args:
      path: its final name.
      mode: "w" or "wb".

    Raises:
      OSError: it cannot be written; with its name, which a full disk does not say.
    """
    if is_bucket(path):
        buffer: Any = io.BytesIO() if mode == "wb" else io.StringIO()
        yield buffer
        write: Any = path.write_bytes if mode == "wb" else path.write_text
        write(buffer.getvalue())
        return
    temporary = path.parent / f"{path.name}.tmp"
    try:
        with temporary.open(mode) as file:
            yield file
        temporary.replace(path)
    except OSError as error:
        if error.filename or not error.strerror:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: epath.Path, text: str) -> None:
    """Writes a file, whole or not at all.

    Raises:
      ValueError: it cannot be written, with the reason.
    """
    try:
        with whole_file(path) as file:
            file.write(text)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ValueError(f"{path}: cannot be written ({reason})") from None


def write_json(path: epath.Path, values: Mapping[str, Any]) -> None:
    """Readable JSON."""
    write_text(path, json.dumps(values, indent=2, default=_plain) + "\n")


def read_json(path: epath.Path) -> dict[str, Any]:
    """Inverse of `write_json`; a damaged file is a ValueError that names it."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: holds a {type(found).__name__}, expected an object")
    return found


def commit() -> str:
    """Of this package's own repository, or "" where it comes from none.

    With "-dirty" where a tracked file differs from it.
    """
    root = Path(__file__).resolve().parent.parent

    def git(*words: str) -> str:
        found = subprocess.run(
            ["git", *words], capture_output=True, text=True, cwd=root, timeout=10
        )
        return found.stdout.strip()

    try:
        top = git("rev-parse", "--show-toplevel")
        # Installed below somebody's repository, it is theirs.
        if not top or Path(top).resolve() != root:
            return ""
        return git("describe", "--always", "--dirty", "--exclude=*")
    except (OSError, subprocess.TimeoutExpired):
        return ""


def versions() -> dict[str, str]:
    """What the run ran with."""
    from hyperface_jax import __version__

    found = {"hyperface_jax": __version__, "python": platform.python_version()}
    found |= {name: metadata.version(name) for name in _PACKAGES}
    devices = jax.devices()
    found["devices"] = f"{len(devices)} x {devices[0].device_kind}"
    found["machine"] = f"{platform.system()} {platform.machine()}"
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray | tuple):
        return list(value)
    return str(value)
