"""A TCP relay in front of a server, to cut off one client and nobody else."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager
from urllib.parse import urlsplit

from tests.support.processes import free_port

CHUNK = 64 * 1024


class Relay:
    """Listens on a port of its own, in the loop of the test. `cut` ends every connection and takes no new ones."""

    def __init__(self, url: str) -> None:
        found = urlsplit(url)
        assert found.hostname is not None
        assert found.port is not None
        self._target = found.hostname, found.port
        self._port = free_port()
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self._port}"

    async def mend(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self._port)

    def cut(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in self._open:
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection(*self._target)
        except OSError:
            writer.close()
            return
        await asyncio.gather(self._pass(reader, back), self._pass(there, writer))

    async def _pass(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        self._open.add(target)
        try:
            with contextlib.suppress(OSError):
                while data := await source.read(CHUNK):
                    target.write(data)
                    await target.drain()
        finally:
            self._open.discard(target)
            target.close()


@asynccontextmanager
async def relay_to(url: str) -> AsyncIterator[Relay]:
    """A relay that is open; cut at the end."""
    relay = Relay(url)
    await relay.mend()
    try:
        yield relay
    finally:
        relay.cut()


class Way:
    """A relay for tests without a loop; its own runs in a thread."""

    def __init__(self, url: str) -> None:
        self._relay = Relay(url)
        begun: Future[asyncio.AbstractEventLoop] = Future()
        self._over = asyncio.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._live(begun)), name="relay", daemon=True)
        self._thread.start()
        self._loop = begun.result()

    @property
    def url(self) -> str:
        return self._relay.url

    def mend(self) -> None:
        asyncio.run_coroutine_threadsafe(self._relay.mend(), self._loop).result()

    def cut(self) -> None:
        asyncio.run_coroutine_threadsafe(self._cut(), self._loop).result()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()

    async def _live(self, begun: Future[asyncio.AbstractEventLoop]) -> None:
        begun.set_result(asyncio.get_running_loop())
        await self._over.wait()
        self._relay.cut()

    async def _cut(self) -> None:
        self._relay.cut()


@contextmanager
def way_to(url: str) -> Iterator[Way]:
    """A way to a server that is open; cut at the end."""
    way = Way(url)
    way.mend()
    try:
        yield way
    finally:
        way.close()
