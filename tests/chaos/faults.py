"""Carries out what is planned: who suffers it, and what happens to it while the fault lasts."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from shared.documents import Lease, decode
from shared.errors import StoreError
from shared.keys import LEASE
from tests.chaos.host_faults import HostFaults
from tests.chaos.service_faults import SchedulerFaults, ServerFaults
from tests.chaos.site import Site
from tests.chaos.timetable import Kind, Planned
from tests.chaos.users import REPLICAS_MAX, Users

EDITABLE = ("edited", "sharded", "copy-a")  # never the others: whoever stands still there, does so because of a fault
SCALABLE = ("sharded", "copy-a")

Case = Callable[[str], AbstractAsyncContextManager[None]]


class Faults:
    """Carries out faults. `suffering`: who cannot be a victim now."""

    def __init__(self, site: Site, users: Users) -> None:
        self.site = site
        self.users = users
        self.hosts = HostFaults(site, users)
        self.schedulers = SchedulerFaults(site)
        self.servers = ServerFaults(site)
        self.suffering: set[str] = set()
        self._one_server = asyncio.Lock()  # the next one only when the last one is up to date

    @asynccontextmanager
    async def during(self, planned: Planned) -> AsyncIterator[str]:
        """The fault is there while this is entered; yields its victim."""
        case, victims = self._cases()[planned.kind]
        async with self._one_server if victims is _SERVERS else contextlib.nullcontext():
            victim = await self._victim(planned, victims)
            names = {victim}
            names = self._sufferers(planned.kind, victim)
            self.suffering |= names
            try:
                async with case(victim):
                    yield victim
            finally:
                self.suffering -= names

    def _sufferers(self, kind: Kind, victim: str) -> set[str]:
        match kind:
            case Kind.SCHEDULERS_CUT | Kind.SCHEDULERS_KILL:
                return set(self.site.schedulers)
            case Kind.HOSTS_CUT:
                return set(self.site.hosts) - {victim}
            case Kind.STRANGER:
                return set()  # a name is claimed; to its host nothing is done
            case _:
                return {victim}

    def _cases(self) -> Mapping[Kind, tuple[Case, str]]:
        return {
            Kind.AGENT_KILL: (self.hosts.agent_kill, _HOSTS),
            Kind.AGENT_FREEZE: (self.hosts.agent_freeze, _HOSTS),
            Kind.AGENT_RESTART: (self.hosts.agent_restart, _HOSTS),
            Kind.AGENT_CUT: (self.hosts.agent_cut, _HOSTS),
            Kind.HOST_NEW: (self.hosts.host_new, _HOSTS),
            Kind.STATE_LOST: (self.hosts.state_lost, _HOSTS),
            Kind.HOST_KILL: (self.hosts.host_kill, _HOSTS),
            Kind.HOST_REBOOT: (self.hosts.host_reboot, _HOSTS),
            Kind.HOST_DEAD: (self.hosts.host_dead, _HOSTS),
            Kind.HOST_CUT: (self.hosts.host_cut, _HOSTS),
            Kind.HOST_UNPLUG: (self.hosts.unplug, _HOSTS),
            Kind.HOST_DEAF: (self.hosts.host_deaf, _HOSTS),
            Kind.HOST_MUTE: (self.hosts.host_mute, _HOSTS),
            Kind.HOST_LOSSY: (self.hosts.host_lossy, _HOSTS),
            Kind.HOSTS_CUT: (self.hosts.hosts_cut, _HOSTS),
            Kind.STRANGER: (self.hosts.stranger, _NAMES),
            Kind.LEASE_GONE: (self.hosts.lease_gone, _HOSTS),
            Kind.GRANTS_GONE: (self.hosts.grants_gone, _HOSTS),
            Kind.RUNNER_KILL: (self.hosts.runner_kill, _HOSTS),
            Kind.RUNNERS_FREEZE: (self.hosts.runners_freeze, _HOSTS),
            Kind.BENTO_KILL: (self.hosts.bento_kill, _HOSTS),
            Kind.BENTOS_FREEZE: (self.hosts.bentos_freeze, _HOSTS),
            Kind.LEADER_KILL: (self.schedulers.kill, _LEADER),
            Kind.LEADER_FREEZE: (self.schedulers.freeze, _LEADER),
            Kind.LEADER_STOP: (self.schedulers.stop, _LEADER),
            Kind.LEADER_CUT: (self.schedulers.cut, _LEADER),
            Kind.LEADER_UNPLUG: (self.schedulers.unplug, _LEADER),
            Kind.STANDBY_KILL: (self.schedulers.kill, _STANDBYS),
            Kind.SCHEDULERS_CUT: (self.schedulers.all_cut, _STANDBYS),
            Kind.SCHEDULERS_KILL: (self.schedulers.all_kill, _STANDBYS),
            Kind.SERVER_KILL: (self.servers.kill, _SERVERS),
            Kind.SERVER_FREEZE: (self.servers.freeze, _SERVERS),
            Kind.SERVER_ALONE: (self.servers.alone, _SERVERS),
            Kind.SERVER_UNPLUG: (self.servers.unplug, _SERVERS),
            Kind.STREAM_LEADER_KILL: (self.servers.stream_leader_kill, _SERVERS),
            Kind.STREAM_LEADER_FREEZE: (self.servers.stream_leader_freeze, _SERVERS),
            Kind.QUORUM: (self.servers.quorum, _SERVERS),
            Kind.OUTAGE: (self.servers.outage, _SERVERS),
            Kind.DRAIN: (self._drain, _HOSTS),
            Kind.EDIT_VERSION: (self._edit_version, _PIPELINES),
            Kind.EDIT_PAUSE: (self._edit_pause, _PIPELINES),
            Kind.EDIT_DRAFT: (self._edit_draft, _PIPELINES),
            Kind.EDIT_DELETE: (self._edit_delete, _PIPELINES),
            Kind.EDIT_SCALE: (self._edit_scale, _SCALABLE),
            Kind.EDIT_PARTITION: (self._edit_partition, _EXCLUSIVE),
            Kind.EDIT_RESTART: (self._edit_restart, _PIPELINES),
        }

    # --- victims

    async def _victim(self, planned: Planned, victims: str) -> str:
        match victims:
            case "hosts":
                names: Sequence[str] = sorted(self.site.hosts)
                if planned.kind is not Kind.HOSTS_CUT:  # whose victim is the host that is spared
                    busy = [name for name in names if self.site.hosts[name].runners() and name not in self.suffering]
                    names = busy or names
            case "names":
                names = sorted(self.site.hosts)
                return names[int(planned.pick * len(names))]
            case "servers":
                names = sorted(self.site.server_nodes)
            case "exclusive":
                return "edited"
            case "scalable":
                return SCALABLE[int(planned.pick * len(SCALABLE))]
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

    # --- users

    @asynccontextmanager
    async def _drain(self, host: str) -> AsyncIterator[None]:
        await self.users.drain(host, True)
        yield
        await self.users.drain(host, False)

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
    async def _edit_delete(self, pipeline: str) -> AsyncIterator[None]:
        await self.users.delete(pipeline)
        yield
        await self.users.edit(pipeline, status="published")

    @asynccontextmanager
    async def _edit_partition(self, pipeline: str) -> AsyncIterator[None]:
        await self.users.edit(pipeline, on_partition="continue")
        yield
        await self.users.edit(pipeline, on_partition="stop")

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
_SERVERS, _PIPELINES, _EXCLUSIVE, _SCALABLE = "servers", "pipelines", "exclusive", "scalable"
