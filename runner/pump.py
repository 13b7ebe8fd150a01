"""Bento's output: from its pipe into a log file with rotation, or to our own standard output.

Nothing is dropped because somebody reads slowly: the pump stops reading, the pipe fills, and Bento waits, as it would
without us. Output is only lost, and counted, where it cannot go anywhere: a full disk, or a standard output that nobody
reads any more. A pipeline must not stand still because its log has no room.
"""

from __future__ import annotations

import os
import select
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class Sink(Protocol):
        """Where output goes."""

        @property
        def pending(self) -> int:
            """Bytes taken and not yet written."""

        @property
        def waits_for(self) -> int | None:
            """A descriptor on which to wait until more can be written, or None."""

        def take(self, data: bytes) -> None:
            """Accept output; it is written now or by `flush`."""

        def flush(self) -> None:
            """Write what can be written without blocking."""


BUFFER_BYTES_MAX = 64 * 1024  # as much as the pipe itself holds
WORDS_BYTES_MAX, WORDS_LINES_MAX = 4096, 20


class LogFile:
    """A file that becomes `<path>.1` when it would grow beyond `bytes_max`; an older `.1` is replaced. Lines stay whole
    unless one is longer than a whole read. Written to at once: a regular file never makes us wait for a reader."""

    def __init__(self, path: str, bytes_max: int) -> None:
        self._path = path
        self._bytes_max = bytes_max
        self._lost = 0
        self._fd, self._size = -1, 0
        os.makedirs(os.path.dirname(path), exist_ok=True)  # noqa: PTH103, PTH120 - pathlib is 10 ms of imports
        self._open()

    pending = 0
    waits_for = None

    def flush(self) -> None:
        pass

    def take(self, data: bytes) -> None:
        if self._lost:
            data = b"[runner] %d bytes of output were lost: no space for the log\n" % self._lost + data
        try:
            if self._size and self._size + len(data) > self._bytes_max:
                cut = data.rfind(b"\n", 0, max(0, self._bytes_max - self._size)) + 1
                self._write(data[:cut])
                data = data[cut:]
                self._rotate()
            self._write(data)
            self._lost = 0
        except OSError:
            self._lost += len(data)

    def _open(self) -> None:
        self._fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._size = os.fstat(self._fd).st_size

    def _rotate(self) -> None:
        os.replace(self._path, f"{self._path}.1")  # noqa: PTH105
        os.close(self._fd)
        self._open()

    def _write(self, data: bytes) -> None:
        while data:
            written = os.write(self._fd, data)
            self._size += written
            data = data[written:]


class Stream:
    """A descriptor that somebody reads, as our standard output in a container.

    It is not made non-blocking: that would be so for everybody who shares it. Instead at most PIPE_BUF bytes are
    written at a time and only when poll(2) says so, which does not block for pipes, files and sockets.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._buffer = b""
        self._gone = False
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)

    @property
    def pending(self) -> int:
        return len(self._buffer)

    @property
    def waits_for(self) -> int | None:
        return self._fd if self._buffer else None

    def take(self, data: bytes) -> None:
        if not self._gone:
            self._buffer += data
            self.flush()

    def flush(self) -> None:
        while self._buffer and self._poll.poll(0):
            try:
                written = os.write(self._fd, self._buffer[: select.PIPE_BUF])
            except BlockingIOError:
                return
            except OSError:
                # Nobody reads any more, and nobody ever will: a pipe has no new reader.
                self._gone, self._buffer = True, b""
                return
            self._buffer = self._buffer[written:]


class Pump:
    """Moves output of one child after the other from their pipes to the sink, and remembers the last of it."""

    def __init__(self, sink: Sink) -> None:
        self.sink = sink
        self._source = -1
        self._tail = b""

    def attach(self, read: int) -> None:
        """The next child's pipe. Its last words begin anew."""
        self.detach()
        self._source, self._tail = read, b""

    def detach(self) -> None:
        if self._source >= 0:
            os.close(self._source)
        self._source = -1

    @property
    def reads(self) -> int | None:
        """The descriptor to wait on for output, or None: there is none, or the buffer is full."""
        return self._source if self._source >= 0 and self.sink.pending < BUFFER_BYTES_MAX else None

    def pump(self) -> bool:
        """Take one portion. False: nothing there now."""
        try:
            data = os.read(self._source, BUFFER_BYTES_MAX)
        except BlockingIOError:
            return False
        if not data:
            self.detach()
            return False
        self._tail = (self._tail + data)[-WORDS_BYTES_MAX:]
        self.sink.take(data)
        return True

    def say(self, line: str) -> None:
        """A line of the runner's own."""
        self.sink.take(f"[runner] {line}\n".encode("utf-8", "replace"))

    def drain(self, seconds: float) -> None:
        """Take and write everything that is there, waiting at most so long for a slow reader.

        Called after the child has ended: what it wrote is in the pipe by then, so an empty pipe is the end, even if a
        grandchild still holds the other end open.
        """
        deadline = time.monotonic() + seconds
        while True:
            while self.reads is not None and self.pump():
                pass
            self.sink.flush()
            fd = self.sink.waits_for
            left = deadline - time.monotonic()
            if fd is None or left <= 0:
                return
            poll = select.poll()
            poll.register(fd, select.POLLOUT)
            poll.poll(left * 1000)

    def words(self) -> tuple[str, ...]:
        """The last lines of this child's output."""
        lines = self._tail.decode("utf-8", "replace").splitlines()
        if len(self._tail) == WORDS_BYTES_MAX and len(lines) > 1:
            lines = lines[1:]  # cut in the middle
        return tuple(lines[-WORDS_LINES_MAX:])
