"""What can be done to schedulers and nats-servers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from shared.keys import Keys
from tests.chaos.site import CLUSTER, Site
from tests.support.netns import SUBNET

HOSTS_STREAM = f"KV_{Keys(CLUSTER).hosts}"
READY_S = 60.0  # a nats-server is back and up to date within this, on a busy machine


@dataclass
class SchedulerFaults:
    """Each is there while it is entered."""

    site: Site

    @asynccontextmanager
    async def kill(self, name: str) -> AsyncIterator[None]:
        self.site.schedulers[name].kill()
        yield
        self.site.schedulers[name].start()

    @asynccontextmanager
    async def freeze(self, name: str) -> AsyncIterator[None]:
        self.site.schedulers[name].freeze()
        yield
        self.site.schedulers[name].thaw()

    @asynccontextmanager
    async def stop(self, name: str) -> AsyncIterator[None]:
        await self.site.schedulers[name].stop()
        yield
        self.site.schedulers[name].start()

    @asynccontextmanager
    async def cut(self, name: str) -> AsyncIterator[None]:
        node = self.site.schedulers[name].node
        node.drop(f"{SUBNET}.0/24")
        yield
        node.undrop()

    @asynccontextmanager
    async def unplug(self, name: str) -> AsyncIterator[None]:
        node = self.site.schedulers[name].node
        node.unplug()
        yield
        node.plug()

    @asynccontextmanager
    async def all_kill(self, _: str) -> AsyncIterator[None]:
        for scheduler in self.site.schedulers.values():
            scheduler.kill()
        yield
        for scheduler in self.site.schedulers.values():
            scheduler.start()

    @asynccontextmanager
    async def all_cut(self, _: str) -> AsyncIterator[None]:
        for scheduler in self.site.schedulers.values():
            scheduler.node.drop(f"{SUBNET}.0/24")
        yield
        for scheduler in self.site.schedulers.values():
            scheduler.node.undrop()


@dataclass
class ServerFaults:
    """Each is there while it is entered, and over only when the server is up to date again."""

    site: Site

    @asynccontextmanager
    async def kill(self, name: str) -> AsyncIterator[None]:
        self.site.server(name).kill()
        yield
        await self._up_to_date(name)

    @asynccontextmanager
    async def freeze(self, name: str) -> AsyncIterator[None]:
        self.site.server(name).pause()
        yield
        self.site.server(name).resume()
        await self._up_to_date(name)

    @asynccontextmanager
    async def alone(self, name: str) -> AsyncIterator[None]:
        node = self.site.server_nodes[name]
        node.drop(*(other.address for other in self.site.server_nodes.values() if other is not node))
        yield
        node.undrop()
        await self._up_to_date(name)

    @asynccontextmanager
    async def unplug(self, name: str) -> AsyncIterator[None]:
        self.site.server_nodes[name].unplug()
        yield
        self.site.server_nodes[name].plug()
        await self._up_to_date(name)

    @asynccontextmanager
    async def stream_leader_kill(self, name: str) -> AsyncIterator[None]:
        async with self.kill(await self._stream_leader(name)):
            yield

    @asynccontextmanager
    async def stream_leader_freeze(self, name: str) -> AsyncIterator[None]:
        async with self.freeze(await self._stream_leader(name)):
            yield

    async def _stream_leader(self, otherwise: str) -> str:
        found = await asyncio.to_thread(self.site.nats.stream_leader, HOSTS_STREAM)
        return otherwise if found is None else found.name

    @asynccontextmanager
    async def quorum(self, spared: str) -> AsyncIterator[None]:
        async with self._servers_killed([name for name in sorted(self.site.server_nodes) if name != spared]):
            yield

    @asynccontextmanager
    async def outage(self, _: str) -> AsyncIterator[None]:
        async with self._servers_killed(sorted(self.site.server_nodes)):
            yield

    @asynccontextmanager
    async def _servers_killed(self, names: Sequence[str]) -> AsyncIterator[None]:
        for name in names:
            self.site.server(name).kill()
        yield
        for name in names:
            self.site.server(name).launch()
        for name in names:
            await self._up_to_date(name)

    async def _up_to_date(self, name: str) -> None:
        server = self.site.server(name)
        if not server.running:
            server.launch()
        await asyncio.to_thread(server.wait_ready, READY_S)
