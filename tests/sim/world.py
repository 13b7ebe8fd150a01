"""One simulated cluster and its life: faults and edits at any moment, then peace, convergence and silence.

begin ── faults and edits ── heal, minds made up ── converge within a bound ── nothing but heartbeats for 120 s
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scheduler.core.view import Policy
from shared.clock import Clock
from shared.documents import Heartbeat, decode
from shared.errors import CannotStart
from shared.keys import Keys
from tests.sim import accidents, final
from tests.sim.faults import FOREVER, Fault, Schedule, Shape
from tests.sim.machines import Machine
from tests.sim.nodes import AgentNode, Network, Node, SchedulerNode
from tests.sim.recording import RecordingServer
from tests.sim.users import PIPELINES, SLOTS_MAX, ZONES, Users
from tests.sim.virtual_time import VirtualClock, VirtualLoop
from tests.support.fake_executor import Behaviour, Ledger

CONVERGE_S = 90.0  # 12 s of silence, 15 s of grace, 30 s until a refused start is tried again, and the work itself
DRAIN_MAX_S = 25.0  # of one that takes its whole grace to stop; an update stops slot after slot
WELL = 3  # looks in a row, a second apart, that find nothing: between two steps of a rollout all is well for a moment
SETTLE_S = 20.0  # of peace after convergence before the silence is measured: histories are appended, files tidied
RECHECKED_S = 66.0  # of peace until every agent has looked whether its report is what lies in the store
QUIET_S = 66.0  # a full pass of the leader, a recheck of every agent
QUIET_EACH = 2  # seeds: the silence costs as much as all that comes before it
LONG_QUIET_S = 700.0  # a list of every watch
LONG_QUIET_EACH = 16  # seeds: so many simulated minutes cost as much as ten other seeds


@dataclass(frozen=True, slots=True)
class Directed:
    """A run that is written down instead of drawn: `kinds` of pipelines by id, and what people do when."""

    shape: Shape
    faults: Sequence[Fault]
    kinds: Mapping[str, str]
    edits: Sequence[tuple[float, Callable[[Users], Awaitable[None]]]] = ()
    first: Callable[[Users], Awaitable[None]] | None = None  # before anything is published
    script: Callable[[World], Coroutine[Any, Any, None]] | None = (
        None  # what goes wrong when something else has happened
    )


_SCHEDULER_AWAY = ("scheduler crash", "scheduler stop")


class World:
    """The cluster. `violations` are what went wrong on the way; `story` what happened, for people."""

    def __init__(self, loop: VirtualLoop, seed: int, directed: Directed | None = None, *, accidental: bool) -> None:
        """`accidental`: with the accidents that the seed has."""
        self.loop, self.seed = loop, seed
        self.keys = Keys()
        self.schedule = Schedule(seed)
        self.shape: Shape = self.schedule.shape() if directed is None else directed.shape
        self.faults: list[Fault] = self.schedule.draw(self.shape) if directed is None else list(directed.faults)
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
        self.twins: dict[str, AgentNode] = {}  # second agents, by host
        self.policy = Policy(writes_max=self.shape.writes_max)  # of all schedulers; may be changed before the run
        self.schedulers = {name: self._scheduler(name) for name in self.shape.schedulers}
        user = self.server.connect("users")
        self.users = Users(user, self.keys, VirtualClock(loop), seed=seed, hosts=self.shape.hosts)
        self.users.story = self.tell
        self._edits = () if directed is None else directed.edits
        self._first = None if directed is None else directed.first
        self._script = None if directed is None else directed.script
        if directed is not None:
            self.users.have(directed.kinds)
        self.lost: set[str] = set()  # machines that never come back
        self.healed_at = self.converged_at = 0.0
        self._active: list[Fault] = []
        self.accidents = accidents.Accidents(self)
        if accidental:
            self.faults += accidents.draw(seed, self.shape)

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
            if self._script is not None:
                group.create_task(self._script(self), name="script")
            for fault in list(self.faults):
                group.create_task(self.suffer(fault), name=f"fault {fault.kind}")
        self.healed_at = self.loop.time()
        self.tell("-- the faults are over --")
        await self.users.settle()
        if not self.violations and await self._converge():
            await self._be_quiet()
        for node in (*self.schedulers.values(), *self.agents.values(), *self.twins.values()):
            await node.kill()

    # --- phases

    async def _people(self) -> None:
        if self._first is not None:
            await self._first(self.users)
        await self.clock.sleep(self.chance.uniform(0, 3))
        await self.users.begin()
        for at, edit in self._edits:
            await self.clock.sleep(max(0.0, at - self.loop.time()))
            await edit(self.users)
        while self.loop.time() < self.shape.faults_s and self.shape.edit_gap_s < FOREVER:
            await self.clock.sleep(self.chance.expovariate(1 / self.shape.edit_gap_s))
            await self.users.act()

    async def suffer(self, fault: Fault) -> None:
        """One fault from its beginning to its end."""
        await self.clock.sleep(max(0.0, fault.at - self.loop.time()))
        if fault.kind in accidents.KINDS:
            self.tell(f"** {fault}")
            await self.accidents.befall(fault)
            return
        await self.begin(fault)
        if fault.until >= FOREVER:
            return
        await self.clock.sleep(max(0.0, min(fault.until, self.shape.faults_s) - self.loop.time()))
        await self.end(fault)

    async def _converge(self) -> bool:
        while any(machine.engine.coming for machine in self.machines.values()):
            await self.clock.sleep(1.0)  # an engine has yet to do what it was asked during the faults: no peace yet
        bound_s = CONVERGE_S + SLOTS_MAX * min(DRAIN_MAX_S, max(self.shape.drains.values(), default=0.0))
        end = self.loop.time() + bound_s
        well = 0
        while well < WELL:
            complaints = final.complaints(self)
            well = 0 if complaints else well + 1
            if complaints and self.loop.time() >= end:
                for complaint in complaints:
                    self.violate("convergence", f"after {bound_s:g} s of peace: {complaint}")
                return False
            if complaints:
                await self._confirm()
                await self.accidents.look_after()
            await self.clock.sleep(1.0)
        self.converged_at = self.loop.time()
        self.tell("-- converged --")
        return True

    async def _confirm(self) -> None:
        """Operators go and look: what an agent left that has been replaced, and some of the machines that are gone, are
        as dead as they seem. Only they can say it of what goes on through a partition."""
        for host, document in final.assignments(self).items():
            heard = self.server.value(self.keys.hosts, host)
            if document.session is None or heard is None:
                continue
            replaced = decode(Heartbeat, heard).session.agent != document.session.agent
            if replaced or (host in self.lost and self.seed % 2):
                await self.users.confirm_dead(host, document.session)

    async def _be_quiet(self) -> None:
        if self.seed % QUIET_EACH:
            await self.clock.sleep(SETTLE_S)
            for complaint in final.complaints(self):
                self.violate("convergence", f"did not last: {complaint}")
            return
        await self.clock.sleep(max(SETTLE_S, self.healed_at + RECHECKED_S - self.loop.time()))
        begun = self.loop.time()
        self.tell("-- silence --")
        await self.clock.sleep(QUIET_S if self.seed % LONG_QUIET_EACH else LONG_QUIET_S)
        for complaint in final.complaints(self):
            self.violate("convergence", f"did not last: {complaint}")
        for noise in final.noise(self, begun):
            self.violate("quiet", noise)

    # --- faults

    async def begin(self, fault: Fault) -> None:
        """It goes wrong."""
        self.tell(f"** {fault}")
        self._active.append(fault)
        match fault.kind:
            case "scheduler crash":
                await self.schedulers[fault.target].kill()
            case "scheduler stop":
                await self.schedulers[fault.target].stop()
            case "scheduler frozen" | "agent frozen":
                self._freeze(fault)
            case "agent crash":
                await self.agents[fault.target].kill()
            case "state lost" | "all traces lost":
                await self.agents[fault.target].kill()
                self.machines[fault.target].lose_state(traces=fault.kind == "all traces lost")
            case "second agent":
                self._second(fault.target)
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
            case "lease damaged" | "grant damaged":
                self._damage(fault)
            case "watch breaks":
                if fault.target in self.network.open:
                    self.network.open[fault.target].stall_watches()
            case _:
                pass  # a setting of an engine or a connection
        self._apply(fault)

    async def end(self, fault: Fault) -> None:
        """It is over."""
        if fault.until > fault.at:
            self.tell(f"** over: {fault}")
        self._active.remove(fault)
        self._apply(fault)
        match fault.kind:
            case kind if kind in _SCHEDULER_AWAY:
                scheduler = self.schedulers[fault.target]
                # Another fault may have taken it away meanwhile: or given it back, when it had begun before this one.
                gone = any(one.kind in _SCHEDULER_AWAY and one.target == fault.target for one in self._active)
                if not gone and not scheduler.up:
                    scheduler.start()
            case "scheduler frozen" | "agent frozen":
                self._freeze(fault)
            case "agent crash" | "state lost" | "all traces lost":
                self.agents[fault.target].start()
            case "second agent":
                twin = self.twins[fault.target]
                twin.machine.power_off()
                await twin.kill()
            case "host crash" | "host replaced":
                self.machines[fault.target].power_on()
                self.agents[fault.target].start()
            case _:
                pass

    def _freeze(self, fault: Fault) -> None:
        """Freeze and thaw what the active faults want frozen of a process."""
        node: Node = {**self.schedulers, **self.agents}[fault.target]
        active = [found for found in self._active if found.kind == fault.kind and found.target == fault.target]
        for name, thread in node.threads.items():
            frozen = node.up and any(found.how in ("", "timers last", name) for found in active)
            if frozen and not thread.frozen:
                thread.freeze()
            elif thread.frozen and not frozen:
                thread.thaw(timers_last=fault.how == "timers last")

    def _second(self, host: str) -> None:
        """Another machine whose agent uses the name of this host."""
        serial = 1 if host not in self.twins else int(self.twins[host].name.partition("~")[2]) + 1
        machine = self._machine(f"{host}~{serial}", host=host)
        self.twins[host] = AgentNode(machine, self.network, self._died, self.loop)
        self.twins[host].start()

    def _damage(self, fault: Fault) -> None:
        """Somebody deletes or overwrites a file of the lease directory."""
        tmpfs = self.machines[fault.target].engine.tmpfs
        text = "garbage\n" if fault.how == "garbage" else None
        if fault.kind == "lease damaged":
            tmpfs.put_lease(text)
        elif tmpfs.grants:
            tmpfs.put_grant(self.chance.choice(sorted(tmpfs.grants)), text)

    def host_of(self, node: str) -> str:
        """The host name that an agent uses, by its node or connection."""
        return node.split(".", maxsplit=1)[0].partition("~")[0]

    def _apply(self, fault: Fault) -> None:
        """Bring the settings of what a fault concerns up to the faults that are active now."""
        if fault.target in self.machines:
            self._apply_engine(fault.target)
        for name in sorted(self.network.faults):
            if fault.concerns(name):
                self._apply_connection(name)

    def _apply_engine(self, host: str) -> None:
        engine = self.machines[host].engine
        kinds = {found.kind: found for found in self._active if found.target == host}
        slow = kinds["slow engine"].amount if "slow engine" in kinds else 0.0
        engine.behaviour = Behaviour(
            call_s=0.005 + slow / 3, start_s=0.08 + slow, ready_s=0.3 + slow, drain_s=0.05 + slow
        )
        engine.late_s = kinds["late starts"].amount if "late starts" in kinds else 0.0
        engine.unavailable = "the engine fails" if "failing engine" in kinds else ""
        if engine.hanging != ("hanging engine" in kinds):
            engine.hanging = "hanging engine" in kinds
        pipelines = sorted(self.users.kinds)
        engine.crash_after_s = dict.fromkeys(pipelines, 1.7) if "crash loop" in kinds else {}
        refusal = CannotStart("image", "the image cannot be pulled")
        engine.cannot_start = dict.fromkeys(pipelines, refusal) if "cannot start" in kinds else {}

    def _apply_connection(self, name: str) -> None:
        faults = self.network.faults[name]
        here = [found for found in self._active if found.concerns(name)]
        active = {found.kind: found.amount for found in here}
        cuts = {found.how for found in here if found.kind.endswith("cut off")}
        faults.down = "connection down" in active or "store down" in active or "down" in cuts
        faults.held = "connection frozen" in active or "store frozen" in active or "held" in cuts
        faults.deaf = "deaf" in cuts
        faults.lose_requests = 1.0 if "mute" in cuts else active.get("lost requests", 0.0)
        faults.lose_held = 0.5 if cuts else 0.0
        faults.lose_replies = active.get("lost acknowledgements", 0.0)
        faults.straggle = active.get("late writes", 0.0)
        faults.late_bucket, faults.late_s = self.keys.pipelines, active.get("late records", 0.0)
        faults.watch_delay_s = active.get("late watch", 0.0)
        faults.leader_lag_s = active.get("deposed server", 0.0)
        faults.direct_lag_s = active.get("lagging replica", 0.0)

    # --- parts

    def _machine(self, name: str, host: str = "") -> Machine:
        zone, driver = self.chance.choice(ZONES), self.chance.choice(("docker", "process"))
        if host:
            zone = self.machines[host].zone
        machine = Machine(
            name,
            loop=self.loop,
            ledger=self.ledger,
            zone=zone,
            driver=driver,
            seed=self.seed,
            host=host,
            boot_rate=self.shape.boot_rates.get(name, 1.0),
        )
        machine.engine.drains = dict.fromkeys(PIPELINES, self.shape.drains.get(name, 0.05))
        machine.engine.verify_s = self.shape.verify_s.get(name, 0.03)
        return machine

    def _scheduler(self, name: str) -> SchedulerNode:
        return SchedulerNode(
            name,
            self.network,
            self._died,
            loop=self.loop,
            seed=self.seed,
            policy=lambda: self.policy,
            raw_rate=self.shape.raw_rates.get(name, 1.0),
        )

    def _died(self, node: str, why: str) -> None:
        self.tell(f"!! {node} died: {why.strip().splitlines()[-1]}")
        self.violate("process", f"{node} died at {self.loop.time():.3f}: {why}")
