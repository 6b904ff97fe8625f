"""What the command lines besides `main` have in common."""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """A wrong argument ends with one line, as every other wrong input."""

    def error(self, message: str) -> NoReturn:
        """Says where to find the arguments instead of printing them all."""
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")


def log_our_lines() -> None:
    """Shows what we say, and of the libraries only warnings."""
    # Libraries that were imported may have set up logging in their own way.
    logging.basicConfig(level=logging.WARNING, format="%(message)s", force=True)
    logging.getLogger("hyperface_jax").setLevel(logging.INFO)


def text_of(error: BaseException) -> str:
    """What went wrong, in words; of the system's errors the file, without a number."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror[0].lower()}{error.strerror[1:]}"
    return str(error)


def run(
    work: Callable[[argparse.Namespace], Any],
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None,
) -> None:
    """Parses and works; a wrong input ends with one line and exit status 1.

    Args:
      work: takes the parsed arguments.
      parser: of the command line.
      argv: arguments, or None for those of the process.
    """
    log_our_lines()
    try:
        work(parser.parse_args(argv))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {' '.join(text_of(error).split())}")
    except KeyboardInterrupt:
        sys.exit("stopped")
