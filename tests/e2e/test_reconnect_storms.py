"""A hundred agents and three schedulers lose their server together, ten times: nothing is left over on it.

Clients are the real connections with what each kind keeps open: an agent two connections, two subscriptions and no
consumer; a scheduler its watches, one consumer each.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from shared.connection import ConnectionSettings
from shared.keys import Keys
from shared.nats_store import NatsStore, connect
from shared.nats_streams import ensure_streams
from shared.store import Listing, WatchItem
from tests.support.nats_servers import NatsServer

AGENTS, SCHEDULERS, STORMS = 100, 3, 10
KEYS = Keys("storm")
BUCKETS = (KEYS.pipelines, KEYS.operator, KEYS.reports, KEYS.control, KEYS.hosts)
OBJECTS = (KEYS.configs, KEYS.bundles)
WATCHES = SCHEDULERS * (len(BUCKETS) + len(OBJECTS))
SETTLE_S = 90.0


class Listener:
    """One watch, and how often it was listed."""

    def __init__(self, items: AsyncIterator[WatchItem]) -> None:
        self._items = items
        self.lists = 0

    async def run(self) -> None:
        async for item in self._items:
            self.lists += isinstance(item, Listing)


def consumers(server: NatsServer) -> int:
    """How many there are on the server, whoever made them."""
    return int(server.monitor("/jsz")["consumers"])


def connections(server: NatsServer) -> int:
    return int(server.monitor("/varz")["connections"])


async def until(server: NatsServer, what: str, wanted: int, look: Callable[[NatsServer], int]) -> None:
    """Wait until a figure of the server is exactly this, and stays so when it is looked at again."""
    deadline, seen = time.monotonic() + SETTLE_S, -1
    while True:
        with contextlib.suppress(OSError, RuntimeError):
            before, seen = seen, await asyncio.to_thread(look, server)
            if before == seen == wanted:
                return
        assert time.monotonic() < deadline, f"{what}: {seen}, not {wanted}"
        await asyncio.sleep(0.5)


@pytest.mark.timeout(600)
def test_ten_reconnect_storms_leave_no_consumer_and_no_connection_behind(tmp_path: Path) -> None:
    async def body(server: NatsServer, stores: list[NatsStore]) -> None:
        settings = ConnectionSettings(servers=(server.url,))

        async def dial(name: str) -> NatsStore:
            store = await connect(settings, name=name, wait=True)
            stores.append(store)
            return store

        await ensure_streams(await dial("first"), KEYS)
        for number in range(AGENTS):
            await dial(f"agent-{number} heartbeat")
            store = await dial(f"agent-{number}")
            await store.subscribe(KEYS.live_assign(f"h{number}"))
            await store.subscribe(KEYS.logs(f"h{number}"))
        listeners: list[Listener] = []
        for number in range(SCHEDULERS):
            store = await dial(f"scheduler-{number}")
            listeners += [Listener(store.watch(bucket)) for bucket in BUCKETS]
            listeners += [Listener(store.watch_objects(bucket)) for bucket in OBJECTS]
        async with asyncio.TaskGroup() as group:
            watching = [group.create_task(listener.run(), name="watch") for listener in listeners]
            await until(server, "consumers", WATCHES, consumers)
            await until(server, "connections", len(stores), connections)

            for storm in range(STORMS):
                before = [listener.lists for listener in listeners]
                match storm % 3:
                    case 0:  # it crashes: ephemeral consumers in memory are gone with it
                        await asyncio.to_thread(server.restart, crash=True)
                    case 1:  # clients leave: the server must forget what they had
                        await asyncio.gather(*(store.change_server() for store in stores))
                    case _:  # it freezes: clients give it up and come again, and it thaws with both
                        server.pause()
                        await asyncio.sleep(4)  # longer than any client waits for a pong
                        server.resume()
                await until(server, f"consumers after storm {storm}", WATCHES, consumers)
                await until(server, f"connections after storm {storm}", len(stores), connections)
                deadline = time.monotonic() + SETTLE_S
                while any(now.lists <= was for now, was in zip(listeners, before, strict=True)):
                    assert time.monotonic() < deadline, "every watch has listed anew"
                    await asyncio.sleep(0.2)
            for task in watching:
                task.cancel()

    async def whole() -> None:
        stores: list[NatsStore] = []
        with NatsServer(tmp_path / "nats") as server:
            try:
                await body(server, stores)
            finally:
                await asyncio.gather(*(store.close() for store in stores))
            await until(server, "connections at the end", 0, connections)
            await until(server, "consumers at the end", 0, consumers)

    asyncio.run(whole())
