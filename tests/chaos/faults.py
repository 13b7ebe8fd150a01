"""What a planned fault does to the cluster while it lasts."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field

from shared.documents import Lease, decode
from shared.errors import StoreError
from shared.keys import LEASE
from tests.chaos.site import Site
from tests.chaos.timetable import Kind, Planned
from tests.chaos.users import REPLICAS_MAX, Users
from tests.support.netns import SUBNET

READY_S = 60.0  # a nats-server is back and up to date within this, on a busy machine
EDITABLE = ("edited", "sharded", "copy-a")  # never the others: whoever stands still there, does so because of a fault

Case = Callable[[str], AbstractAsyncContextManager[None]]


@dataclass
class Faults:
    """Carries out faults. `suffering`: who cannot be a victim now."""

    site: Site
    users: Users
    suffering: set[str] = field(default_factory=set)
    servers: asyncio.Lock = field(default_factory=asyncio.Lock)  # the next one only when the last one is up to date

    @asynccontextmanager
    async def during(self, planned: Planned) -> AsyncIterator[str]:
        """The fault is there while this is entered; yields its victim."""
        case, victims = self._cases()[planned.kind]
        async with self.servers if victims is _SERVERS else contextlib.nullcontext():
            victim = await self._victim(planned, victims)
            names = {victim}
            if planned.kind is Kind.SCHEDULERS_CUT:
                names = set(self.site.schedulers)
            elif victims == _NAMES:
                names = set()  # its name is claimed; to itself nothing is done
            self.suffering |= names
            try:
                async with case(victim):
                    yield victim
            finally:
                self.suffering -= names

    def _cases(self) -> Mapping[Kind, tuple[Case, str]]:
        return {
            Kind.AGENT_KILL: (self._agent_kill, _HOSTS),
            Kind.AGENT_FREEZE: (self._agent_freeze, _HOSTS),
            Kind.AGENT_RESTART: (self._agent_restart, _HOSTS),
            Kind.AGENT_CUT: (self._agent_cut, _HOSTS),
            Kind.HOST_NEW: (self._host_new, _HOSTS),
            Kind.HOST_KILL: (self._host_kill, _HOSTS),
            Kind.HOST_CUT: (self._host_cut, _HOSTS),
            Kind.HOST_UNPLUG: (self._unplug, _HOSTS),
            Kind.STRANGER: (self._stranger, _NAMES),
            Kind.LEASE_GONE: (self._lease_gone, _HOSTS),
            Kind.RUNNER_KILL: (self._runner_kill, _HOSTS),
            Kind.LEADER_KILL: (self._scheduler_kill, _LEADER),
            Kind.LEADER_FREEZE: (self._scheduler_freeze, _LEADER),
            Kind.LEADER_STOP: (self._scheduler_stop, _LEADER),
            Kind.LEADER_CUT: (self._scheduler_cut, _LEADER),
            Kind.STANDBY_KILL: (self._scheduler_kill, _STANDBYS),
            Kind.SCHEDULERS_CUT: (self._schedulers_cut, _STANDBYS),
            Kind.SERVER_KILL: (self._server_kill, _SERVERS),
            Kind.SERVER_FREEZE: (self._server_freeze, _SERVERS),
            Kind.SERVER_ALONE: (self._server_alone, _SERVERS),
            Kind.SERVER_UNPLUG: (self._server_unplug, _SERVERS),
            Kind.STREAM_LEADER_KILL: (self._stream_leader_kill, _SERVERS),
            Kind.QUORUM: (self._quorum, _SERVERS),
            Kind.OUTAGE: (self._outage, _SERVERS),
            Kind.DRAIN: (self._drain, _HOSTS),
            Kind.EDIT_VERSION: (self._edit_version, _PIPELINES),
            Kind.EDIT_PAUSE: (self._edit_pause, _PIPELINES),
            Kind.EDIT_DRAFT: (self._edit_draft, _PIPELINES),
            Kind.EDIT_SCALE: (self._edit_scale, _SHAREABLE),
            Kind.EDIT_RESTART: (self._edit_restart, _PIPELINES),
        }

    # --- victims

    async def _victim(self, planned: Planned, victims: str) -> str:
        match victims:
            case "hosts":
                names: Sequence[str] = sorted(self.site.hosts)
            case "names":
                names = sorted(self.site.hosts)
                return names[int(planned.pick * len(names))]
            case "servers":
                names = sorted(self.site.server_nodes)
            case "shareable":
                return "copy-a"
            case "pipelines":
                return EDITABLE[int(planned.pick * len(EDITABLE))]
            case _:
                names = sorted(self.site.schedulers)
                leader = await self._leader()
                if victims == _LEADER and leader in names and leader not in self.suffering:
                    return leader
                names = [name for name in names if name != leader]
        free = [name for name in names if name not in self.suffering]
        assert free, f"the timetable leaves somebody free for '{planned.kind}'"
        return free[int(planned.pick * len(free))]

    async def _leader(self) -> str:
        try:
            entry = await self.users.store.read(self.users.keys.control, LEASE)
        except StoreError:
            return ""  # then anybody will do
        return decode(Lease, entry.value).name if entry.value is not None else ""

    # --- hosts

    @asynccontextmanager
    async def _agent_kill(self, host: str) -> AsyncIterator[None]:
        self.site.hosts[host].agent.kill()
        yield
        self.site.hosts[host].agent.start()

    @asynccontextmanager
    async def _agent_freeze(self, host: str) -> AsyncIterator[None]:
        self.site.hosts[host].agent.freeze()
        yield
        self.site.hosts[host].agent.thaw()

    @asynccontextmanager
    async def _agent_restart(self, host: str) -> AsyncIterator[None]:
        await self.site.hosts[host].agent.stop()
        yield
        self.site.hosts[host].agent.start()

    @asynccontextmanager
    async def _agent_cut(self, host: str) -> AsyncIterator[None]:
        node = self.site.hosts[host].node
        node.drop(*(server.address for server in self.site.server_nodes.values()))
        yield
        node.undrop()

    @asynccontextmanager
    async def _host_kill(self, host: str) -> AsyncIterator[None]:
        self.site.hosts[host].agent.kill()
        self.site.hosts[host].kill_executions()
        yield
        self.site.hosts[host].agent.start()

    @asynccontextmanager
    async def _host_new(self, host: str) -> AsyncIterator[None]:
        """Another machine takes its name, and an operator says that the old one is dead."""
        old = self.site.hosts[host]
        old.agent.kill()
        old.kill_executions()
        yield
        for directory in (old.state_dir, old.run_dir):
            shutil.rmtree(directory)
        old.agent.start()
        await self.users.confirm_dead(host)

    @asynccontextmanager
    async def _host_cut(self, host: str) -> AsyncIterator[None]:
        node = self.site.hosts[host].node
        node.drop(f"{SUBNET}.0/24")
        yield
        node.undrop()

    @asynccontextmanager
    async def _unplug(self, host: str) -> AsyncIterator[None]:
        node = self.site.hosts[host].node
        node.unplug()
        yield
        node.plug()

    @asynccontextmanager
    async def _stranger(self, host: str) -> AsyncIterator[None]:
        stranger = self.site.claim(host)
        yield
        stranger.agent.kill()
        stranger.kill_executions()
        for directory in (stranger.state_dir, stranger.run_dir):  # its runners may still be dying
            shutil.rmtree(directory, ignore_errors=True)

    @asynccontextmanager
    async def _lease_gone(self, host: str) -> AsyncIterator[None]:
        (self.site.hosts[host].run_dir / "lease" / "lease").unlink(missing_ok=True)
        yield

    @asynccontextmanager
    async def _runner_kill(self, host: str) -> AsyncIterator[None]:
        for pid in self.site.hosts[host].runners()[-1:]:  # the youngest: another one each time
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        yield

    @asynccontextmanager
    async def _drain(self, host: str) -> AsyncIterator[None]:
        await self.users.drain(host, True)
        yield
        await self.users.drain(host, False)

    # --- schedulers

    @asynccontextmanager
    async def _scheduler_kill(self, name: str) -> AsyncIterator[None]:
        self.site.schedulers[name].kill()
        yield
        self.site.schedulers[name].start()

    @asynccontextmanager
    async def _scheduler_freeze(self, name: str) -> AsyncIterator[None]:
        self.site.schedulers[name].freeze()
        yield
        self.site.schedulers[name].thaw()

    @asynccontextmanager
    async def _scheduler_stop(self, name: str) -> AsyncIterator[None]:
        await self.site.schedulers[name].stop()
        yield
        self.site.schedulers[name].start()

    @asynccontextmanager
    async def _scheduler_cut(self, name: str) -> AsyncIterator[None]:
        node = self.site.schedulers[name].node
        node.drop(f"{SUBNET}.0/24")
        yield
        node.undrop()

    @asynccontextmanager
    async def _schedulers_cut(self, _: str) -> AsyncIterator[None]:
        for scheduler in self.site.schedulers.values():
            scheduler.node.drop(f"{SUBNET}.0/24")
        yield
        for scheduler in self.site.schedulers.values():
            scheduler.node.undrop()

    # --- servers

    @asynccontextmanager
    async def _server_kill(self, name: str) -> AsyncIterator[None]:
        self.site.server(name).kill()
        yield
        await self._up_to_date(name)

    @asynccontextmanager
    async def _server_freeze(self, name: str) -> AsyncIterator[None]:
        self.site.server(name).pause()
        yield
        self.site.server(name).resume()
        await self._up_to_date(name)

    @asynccontextmanager
    async def _server_alone(self, name: str) -> AsyncIterator[None]:
        node = self.site.server_nodes[name]
        node.drop(*(other.address for other in self.site.server_nodes.values() if other is not node))
        yield
        node.undrop()
        await self._up_to_date(name)

    @asynccontextmanager
    async def _server_unplug(self, name: str) -> AsyncIterator[None]:
        self.site.server_nodes[name].unplug()
        yield
        self.site.server_nodes[name].plug()
        await self._up_to_date(name)

    @asynccontextmanager
    async def _stream_leader_kill(self, name: str) -> AsyncIterator[None]:
        found = await asyncio.to_thread(self.site.nats.stream_leader, f"KV_{self.users.keys.hosts}")
        name = name if found is None else found.name
        self.site.server(name).kill()
        yield
        await self._up_to_date(name)

    @asynccontextmanager
    async def _quorum(self, spared: str) -> AsyncIterator[None]:
        async with self._servers_killed([name for name in sorted(self.site.server_nodes) if name != spared]):
            yield

    @asynccontextmanager
    async def _outage(self, _: str) -> AsyncIterator[None]:
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

    # --- users

    @asynccontextmanager
    async def _edit_version(self, pipeline: str) -> AsyncIterator[None]:
        await self.users.new_version(pipeline)
        yield

    @asynccontextmanager
    async def _edit_pause(self, pipeline: str) -> AsyncIterator[None]:
        await self.users.edit(pipeline, status="paused")
        yield
        await self.users.edit(pipeline, status="published")

    @asynccontextmanager
    async def _edit_draft(self, pipeline: str) -> AsyncIterator[None]:
        await self.users.edit(pipeline, status="draft")
        yield
        await self.users.edit(pipeline, status="published")

    @asynccontextmanager
    async def _edit_scale(self, pipeline: str) -> AsyncIterator[None]:
        replicas = self.users.records[pipeline]["replicas"] % REPLICAS_MAX + 1
        await self.users.edit(pipeline, replicas=replicas)
        yield

    @asynccontextmanager
    async def _edit_restart(self, pipeline: str) -> AsyncIterator[None]:
        await self.users.restart(pipeline)
        yield


_HOSTS, _NAMES, _LEADER, _STANDBYS = "hosts", "names", "leader", "standbys"
_SERVERS, _PIPELINES, _SHAREABLE = "servers", "pipelines", "shareable"
