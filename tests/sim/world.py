"""One simulated cluster and its life: faults and edits at any moment, then peace, convergence and silence.

    begin ── faults and edits ── heal, minds made up ── converge within a bound ── nothing but heartbeats for 120 s

Hooks for what is to come: `_apply_connection` is where a partition would cut, `faults.KINDS` where it would be drawn.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque

from scheduler.core.view import Policy
from shared.clock import Clock
from shared.errors import CannotStart
from shared.keys import Keys
from tests.sim import final
from tests.sim.faults import FOREVER, Fault, Schedule, Shape
from tests.sim.machines import Machine
from tests.sim.nodes import AgentNode, Network, SchedulerNode
from tests.sim.recording import RecordingServer
from tests.sim.users import ZONES, Users
from tests.sim.virtual_time import VirtualClock, VirtualLoop
from tests.support.fake_executor import Behaviour, Ledger

CONVERGE_S = 90.0  # 12 s of silence, 15 s of grace, 30 s until a refused start is tried again, and the work itself
SETTLE_S = 20.0  # of peace after convergence before the silence is measured: histories are appended, files tidied
QUIET_S = 120.0  # two full passes and a list of every watch


class World:
    """The cluster. `violations` are what went wrong on the way; `story` what happened, for people."""

    def __init__(self, loop: VirtualLoop, seed: int) -> None:
        self.loop, self.seed = loop, seed
        self.keys = Keys()
        self.schedule = Schedule(seed)
        self.shape: Shape = self.schedule.shape()
        self.faults: list[Fault] = self.schedule.draw(self.shape)
        self.server = RecordingServer(seed=seed, keys=self.keys)
        self.server.create_streams(self.keys)
        self.network = Network(self.server)
        self.ledger = Ledger(loop.time)
        self.chance = random.Random(f"world/{seed}")
        self.clock: Clock = VirtualClock(loop)
        self.violations: list[str] = []
        self.story: deque[str] = deque(maxlen=2000)
        self.machines = {name: self._machine(name) for name in self.shape.hosts}
        self.agents = {
            name: AgentNode(machine, self.network, self._died, loop) for name, machine in self.machines.items()
        }
        self.policy = Policy()  # of all schedulers; to be changed before the run begins
        self.schedulers = {name: self._scheduler(name) for name in self.shape.schedulers}
        user = self.server.connect("users")
        self.users = Users(user, self.keys, VirtualClock(loop), seed=seed, hosts=self.shape.hosts)
        self.users.story = self.tell
        self.lost: set[str] = set()  # machines that never come back
        self.healed_at = self.converged_at = 0.0
        self._active: list[Fault] = []

    def tell(self, line: str) -> None:
        self.story.append(f"{self.loop.time():9.3f} {line}")

    def violate(self, checker: str, words: str) -> None:
        self.violations.append(f"[{checker}] {words}")

    async def live(self) -> None:
        """The whole run."""
        for scheduler in self.schedulers.values():
            scheduler.start()
        for agent in self.agents.values():
            agent.start()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._people(), name="people")
            for fault in self.faults:
                group.create_task(self._suffer(fault), name=f"fault {fault.kind}")
        self.healed_at = self.loop.time()
        self.tell("-- the faults are over --")
        await self.users.settle()
        if not self.violations and await self._converge():
            await self._be_quiet()
        for node in (*self.schedulers.values(), *self.agents.values()):
            await node.kill()

    # --- phases

    async def _people(self) -> None:
        await self.clock.sleep(self.chance.uniform(0, 3))
        await self.users.begin()
        while self.loop.time() < self.shape.faults_s:
            await self.clock.sleep(self.chance.expovariate(1 / self.shape.edit_gap_s))
            await self.users.act()

    async def _suffer(self, fault: Fault) -> None:
        await self.clock.sleep(fault.at)
        self.tell(f"** {fault}")
        self._active.append(fault)
        await self._begin(fault)
        if fault.until >= FOREVER:
            return
        await self.clock.sleep(max(0.0, min(fault.until, self.shape.faults_s) - self.loop.time()))
        self._active.remove(fault)
        await self._end(fault)
        if fault.until > fault.at:
            self.tell(f"** over: {fault}")

    async def _converge(self) -> bool:
        end = self.loop.time() + CONVERGE_S
        while complaints := final.complaints(self):
            if self.loop.time() >= end:
                for complaint in complaints:
                    self.violate("convergence", f"after {CONVERGE_S:g} s of peace: {complaint}")
                return False
            await self.clock.sleep(1.0)
        self.converged_at = self.loop.time()
        self.tell("-- converged --")
        return True

    async def _be_quiet(self) -> None:
        await self.clock.sleep(SETTLE_S)
        begun = self.loop.time()
        self.tell("-- silence --")
        await self.clock.sleep(QUIET_S)
        for complaint in final.complaints(self):
            self.violate("convergence", f"did not last: {complaint}")
        for noise in final.noise(self, begun):
            self.violate("quiet", noise)

    # --- faults

    async def _begin(self, fault: Fault) -> None:
        match fault.kind:
            case "scheduler crash":
                await self.schedulers[fault.target].kill()
            case "scheduler stop":
                await self.schedulers[fault.target].stop()
            case "agent crash":
                await self.agents[fault.target].kill()
            case "host crash" | "host replaced":
                machine = self.machines[fault.target]
                machine.power_off()
                await self.agents[fault.target].kill()
                if fault.kind == "host replaced":
                    machine.replace_disk()
                if fault.until >= FOREVER:
                    self.lost.add(fault.target)
            case "execution crash":
                alive = self.machines[fault.target].engine.alive()
                if alive:
                    self.machines[fault.target].engine.crash(self.chance.choice(alive))
            case "watch breaks":
                if fault.target in self.network.open:
                    self.network.open[fault.target].stall_watches()
            case _:
                pass  # a setting of an engine or a connection
        self._apply(fault)

    async def _end(self, fault: Fault) -> None:
        self._apply(fault)
        match fault.kind:
            case "scheduler crash" | "scheduler stop":
                if not self.schedulers[fault.target].up and not self._suffers(fault.target, "scheduler"):
                    self.schedulers[fault.target].start()
            case "agent crash":
                self.agents[fault.target].start()
            case "host crash" | "host replaced":
                self.machines[fault.target].power_on()
                self.agents[fault.target].start()
            case _:
                pass

    def _suffers(self, target: str, prefix: str) -> bool:
        return any(fault.target == target and fault.kind.startswith(prefix) for fault in self._active)

    def _apply(self, fault: Fault) -> None:
        """Bring the settings of what a fault concerns up to the faults that are active now."""
        if fault.target in self.machines:
            self._apply_engine(fault.target)
        names = [fault.target] if "." in fault.target else sorted(self.network.faults)
        for name in names:
            self._apply_connection(name)

    def _apply_engine(self, host: str) -> None:
        engine = self.machines[host].engine
        kinds = {found.kind: found for found in self._active if found.target == host}
        slow = kinds["slow engine"].amount if "slow engine" in kinds else 0.0
        engine.behaviour = Behaviour(
            call_s=0.005 + slow / 3, start_s=0.08 + slow, ready_s=0.3 + slow, drain_s=0.05 + slow
        )
        engine.unavailable = "the engine fails" if "failing engine" in kinds else ""
        if engine.hanging != ("hanging engine" in kinds):
            engine.hanging = "hanging engine" in kinds
        pipelines = sorted(self.users.kinds)
        engine.crash_after_s = dict.fromkeys(pipelines, 1.7) if "crash loop" in kinds else {}
        refusal = CannotStart("image", "the image cannot be pulled")
        engine.cannot_start = dict.fromkeys(pipelines, refusal) if "cannot start" in kinds else {}

    def _apply_connection(self, name: str) -> None:
        faults = self.network.faults[name]
        active = {found.kind: found.amount for found in self._active if found.target in ("", name)}
        faults.down = "connection down" in active or "store down" in active
        faults.held = "connection frozen" in active or "store frozen" in active
        faults.lose_requests = active.get("lost requests", 0.0)
        faults.lose_replies = active.get("lost acknowledgements", 0.0)
        faults.straggle = active.get("late writes", 0.0)
        faults.watch_delay_s = active.get("late watch", 0.0)
        faults.direct_lag_s = active.get("lagging replica", 0.0)

    # --- parts

    def _machine(self, name: str) -> Machine:
        zone, driver = self.chance.choice(ZONES), self.chance.choice(("docker", "process"))
        return Machine(name, loop=self.loop, ledger=self.ledger, zone=zone, driver=driver)

    def _scheduler(self, name: str) -> SchedulerNode:
        return SchedulerNode(name, self.network, self._died, loop=self.loop, seed=self.seed, policy=lambda: self.policy)

    def _died(self, node: str, why: str) -> None:
        self.tell(f"!! {node} died: {why.strip().splitlines()[-1]}")
        self.violate("process", f"{node} died at {self.loop.time():.3f}: {why}")
