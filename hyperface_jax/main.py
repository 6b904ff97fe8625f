"""Command line: flags and dispatch. Short on purpose: all else can be imported.

python -m hyperface_jax.main --config configs/sfr.py --workdir runs/sfr
python -m hyperface_jax.main --mode eval --workdir runs/sfr

Any key is set by --config.KEY=VALUE, e.g. --config.head.margin=1.7; all keys and what
they mean stand in hyperface_jax/config/keys.py.
"""

import logging
import re
import sys
from typing import NoReturn

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from hyperface_jax import command_line

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "File in configs/, with an optional :argument.", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
_MODE = flags.DEFINE_enum("mode", "train", ["train", "eval", "plan"], "What to do.")
_TOPOLOGY = flags.DEFINE_string(
    "topology", "", "With --mode plan: compile for these, e.g. v5e:4x4 or h200:8."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", "", "host:port of host 0; default: of SLURM or Cloud TPU, if any."
)
_PROCESSES = flags.DEFINE_integer("processes", 0, "Hosts, with --coordinator.")
_PROCESS_ID = flags.DEFINE_integer("process_id", -1, "This host, from 0.")
_WAIT = flags.DEFINE_integer("wait_for_hosts", 300, "Seconds for all to arrive.")
_SILENCE = flags.DEFINE_float(
    "lost_host_after", 30.0, "Seconds without a sign of life of another host."
)
_DEBUG = flags.DEFINE_bool("debug", False, "Show tracebacks of input errors.")


# How collectives say that the other end is not there any more.
_LOST = re.compile("UNAVAILABLE|[Gg]loo|[Cc]onnection|[Hh]eartbeat|NCCL|remote peer")


class _SaidOnce(logging.Filter):
    """Drops what Orbax, asyncio and gcsfs log of an error that is also raised."""

    def filter(self, record: logging.LogRecord) -> bool:
        theirs = "orbax" in record.pathname or record.name in ("asyncio", "gcsfs")
        failed = record.exc_info or record.levelno >= logging.ERROR
        failed = failed or str(record.msg).startswith("Failed to get metadata")
        return not (theirs and failed)


def main(argv: list[str]) -> None:
    """Trains, or evaluates a workdir."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    absl_logging.set_verbosity(absl_logging.WARNING)
    for logger in ("absl", "asyncio", "gcsfs"):
        logging.getLogger(logger).addFilter(_SaidOnce())
    command_line.log_our_lines()
    # Imported here: worker processes that draw faces import this module, too.
    import jax

    from hyperface_jax import hosts

    try:
        hosts.start(
            _COORDINATOR.value,
            _PROCESSES.value,
            _PROCESS_ID.value,
            wait_seconds=_WAIT.value,
            silence_seconds=_SILENCE.value,
        )
        if not hosts.is_first():
            logging.getLogger("hyperface_jax").setLevel(logging.WARNING)
        _dispatch()
        hosts.finish()
    except (ValueError, OSError) as error:
        if _DEBUG.value:
            _raise(error)
        hosts.fail(one_line(error))
    except KeyboardInterrupt:
        hosts.fail("stopped; the same command goes on from the last checkpoint")
    except Exception as error:
        text = str(error).splitlines()[0] if str(error) else ""
        if isinstance(error, jax.errors.JaxRuntimeError) and _LOST.search(text):
            hosts.fail(f"error: another host is gone: {text}")
        _raise(error)


def _raise(error: Exception) -> NoReturn:
    """With the traceback; on several hosts at once, or they wait for each other."""
    import jax

    from hyperface_jax import hosts

    if jax.distributed.is_initialized():
        hosts.crash()
    raise error


def _dispatch() -> None:
    from hyperface_jax import config as config_lib
    from hyperface_jax.planning import plan, rehearsal
    from hyperface_jax.training import experiment, initial, run_evaluation, train

    workdir, topology = _WORKDIR.value or "", _TOPOLOGY.value
    if topology and _MODE.value != "plan":
        raise ValueError(f"--topology is {topology!r}, expected --mode plan with it")
    if _MODE.value != "plan" and not workdir:
        raise ValueError("--workdir is missing, expected a folder for the run")
    if _MODE.value == "eval":
        run_evaluation.evaluate_workdir(_CONFIG.value, workdir)
        return
    if _CONFIG.value is None:
        raise ValueError("--config is missing, expected a file such as configs/sfr.py")
    config_lib.validate(_CONFIG.value)
    if _MODE.value == "plan":
        devices = rehearsal.devices_of(topology) if topology else None
        config, _ = initial.begin(_CONFIG.value)
        run = experiment.create_experiment(config, devices)
        changed = config_flags.get_override_values(flags.FLAGS["config"])
        sys.stdout.write(plan.report(run, sorted(changed)) + "\n")
        if topology:
            sys.stdout.write(rehearsal.report(run, topology) + "\n")
    else:
        train.train_and_evaluate(_CONFIG.value, workdir)


def one_line(error: BaseException) -> str:
    """What a user reads of an error."""
    message = " ".join(_essence(error).split())
    return f"error: {message or type(error).__name__}"


def fail(error: BaseException) -> NoReturn:
    """One line, exit status 1."""
    sys.exit(one_line(error))


def _essence(error: BaseException) -> str:
    """What a user needs of a message; ml_collections packs tracebacks into its own."""
    # str() of a KeyError is a repr; its first argument is the text.
    first = isinstance(error, KeyError) and error.args
    text = (str(error.args[0]) if first else command_line.text_of(error)).strip()
    if len(text) > 1 and text[0] == text[-1] == "'":
        text = text[1:-1]
    missing = re.search(r"No such file or directory: '([^']+\.py)", text)
    if missing:
        return f"--config {missing[1]}: no such file, expected one as configs/sfr.py"
    word = re.fullmatch(r"[\"']*([\w.]+)[\"']*", text)
    if word and isinstance(error, KeyError | AttributeError):
        return f"unknown config key {word[1]} (hyperface_jax/config/keys.py has all)"
    if "Traceback" in text:
        return text.splitlines()[-1].partition(": ")[2]
    if "Did you mean" in text and "command line flag" not in text:
        # A repr of a repr by now.
        text = text.replace("\\n", " ").replace("\\", "").replace("'", "")
        return f"unknown config key {text}"
    if "invalid literal for int" in text:
        text = text.replace("invalid literal for int() with base 10", "found") + (
            ", expected a whole number"
        )
    if "could not convert string to float" in text:
        text = text.replace("could not convert string to float", "found") + (
            ", expected a number"
        )
    if "command line flag 'config." in text:
        text += " (keys of a config need --config FILE, too)"
    return text


def parse_flags(argv: list[str]) -> list[str]:
    """Turns a bad flag or an unknown config key into one line."""
    try:
        return flags.FLAGS(argv)
    except (
        flags.Error,
        AttributeError,
        KeyError,
        ValueError,
        TypeError,
        OSError,
    ) as error:
        fail(error)


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
