"""A sick Docker engine: a relay in front of a real one's socket, which hangs, is slow, or fails half of its calls.

Only the agent is behind it; the test looks at the engine itself. Every call is seen whole, so that what an engine does
late, or does and then denies, is done late and denied here.
"""

from __future__ import annotations

import contextlib
import http.client
import random
import re
import shutil
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self
from urllib.parse import urlsplit

CHUNK = 64 * 1024
_VERSION = re.compile(r"v\d+\.\d+")
_DENIED = b'{"message":"this engine is not well"}'
_FAILURE = b"HTTP/1.1 500 Internal Server Error\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (
    len(_DENIED),
    _DENIED,
)


@dataclass(frozen=True)
class _Sickness:
    hangs: bool = False
    delay_s: float = 0.0  # half of it before a call has its effect, half before it is answered
    fails: bool = False


class SickEngine:
    """Listens on a socket of its own, in threads, and is well until told otherwise. May be told from any thread.

    `calls` counts what it was asked, by method and path without names.
    """

    def __init__(self, engine: Path, *, seed: int = 1) -> None:
        self.calls: Counter[str] = Counter()
        self._engine = engine
        self._dice = random.Random(seed)
        self._changed = threading.Condition()
        self._sickness = _Sickness()
        self._closed = False
        self._open: set[socket.socket] = set()
        self._directory = Path(tempfile.mkdtemp(prefix="shoal-sick-"))  # a socket's path has 107 characters at most
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self._directory / "docker.sock"))
        self._listener.listen(128)
        threading.Thread(target=self._accept, name="sick engine", daemon=True).start()

    @property
    def url(self) -> str:
        return f"unix://{self._directory / 'docker.sock'}"

    def get_well(self) -> None:
        """From now on calls pass, those that it was asked while it hung first."""
        self._become(_Sickness())

    def hang(self) -> None:
        """Accept and take everything in, answer nothing."""
        self._become(_Sickness(hangs=True))

    def slow_down(self, delay_s: float) -> None:
        """Take so long for each call."""
        self._become(_Sickness(delay_s=delay_s))

    def fail_half(self) -> None:
        """Answer 500 to half of all calls; half of those have their effect all the same."""
        self._become(_Sickness(fails=True))

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            left = list(self._open)
        for one in (self._listener, *left):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _become(self, sickness: _Sickness) -> None:
        with self._changed:
            self._sickness = sickness
            self._changed.notify_all()

    # --- one thread for each connection and direction

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), self._kept(client), self._kept(self._dial()) as engine:
            threading.Thread(target=self._answer, args=(engine, client), daemon=True).start()
            requests = client.makefile("rb")
            while request := _read_request(requests):
                self._treat(request, client, engine)

    def _treat(self, request: bytes, client: socket.socket, engine: socket.socket) -> None:
        self.calls[_kind(request)] += 1
        with self._changed:
            fails = self._sickness.fails and self._dice.random() < 0.5
            denies = fails and self._dice.random() < 0.5
        self._wait()
        if denies and not request.startswith(b"GET"):
            with self._kept(self._dial()) as other:
                other.sendall(request)
                response = http.client.HTTPResponse(other)
                response.begin()
                response.read()
        if fails:
            client.sendall(_FAILURE)
        else:
            engine.sendall(request)

    def _answer(self, engine: socket.socket, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := engine.recv(CHUNK):
                self._wait()
                client.sendall(data)
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)

    def _wait(self) -> None:
        """As long as it hangs, or half of the time that it takes for a call; cut short when it gets well."""
        began = time.monotonic()
        with self._changed:
            while not self._closed:
                left_s = began + self._sickness.delay_s / 2 - time.monotonic()
                if not self._sickness.hangs and left_s <= 0:
                    return
                self._changed.wait(None if self._sickness.hangs else left_s)
        raise ConnectionAbortedError

    def _dial(self) -> socket.socket:
        engine = socket.socket(socket.AF_UNIX)
        engine.connect(str(self._engine))
        return engine

    @contextlib.contextmanager
    def _kept(self, one: socket.socket) -> Iterator[socket.socket]:
        with self._changed:
            self._open.add(one)
        try:
            yield one
        finally:
            with self._changed:
                self._open.discard(one)
            one.close()


def _read_request(stream: BinaryIO) -> bytes:
    """One whole request, b"" at the end."""
    head = b""
    while line := stream.readline():
        head += line
        if line == b"\r\n":
            break
    fields = {name.lower(): value.strip() for name, _, value in (f.partition(b":") for f in head.split(b"\r\n")[1:])}
    if fields.get(b"transfer-encoding") != b"chunked":
        return head + stream.read(int(fields.get(b"content-length", b"0")))
    body = b""
    while size := stream.readline():
        body += size + stream.read(int(size, 16) + 2)
        if int(size, 16) == 0:
            break
    return head + body


def _kind(request: bytes) -> str:
    """Method and path of a request, such as `POST /containers/*/start`."""
    method, target = request.partition(b"\r\n")[0].decode().split()[:2]
    parts = urlsplit(target).path.split("/")[1:]
    known = [part if part.isalpha() or part == "_ping" else "*" for part in parts if not _VERSION.fullmatch(part)]
    return f"{method} /{'/'.join(known)}"
