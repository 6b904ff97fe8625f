"""Several hosts, one program: start, agree on the run, end together.

Every host runs the same command. On one host nothing here does anything.
"""

import hashlib
import json
import logging
import os
import secrets
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from hyperface_jax import host_environment, host_watch

log = logging.getLogger(__name__)

T = TypeVar("T")

_watch: list[host_watch.Server | host_watch.Client] = []


def place() -> dict[str, int]:
    """Of this host among all, as arguments of `data.orders`."""
    return {"process_index": jax.process_index(), "process_count": jax.process_count()}


def is_first() -> bool:
    """Whether this is the host that writes metrics and reports."""
    return jax.process_index() == 0


def start(
    coordinator: str = "",
    processes: int = 0,
    process_id: int = -1,
    *,
    wait_seconds: int = 300,
    silence_seconds: float = 30.0,
) -> None:
    """Starts `jax.distributed` if there are several hosts, and watches them.

    Args:
      coordinator: "host:port" of host 0; "" takes it from the environment (SLURM,
        JAX_COORDINATOR_ADDRESS, Cloud TPU), where there is one.
      processes: number of hosts, with a coordinator.
      process_id: of this one, from 0, with a coordinator.
      wait_seconds: for the others to arrive; then the process ends with one line.
      silence_seconds: a host that gives no sign of life for so long is lost.

    Raises:
      ValueError: one line on arguments that do not fit together.
    """
    given = (bool(coordinator), processes > 0, process_id >= 0)
    if any(given) and not all(given):
        raise ValueError(
            f"--coordinator is {coordinator!r}, --processes {processes}, --process_id "
            f"{process_id}, expected all three or none"
        )
    if coordinator and not process_id < processes:
        raise ValueError(
            f"--process_id is {process_id}, expected 0 to {processes - 1} "
            f"(--processes is {processes})"
        )
    if coordinator and not coordinator.rpartition(":")[2].isdigit():
        raise ValueError(f"--coordinator is {coordinator!r}, expected host:port")
    if not (coordinator or host_environment.has_coordinator()):
        return
    who = f"host {process_id}" if coordinator else "this host"
    where = coordinator or "the environment's coordinator"
    log.info("%s waits up to %d s for all hosts at %s", who, wait_seconds, where)
    message = (
        f"{who} has waited {wait_seconds} s for all "
        f"{processes or ''} hosts at {where}: was the command started on each?"
    )
    with host_watch.Deadline(wait_seconds, " ".join(message.split())):
        try:
            jax.distributed.initialize(
                coordinator or None,
                processes or None,
                process_id if coordinator else None,
                host_environment.local_device_ids(os.environ),
                # Ours end first, with a line of ours.
                initialization_timeout=wait_seconds + 60,
                heartbeat_timeout_seconds=int(silence_seconds) + 70,
            )
        except ValueError as error:
            raise ValueError(
                f"{str(error).rstrip('.')} (the environment does not say it all: give "
                "--coordinator, --processes and --process_id)"
            ) from None
        # jax would only note it down; here the last checkpoint is what is left.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if jax.process_count() > 1:
            _start_watch(coordinator, silence_seconds)


def _start_watch(coordinator: str, silence: float) -> None:
    server, token = None, secrets.token_hex(8)
    if is_first():
        others = jax.process_count() - 1
        server = host_watch.Server(others, token, silence=silence)
    name = coordinator.rpartition(":")[0].strip("[]") or socket.getfqdn()
    found = _broadcast(json.dumps([name, server.port if server else 0, token]))
    if server:
        _watch.append(server)
        return
    host, port, token = json.loads(found)
    me = f"host {jax.process_index()} ({socket.gethostname()})"
    try:
        _watch.append(host_watch.Client((host, port), token, me, silence=silence))
    except OSError as error:
        log.warning(
            "host 0 cannot be watched at %s:%d (%s): a lost host will be noticed by "
            "jax's own heartbeat only",
            *(host, port, error),
        )


def _broadcast(text: str, size: int = 1024) -> str:
    """Host 0's text on every host."""
    padded = np.frombuffer(text.encode().ljust(size), np.uint8)
    found = multihost_utils.broadcast_one_to_all(padded)
    return bytes(np.asarray(found)).decode().strip()


def check_agreement(facts: Mapping[str, Any]) -> None:
    """Compares named facts of all hosts, such as keys of the config.

    Raises:
      ValueError: on every host the same line, with what differs and where.
    """
    if jax.process_count() == 1:
        return
    names = sorted(facts)
    hashes = np.array(
        [_hash([name, facts[name]]) for name in names] + [_hash(names)], np.uint32
    )
    counts = multihost_utils.process_allgather(np.int32(len(names)))
    if len(set(np.asarray(counts).tolist())) > 1:
        _release()
        raise ValueError("hosts run different versions of the program")
    found = np.asarray(multihost_utils.process_allgather(hashes))
    wrong = np.flatnonzero((found != found[0]).any(axis=0))
    if wrong.size:
        _release()  # every host finds the same and says so
        what = [names[k] if k < len(names) else "names of keys" for k in wrong]
        hosts = np.flatnonzero((found != found[0]).any(axis=1))
        raise ValueError(
            f"hosts disagree on {', '.join(what[:5])}: host "
            f"{', '.join(map(str, hosts))} differs from host 0; this is host "
            f"{jax.process_index()}, with {json.dumps(facts.get(what[0]), default=str)}"
        )


def check_shared(folder: epath.Path) -> None:
    """Checks that all hosts see one folder.

    Raises:
      ValueError: on every host, where one of them does not.
    """
    if jax.process_count() == 1:
        return
    token = _broadcast(secrets.token_hex(8))
    path = folder / ".hosts"
    if is_first():
        path.write_text(token)
    barrier("the token is written")
    seen = path.exists() and path.read_text() == token
    everyone = gather(np.array(seen)).tolist()
    if is_first():
        path.unlink()
    if not all(everyone):
        _release()
        blind = [str(host) for host, sees in enumerate(everyone) if not sees]
        raise ValueError(
            f"workdir {folder} is not the same folder on host {', '.join(blind)} as on "
            "host 0, expected one that all hosts share"
        )


def first_host_first(work: Callable[[], T]) -> T:
    """Runs the same work on every host, on host 0 before all others.

    What it leaves in a shared folder is then there for them; in folders of their own
    they do it again.
    """
    if not is_first():
        barrier("host 0 has prepared its data")
    result = work()
    if is_first():
        barrier("host 0 has prepared its data")
    return result


def _hash(value: Any) -> int:
    text = json.dumps(value, default=str, sort_keys=True)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")


def barrier(name: str) -> None:
    """Waits for all hosts."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def gather(values: np.ndarray) -> np.ndarray:
    """The arrays of all hosts, stacked [hosts, ...], on every host."""
    if jax.process_count() == 1:
        return np.asarray(values)[None]
    return np.asarray(multihost_utils.process_allgather(values))


def finish() -> None:
    """The run is done: that this host ends now is no loss."""
    barrier("finished")
    _release()


def _release() -> None:
    """From here on nobody's end is a loss."""
    for watch in _watch:
        watch.finish()
    _watch.clear()


def crash() -> NoReturn:
    """Prints the exception being handled and ends with status 1 at once."""
    traceback.print_exc()
    sys.stderr.flush()
    os._exit(1)


def fail(message: str) -> NoReturn:
    """Says what is wrong and ends with status 1, on several hosts at once.

    An ordinary exit would wait there for the others, who wait for this one.
    """
    if not jax.distributed.is_initialized():
        sys.exit(message)
    sys.stderr.write(message + "\n")
    sys.stderr.flush()
    os._exit(1)
