"""Where numbers go: one `write(step, scalars)` for every sink.

Another sink (Weights & Biases, say) is a class with `write` and `close`, and a line in
`create_metric_writer`.
"""

import json
import tempfile
import time
from collections.abc import Sequence
from typing import Protocol

from etils import epath

from hyperface_jax import hosts, workdir

FILE = "metrics.jsonl"


class Sink(Protocol):
    """A place that takes scalars."""

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Records the values of one step."""
        ...

    def close(self) -> None:
        """Flushes."""
        ...


COPY_SECONDS = 60.0
"""Between two copies to a bucket, where nothing can be appended to a file."""


class JsonLines:
    """One JSON object a line in metrics.jsonl; survives a kill at any moment.

    In a bucket the last minute's rows are lost with the process.
    """

    def __init__(self, folder: epath.PathLike):
        self._path = epath.Path(folder) / FILE
        self._lines = self._path.read_text().splitlines() if self._path.exists() else []
        self._copied = time.monotonic()

    def drop_after(self, step: int) -> None:
        """Forgets rows later than a checkpoint that training resumes from."""
        self._lines = [row for row in self._lines if 0 <= _step_of(row) <= step]
        # Also where only the last newline is missing.
        if not self._path.exists() or self._path.read_text() != self._text():
            self._write_all()

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Appends a row."""
        line = json.dumps({"step": step, **scalars})
        self._lines.append(line)
        if not workdir.is_bucket(self._path):
            with self._path.open("a") as file:
                file.write(line + "\n")
        elif time.monotonic() - self._copied > COPY_SECONDS:
            self._write_all()

    def close(self) -> None:
        """Writes what is not there yet."""
        if workdir.is_bucket(self._path):
            self._write_all()

    def _text(self) -> str:
        return "".join(line + "\n" for line in self._lines)

    def _write_all(self) -> None:
        workdir.write_text(self._path, self._text())
        self._copied = time.monotonic()


class TensorBoard:
    """TensorBoard events, without TensorFlow.

    For a bucket they are written to a local folder and copied from time to time.
    """

    def __init__(self, folder: epath.PathLike):
        from tensorboardX import SummaryWriter

        self._target = epath.Path(folder) / "tensorboard"
        self._is_copied = workdir.is_bucket(folder)
        self._local = (
            epath.Path(tempfile.mkdtemp(prefix="hyperface_tensorboard_"))
            if self._is_copied
            else self._target
        )
        self._copied = time.monotonic()
        self._writer = SummaryWriter(str(self._local))

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Records scalars."""
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)
        if self._is_copied and time.monotonic() - self._copied > COPY_SECONDS:
            self._writer.flush()
            self._copy()

    def close(self) -> None:
        """Flushes."""
        self._writer.close()
        if self._is_copied:
            self._copy()
            self._local.rmtree()

    def _copy(self) -> None:
        self._target.mkdir(parents=True, exist_ok=True)
        for path in self._local.iterdir():
            (self._target / path.name).write_bytes(path.read_bytes())
        self._copied = time.monotonic()


class MetricWriter:
    """Writes to every sink."""

    def __init__(self, sinks: Sequence[Sink]):
        self._sinks = sinks

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Records the values of one step in all sinks."""
        for sink in self._sinks:
            sink.write(step, scalars)

    def close(self) -> None:
        """Closes all sinks."""
        for sink in self._sinks:
            sink.close()


def create_metric_writer(
    folder: epath.PathLike, *, start_step: int, tensorboard: bool
) -> MetricWriter:
    """The sinks of a run that starts or resumes at `start_step`; none but on host 0."""
    if not hosts.is_first():
        return MetricWriter([])
    rows = JsonLines(folder)
    rows.drop_after(start_step)
    sinks: list[Sink] = [rows]
    if tensorboard:
        sinks.append(TensorBoard(folder))
    return MetricWriter(sinks)


def read_metrics(folder: epath.PathLike) -> list[dict[str, float]]:
    """Rows of metrics.jsonl; a last line cut short by a kill is left out."""
    path = epath.Path(folder) / FILE
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if _step_of(line) >= 0]


def _step_of(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return -1
