"""The processes of a simulated cluster: real schedulers and real agents, each a task that can be killed at any moment.

A node composes what its `service` composes, without threads. What outlives a process stands outside of it: the machine
with its executions (`Machine`), the network (`Network`), the store.

Killing closes the connections first, then cancels: nothing that runs on the way out can reach the store or is believed,
while what was already sent still arrives, as with SIGKILL.
"""

from __future__ import annotations

import asyncio
import random
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from agent.bundles import Bundles
from agent.core.diff import Bundle
from agent.core.restarts import Memory
from agent.core.session import LeaseFile
from agent.heartbeat import HostFacts
from agent.loop import Agent, Host
from agent.metrics import AgentMetrics
from agent.state import Saved
from agent.state import in_place as offload_in_place
from scheduler.core.view import Policy
from scheduler.elector import Elector, Leadership
from scheduler.leader import Ports
from scheduler.loop import Loop
from scheduler.metrics import SchedulerMetrics
from scheduler.pulse import Pulse
from shared.bundle import read_bundle
from shared.configuration import Configuration
from shared.errors import ExecutorUnavailable
from tests.sim.recording import RecordingServer
from tests.sim.users import LINT_WORD
from tests.sim.virtual_time import VirtualClock, VirtualLoop
from tests.support.fake_executor import FakeExecutor, FakeHost, Ledger
from tests.support.fake_store import FakeStore, Faults

LEASE_S = 8.0
DYING_S = 30.0  # a killed process that is not gone after so long hangs in its own clean-up: a defect


class Network:
    """Connections by node and role. Faults belong to the place in the network, so that a restart does not heal them."""

    def __init__(self, server: RecordingServer) -> None:
        self._server = server
        self.faults: dict[str, Faults] = {}
        self.open: dict[str, FakeStore] = {}

    def connect(self, node: str, role: str) -> FakeStore:
        name = f"{node}.{role}"
        connection = self._server.connect(name)
        connection.faults = self.faults.setdefault(name, Faults())
        self.open[name] = connection
        return connection

    async def disconnect(self, node: str) -> None:
        for name in [name for name in self.open if name.split(".")[0] == node]:
            await self.open.pop(name).close()


class Node:
    """One process. `died` is told of a process that ended by itself, which none ever should."""

    def __init__(self, name: str, network: Network, died: Callable[[str, str], None]) -> None:
        self.name = name
        self._network = network
        self._died = died
        self._task: asyncio.Task[None] | None = None
        self._killed = False

    @property
    def up(self) -> bool:
        return self._task is not None

    async def work(self) -> None:
        """The process itself."""
        raise NotImplementedError

    def start(self) -> None:
        assert self._task is None, f"{self.name} runs already"
        self._killed = False
        self._task = asyncio.get_running_loop().create_task(self._run(), name=self.name)

    async def kill(self) -> None:
        """SIGKILL; returns when nothing of it runs any more."""
        if self._task is None:
            return
        task, self._task, self._killed = self._task, None, True
        await self._network.disconnect(self.name)
        task.cancel()
        _, hanging = await asyncio.wait([task], timeout=DYING_S)
        if hanging:
            self._died(self.name, f"still busy {DYING_S:g} s after it was cancelled")

    async def _run(self) -> None:
        try:
            await self.work()
        except asyncio.CancelledError:
            pass
        except BaseException:  # noqa: BLE001 - whatever ends a process is a finding
            if not self._killed:
                self._died(self.name, traceback.format_exc())
        else:
            if not self._killed:
                self._died(self.name, "ended by itself")


class Lint:
    """The simulated `bento lint`: takes a moment, refuses what holds a certain word."""

    def __init__(self, clock: VirtualClock) -> None:
        self._clock = clock

    async def lint(
        self, configurations: Sequence[Configuration], env: Mapping[str, str] | None = None
    ) -> list[tuple[str, ...]]:
        await self._clock.sleep(0.05)
        return [("line 1: no such component",) if LINT_WORD in found.text else () for found in configurations]


class SchedulerNode(Node):
    """One scheduler instance."""

    def __init__(self, name: str, network: Network, died: Callable[[str, str], None], *, loop: VirtualLoop, seed: int):
        super().__init__(name, network, died)
        self._clock = VirtualClock(loop)
        self._loop = loop
        self._chance = random.Random(f"tokens/{seed}/{name}")
        self.elector: Elector | None = None
        self.scheduler: Loop | None = None

    def _token(self) -> str:
        return f"{self._chance.getrandbits(64):016x}"

    async def work(self) -> None:
        keys, clock = self._network._server.keys, self._clock
        policy = Policy()
        thresholds = (policy.silent_shareable_s, policy.silent_exclusive_s)

        # What crosses threads in the service goes through the event loop here, in order and a little later.
        def soon(call: Callable[..., object], *arguments: Any) -> None:
            self._loop.call_soon(call, *arguments)

        pulse = Pulse(
            self._network.connect(self.name, "pulse"),
            keys,
            clock,
            thresholds_s=thresholds,
            on_hosts=lambda hosts: soon(scheduler.hosts, hosts),
        )
        ports = Ports(
            store=self._network.connect(self.name, "main"),
            keys=keys,
            clock=clock,
            policy=policy,
            metrics=SchedulerMetrics(CollectorRegistry()),
            worker=_in_place,
            token=self._token,
            refresh=lambda: soon(pulse.refresh),
            strict=True,
        )

        def leading(leadership: Leadership) -> None:
            pulse.lead(leadership.store_id, leadership.term)
            soon(scheduler.lead, leadership)

        def lost(term: int, _why: str) -> None:
            pulse.stop_leading()
            soon(scheduler.lose, term)

        scheduler = self.scheduler = Loop(
            ports,
            Lint(clock),
            on_deposed=lambda term: soon(elector.resign, term),
            on_vacant=lambda: soon(elector.look),
        )
        elector = self.elector = Elector(
            self._network.connect(self.name, "elector"),
            keys,
            clock,
            holder=self._token(),
            name=self.name,
            token=self._token,
            eligible=lambda: scheduler.eligible,
            on_leading=leading,
            on_lost=lost,
        )
        async with asyncio.TaskGroup() as group:
            group.create_task(pulse.run(), name=f"{self.name} pulse")
            group.create_task(elector.run(), name=f"{self.name} elector")
            group.create_task(scheduler.run(), name=f"{self.name} loop")

    async def stop(self) -> None:
        """SIGTERM: leaves the lease, then ends."""
        self._killed = True  # an elector that has left may end the group
        if self.elector is not None and self.up:
            leaving = self.elector.leave()
            try:
                async with asyncio.timeout(10):
                    await leaving
            except TimeoutError:
                self._died(self.name, "did not leave within 10 s of SIGTERM")
        await self.kill()


async def _in_place(work: Callable[[], Any], /) -> Any:
    return work()


class Machine:
    """A host as hardware: what its agent finds again after a restart, and what a reboot or a replacement takes away."""

    def __init__(self, name: str, *, loop: VirtualLoop, ledger: Ledger, zone: str, driver: str) -> None:
        self.name, self.zone, self.driver = name, zone, driver
        self.clock = VirtualClock(loop)
        self.engine = FakeHost(name, clock=self.clock, ledger=ledger, now=loop.time, boot=f"{name}-boot-1")
        self.lease: LeaseFile | None = None  # tmpfs
        self.disk = Disk(f"{name}-agent-1")
        self.on = True
        self.boots: list[tuple[float, str]] = [(0.0, self.engine.boot)]  # (when, boot id)
        self._disks = 1

    def power_off(self) -> None:
        self.on = False
        self.engine.hanging = False  # what it was asked while it hung and had not begun is gone with it
        self.engine.power_off(forget=self.driver == "process")
        self.lease = None

    def power_on(self) -> None:
        self.on = True
        self.engine.boot = f"{self.name}-boot-{len(self.boots) + 1}"
        self.boots.append((self.clock.monotonic(), self.engine.boot))
        self.clock.reboot()

    def replace_disk(self) -> None:
        """Another machine under the same name."""
        self._disks += 1
        self.engine.power_off(forget=True)
        self.disk = Disk(f"{self.name}-agent-{self._disks}")


class Disk:
    """A state directory: `agent.state.Durable`, and the bundles."""

    def __init__(self, agent: str) -> None:
        self._saved = Saved(agent=agent)
        self._memories: Mapping[str, Memory] = {}
        self.bundles: dict[str, bytes] = {}

    def load(self) -> Saved:
        return self._saved

    def save(self, saved: Saved) -> None:
        self._saved = saved

    def load_memories(self) -> Mapping[str, Memory]:
        return self._memories

    def save_memories(self, memories: Mapping[str, Memory]) -> None:
        self._memories = memories


class _Lease:
    """`agent.lease.LeaseKeeper` on a machine."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def read(self) -> LeaseFile | None:
        return self._machine.lease

    def write(self, lease: LeaseFile) -> None:
        self._machine.lease = lease


class _Bundles(Bundles):
    """The bundle directory on a simulated disk. What is deleted from `have` is deleted from the disk."""

    def __init__(self, disk: Disk, **options: Any) -> None:
        super().__init__(directory=Path("/nowhere/bundles"), **options)
        self._disk = disk

    def _keep(self, digest: str, data: bytes) -> Bundle:
        runtime, _ = read_bundle(data, digest)
        self._disk.bundles[digest] = data
        return Bundle(f"/nowhere/bundles/{digest}", runtime)

    def _scan(self) -> Mapping[str, Bundle]:
        return {digest: self._keep(digest, data) for digest, data in sorted(self._disk.bundles.items())}

    async def drop_unused(self, *arguments: Any) -> None:
        await super().drop_unused(*arguments)
        for digest in sorted(self._disk.bundles.keys() - self.have.keys()):
            del self._disk.bundles[digest]


class _Engine(FakeExecutor):
    """The engine of a machine. One that is switched off does not answer."""

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine.engine, driver=machine.driver)
        self._machine = machine
        self._boot = machine.engine.boot

    async def _call(self, takes_s: float, effect: Callable[[], Any]) -> Any:
        def still_here() -> Any:
            if not self._machine.on or self._machine.engine.boot != self._boot:
                raise ExecutorUnavailable("the machine was switched off")
            return effect()

        return await super()._call(takes_s, still_here)


class AgentNode(Node):
    """The agent of one machine."""

    def __init__(self, machine: Machine, network: Network, died: Callable[[str, str], None]) -> None:
        super().__init__(machine.name, network, died)
        self.machine = machine
        self.agent: Agent | None = None

    async def work(self) -> None:
        machine, keys = self.machine, self._network._server.keys
        store = self._network.connect(self.name, "main")
        host = Host(
            name=machine.name,
            boot=machine.engine.boot,
            lease_s=LEASE_S,
            facts=HostFacts(
                cpu=64.0, memory_bytes=64 * 2**30, labels={"zone": machine.zone}, volumes=(), software="sim"
            ),
            keys=keys,
            store=store,
            heart_store=self._network.connect(self.name, "heart"),
            executor=_Engine(machine),
            bundles=_Bundles(machine.disk, store=store, bucket=keys.bundles, offload=offload_in_place),
            durable=machine.disk,
            lease=_Lease(machine),
            clock=machine.clock,
            offload=offload_in_place,
        )
        self.agent = Agent(host, AgentMetrics(machine.clock.monotonic))
        await self.agent.run()
