"""A TCP relay in front of a server, to cut off one client and nobody else."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager
from functools import partial
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
        self._accepting: asyncio.Task[None] | None = None
        self._serving: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self._port}"

    async def mend(self) -> None:
        if self._accepting is not None:
            await asyncio.wait({self._accepting})
        # Not `asyncio.start_server`: one that is closed while somebody connects loses that connection's socket.
        listener = socket.create_server(("127.0.0.1", self._port))
        listener.setblocking(False)
        self._accepting = asyncio.create_task(self._accept(listener), name="accept")

    def cut(self) -> None:
        if self._accepting is not None:
            self._accepting.cancel()
        for task in self._serving:
            task.cancel()

    async def _accept(self, listener: socket.socket) -> None:
        with listener:
            while True:
                try:
                    client, _ = listener.accept()
                except BlockingIOError:
                    await _readable(listener)
                    continue
                task = asyncio.create_task(self._serve(client), name="serve")
                self._serving.add(task)
                task.add_done_callback(self._serving.discard)
                task.add_done_callback(partial(_close, client))  # also if it never began

    async def _serve(self, client: socket.socket) -> None:
        ends: list[asyncio.StreamWriter] = []
        try:
            reader, writer = await asyncio.open_connection(sock=client)
            ends.append(writer)
            there, back = await asyncio.open_connection(*self._target)
            ends.append(back)
            await asyncio.gather(self._pass(reader, back), self._pass(there, writer))
        except OSError:
            pass  # it is gone, or the server is
        finally:
            for end in ends:
                end.transport.abort()

    async def _pass(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while data := await source.read(CHUNK):
            target.write(data)
            await target.drain()
        target.close()


async def _readable(one: socket.socket) -> None:
    """Not `sock_accept`: cancelled in the wrong moment, it loses what it has accepted."""
    loop, readable = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(one, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(one)


def _close(one: socket.socket, _: asyncio.Task[None]) -> None:
    one.close()


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
