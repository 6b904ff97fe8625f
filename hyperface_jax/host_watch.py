"""Ends a host soon after another one is gone, whatever the accelerator is waiting for.

A collective waits for every host, some back ends for ever. So each host keeps a line
(one TCP connection) to host 0: a host that is killed closes it at once, one that is
frozen stops sending, and the rest then stop with one line that names it.
"""

import contextlib
import os
import socket
import sys
import threading
from collections.abc import Callable
from typing import TextIO

EXIT_STATUS = 3
_BEAT, _DONE, _LOST = "beat", "done", "lost"

End = Callable[[str], None]


def end_process(message: str) -> None:
    """Says why and ends at once: other threads may be inside a dead collective."""
    sys.stderr.write(f"error: {message}\n")
    sys.stderr.flush()
    os._exit(EXIT_STATUS)


class Line:
    """One end of a connection: beats, and notices when the other side does not.

    Args:
      connection: a connected socket.
      lines: its reading end, from which a greeting may have been read.
      name: of the other side, for messages.
      silence: seconds without a sign of life after which it counts as lost.
      lost: is called once, from a thread, with the reason.
    """

    def __init__(
        self,
        connection: socket.socket,
        lines: TextIO,
        name: str,
        *,
        silence: float,
        lost: Callable[["Line", str], None],
    ):
        self.name, self.done = name, False
        self._connection, self._lines = connection, lines
        self._silence, self._lost = silence, lost
        self._closing = threading.Event()
        connection.settimeout(silence)
        for work in (self._beat, self._listen):
            threading.Thread(target=work, daemon=True).start()

    def say(self, text: str) -> None:
        """Sends one line; a broken connection is the listener's to notice."""
        with contextlib.suppress(OSError):
            self._connection.sendall(f"{text}\n".encode())

    def finish(self) -> None:
        """Says that the end of this side is no loss any more."""
        self._closing.set()
        self.say(_DONE)

    def _beat(self) -> None:
        while not self._closing.wait(self._silence / 10):
            self.say(_BEAT)

    def _listen(self) -> None:
        reason = "has ended before the run was finished (its own log says why)"
        try:
            for line in self._lines:
                word, _, rest = line.strip().partition(" ")
                if word == _DONE:
                    self.done = True
                if word == _LOST:
                    self._lost(self, rest)
        except TimeoutError:
            reason = f"has given no sign of life for {self._silence:g} s"
        except (OSError, ValueError):
            pass  # reset, or not our language
        if not (self.done or self._closing.is_set()):
            self._lost(self, f"{self.name} {reason}")


class Server:
    """Host 0's side.

    Args:
      others: number of the other hosts; nobody else is let in after them.
      token: what they must say first, so that a stranger on the port is no host.
      silence: see `Line`.
      end: is called with the reason when a host is lost.
    """

    def __init__(
        self, others: int, token: str, *, silence: float, end: End = end_process
    ):
        self._others, self._token = others, token
        self._silence, self._end = silence, end
        self._lines: list[Line] = []
        self._lock = threading.Lock()
        if socket.has_dualstack_ipv6():
            self._socket = socket.create_server(
                ("", 0), family=socket.AF_INET6, dualstack_ipv6=True
            )
        else:
            self._socket = socket.create_server(("", 0))
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def port(self) -> int:
        """Where to connect to."""
        return self._socket.getsockname()[1]

    def finish(self) -> None:
        """The run is done here."""
        for line in list(self._lines):
            line.finish()
        self._socket.close()

    def _accept(self) -> None:
        while len(self._lines) < self._others:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(
                target=self._greet, args=(connection,), daemon=True
            ).start()

    def _greet(self, connection: socket.socket) -> None:
        connection.settimeout(10)
        try:
            lines = connection.makefile("r")
            token, _, name = lines.readline().strip().partition(" ")
        except (OSError, ValueError):
            token, name = "", ""
        if token != self._token:
            connection.close()
            return
        line = Line(connection, lines, name, silence=self._silence, lost=self._on_loss)
        with self._lock:
            self._lines.append(line)
            if len(self._lines) == self._others:
                # Wakes the thread that still waits for somebody.
                with contextlib.suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)

    def _on_loss(self, line: Line, reason: str) -> None:
        for other in list(self._lines):
            if other is not line:
                other.say(f"{_LOST} {reason}")
        self._end(reason)


class Client:
    """The side of every other host.

    Args:
      address: of host 0.
      token: of its server.
      name: of this host.
      silence: see `Line`.
      end: is called with the reason when a host is lost.

    Raises:
      OSError: host 0 cannot be reached.
    """

    def __init__(
        self,
        address: tuple[str, int],
        token: str,
        name: str,
        *,
        silence: float,
        end: End = end_process,
    ):
        connection = socket.create_connection(address, timeout=10)
        connection.sendall(f"{token} {name}\n".encode())
        self._line = Line(
            connection,
            connection.makefile("r"),
            "host 0",
            silence=silence,
            lost=lambda _, reason: end(reason),
        )

    def finish(self) -> None:
        """The run is done here."""
        self._line.finish()


class Deadline:
    """Ends the process unless the `with` block is left in time.

    Args:
      seconds: how long.
      message: what to say.
      end: takes the message.
    """

    def __init__(self, seconds: float, message: str, end: End = end_process):
        self._timer = threading.Timer(seconds, end, [message])
        self._timer.daemon = True

    def __enter__(self) -> "Deadline":
        self._timer.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._timer.cancel()
