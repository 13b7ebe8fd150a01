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
from typing import Any

from prometheus_client import CollectorRegistry

from agent.heartbeat import HostFacts
from agent.host import Host
from agent.loop import Agent
from agent.metrics import AgentMetrics
from agent.state import in_place as offload_in_place
from scheduler.core.view import Policy
from scheduler.elector import Elector
from scheduler.loop import Loop
from scheduler.metrics import SchedulerMetrics
from scheduler.ports import Ports
from scheduler.pulse import Pulse
from scheduler.takeover import Leadership
from shared.configuration import Configuration
from tests.sim.machines import Machine, SimBundles, SimEngine, SimGrants, SimLease
from tests.sim.recording import RecordingServer
from tests.sim.users import LINT_WORD
from tests.sim.virtual_time import Process, VirtualClock, VirtualLoop
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
    """One process. `died` is told of a process that ended by itself, which none ever should.

    `processes` are its threads, each with an event loop of its own, that can be frozen together or one by one.
    """

    def __init__(
        self, name: str, network: Network, died: Callable[[str, str], None], loop: VirtualLoop, threads: Sequence[str]
    ) -> None:
        self.name = name
        self.threads = {thread: Process(f"{name} {thread}", loop) for thread in threads}
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
        context = next(iter(self.threads.values())).context
        self._task = asyncio.get_running_loop().create_task(self._run(), name=self.name, context=context)

    def freeze(self, *threads: str) -> None:
        """SIGSTOP, or a stall of some of its threads."""
        for thread in threads or self.threads:
            self.threads[thread].freeze()

    def thaw(self, *, timers_last: bool = False) -> None:
        """SIGCONT."""
        for thread in self.threads.values():
            if thread.frozen:
                thread.thaw(timers_last=timers_last)

    async def kill(self) -> None:
        """SIGKILL; returns when nothing of it runs any more."""
        if self._task is None:
            return
        task, self._task, self._killed = self._task, None, True
        self.cut()
        await self._network.disconnect(self.name)
        self.thaw()
        task.cancel()
        _, hanging = await asyncio.wait([task], timeout=DYING_S)
        if hanging:
            self._died(self.name, f"still busy {DYING_S:g} s after it was cancelled")

    def cut(self) -> None:
        """Take away what a dead process does not have, but connections."""

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

    def __init__(
        self,
        name: str,
        network: Network,
        died: Callable[[str, str], None],
        *,
        loop: VirtualLoop,
        seed: int,
        policy: Callable[[], Policy],
        raw_rate: float = 1.0,
    ) -> None:
        super().__init__(name, network, died, loop, ("main", "watch"))
        self._clock = VirtualClock(loop, raw_rate=raw_rate)
        self._policy = policy
        self._loop = loop
        self._chance = random.Random(f"tokens/{seed}/{name}")
        self.elector: Elector | None = None
        self.scheduler: Loop | None = None

    def _token(self) -> str:
        return f"{self._chance.getrandbits(64):016x}"

    async def work(self) -> None:
        keys, clock = self._network._server.keys, self._clock
        policy = self._policy()
        thresholds = (policy.silent_shareable_s, policy.silent_exclusive_s)

        # What crosses threads in the service goes through the event loop here, in order and a little later.
        def soon(thread: str, call: Callable[..., object], *arguments: Any) -> None:
            self._loop.call_soon(call, *arguments, context=self.threads[thread].context)

        pulse = Pulse(
            self._network.connect(self.name, "pulse"),
            keys,
            clock,
            thresholds_s=thresholds,
            on_hosts=lambda hosts: soon("main", scheduler.hosts, hosts),
        )
        ports = Ports(
            store=self._network.connect(self.name, "main"),
            keys=keys,
            clock=clock,
            policy=policy,
            metrics=SchedulerMetrics(CollectorRegistry()),
            worker=_in_place,
            token=self._token,
            refresh=lambda: soon("watch", pulse.refresh),
            strict=True,
        )

        def leading(leadership: Leadership) -> None:
            pulse.lead(leadership.store_id, leadership.term)
            soon("main", scheduler.lead, leadership)

        def lost(term: int, _why: str) -> None:
            pulse.stop_leading()
            soon("main", scheduler.lose, term)

        scheduler = self.scheduler = Loop(
            ports,
            Lint(clock),
            on_deposed=lambda term: soon("watch", elector.resign, term),
            on_vacant=lambda: soon("watch", elector.look),
            on_hindered=lambda term: soon("watch", elector.give_up, term),
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
            watch = self.threads["watch"].context
            group.create_task(pulse.run(), name=f"{self.name} pulse", context=watch)
            group.create_task(elector.run(), name=f"{self.name} elector", context=watch)
            group.create_task(scheduler.run(), name=f"{self.name} loop")

    async def stop(self) -> None:
        """SIGTERM: leaves the lease, then ends."""
        if any(thread.frozen for thread in self.threads.values()):
            await self.kill()  # it cannot even hear it, and is killed in the end
            return
        self._killed = True  # an elector that has left may end the group
        if self.elector is not None and self.up:
            leaving = self.elector.leave()
            try:
                async with asyncio.timeout(10):
                    await leaving
            except TimeoutError:
                if not any(thread.frozen for thread in self.threads.values()):
                    self._died(self.name, "did not leave within 10 s of SIGTERM")
        await self.kill()


async def _in_place(work: Callable[[], Any], /) -> Any:
    return work()


class AgentNode(Node):
    """The agent of one machine."""

    def __init__(self, machine: Machine, network: Network, died: Callable[[str, str], None], loop: VirtualLoop) -> None:
        super().__init__(machine.name, network, died, loop, ("main",))
        self.machine = machine
        self.agent: Agent | None = None
        self._engine: SimEngine | None = None

    def cut(self) -> None:
        if self._engine is not None:
            self._engine.dead = True

    async def work(self) -> None:
        machine, keys = self.machine, self._network._server.keys
        store = self._network.connect(self.name, "main")
        self._engine = SimEngine(machine)
        host = Host(
            name=machine.host,
            boot=machine.engine.boot,
            lease_s=LEASE_S,
            facts=HostFacts(
                cpu=64.0, memory_bytes=64 * 2**30, labels={"zone": machine.zone}, volumes=(), software="sim"
            ),
            keys=keys,
            store=store,
            heart_store=self._network.connect(self.name, "heart"),
            executor=self._engine,
            bundles=SimBundles(machine.disk, store=store, bucket=keys.bundles, offload=offload_in_place),
            durable=machine.disk,
            lease=SimLease(machine.engine.tmpfs),
            grants=SimGrants(machine.engine.tmpfs),
            clock=machine.clock,
            offload=offload_in_place,
        )
        self.agent = Agent(host, AgentMetrics(machine.clock.monotonic))
        await self.agent.run()
