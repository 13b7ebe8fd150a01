"""The hosts of a simulated cluster as hardware: what no agent takes along when it dies.

Machine ── clock, boot id           Hardware ── executions, each with a Runner and its Bento
         ├ Tmpfs: lease, grants     Disk ────── state directory, bundles
         └ power, reboot, disks
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from agent.bundles import Bundles
from agent.core.restarts import Memory
from agent.core.session import LeaseFile
from agent.core.situation import Bundle
from agent.executor import Life, Spec
from agent.layout import name_of
from agent.state import Saved
from runner import permits
from runner.fence import Place
from runner.permits import Grant
from shared.bundle import read_bundle
from shared.documents import Session
from shared.errors import ExecutorError, ExecutorUnavailable
from tests.sim.runners import Pace, Runner, Tmpfs
from tests.sim.virtual_time import NOBODY, VirtualClock, VirtualLoop
from tests.support.fake_executor import CALL_DEADLINE_S, FakeExecutor, FakeHost, Ledger, Run, _Execution

T = TypeVar("T")

CLUSTER = "shoal"
ENGINE_KILL_S = 3.0  # after the grace of a stop an engine kills the runner itself


@dataclass(frozen=True, slots=True)
class End:
    """How a Bento ended: "stopped" by the engine, "crashed" (also with its machine), or the failure of its runner."""

    run: Run
    how: str


class Hardware(FakeHost):
    """A `FakeHost` whose executions have runners that obey grant and lease. What counts as a copy is a Bento."""

    def __init__(self, name: str, *, clock: VirtualClock, ledger: Ledger, now: Callable[[], float], seed: int) -> None:
        super().__init__(name, clock=clock, ledger=ledger, now=now, boot=f"{name}-boot-1")
        self.virtual = clock
        self.tmpfs = Tmpfs()
        self.drains: dict[str, float] = {}  # by pipeline: how long a Bento takes from SIGTERM to its end
        self.late_s = 0.0  # starts get no answer, are in no list, and happen so much later; a fault of Docker
        self.coming: list[asyncio.TimerHandle] = []  # these
        self.verify_s = 0.03  # what a runner takes from its start to that of Bento
        self.forgotten: list[_Execution] = []  # of which no trace is left but that they may run
        self._chance = random.Random(f"hardware/{seed}/{name}")
        self._runners: dict[str, Runner] = {}  # by runtime, the present one
        self.ends: list[End] = []
        self._told: dict[str, str] = {}  # by runtime: what was done to the present one

    def start(self, found: _Execution) -> None:
        spec = found.spec
        if found.life(self.now()) is Life.ALIVE or self._executions.get((spec.store_id, spec.execution)) is not found:
            return
        found.started, found.started_boot_s = self.now(), self.clock.boot()
        found.ends, found.oom, found.failure, found.run = None, False, None, None
        behaviour = self.behaviour_for(spec.pipeline)
        self._print(found, b"started\n")
        self._told.pop(found.runtime, None)
        self._runners[found.runtime] = Runner(
            place=Place(execution=name_of(CLUSTER, spec.store_id, spec.execution), boot=self.boot, shifted=False),
            tmpfs=self.tmpfs,
            clock=self.virtual,
            grace_s=spec.stop_grace_s,
            pace=Pace(
                verify_s=self.verify_s * self._chance.uniform(0.5, 1.5),
                ready_s=behaviour.ready_s,
                drain_s=self.drains.get(spec.pipeline, behaviour.drain_s),
                crash_s=self.crash_after_s.get(spec.pipeline, math.inf),
            ),
            began=lambda: self._began(found),
            over=lambda code, failure: self._over(found, code, failure),
        )
        self.touch()

    def terminate(self, found: _Execution, grace_s: float) -> None:
        if found.life(self.now()) is not Life.ALIVE:
            return
        runner = self._runners[found.runtime]
        self._told.setdefault(found.runtime, "stopped")
        runner.tell(signal.SIGTERM)
        loop = asyncio.get_running_loop()
        loop.call_later(grace_s + ENGINE_KILL_S, lambda: runner.tell(signal.SIGKILL), context=NOBODY)
        self.touch()

    def ready(self, found: _Execution) -> bool:
        return self._runners[found.runtime].ready

    def remove_all(self) -> None:
        """Somebody removes every container, whether it runs or not."""
        for _, found in sorted(self._executions.items()):
            self.delete(found)

    def forget(self) -> None:
        """Somebody removes every trace of what is lease-bound, on disk and in memory, but for grants and lease; it runs
        on. What is not bound would run for ever, and nothing could be done about it."""
        for key, found in sorted(self._executions.items()):
            name = name_of(CLUSTER, *key)
            grant = permits.parse_grant(self.tmpfs.grants.get(name, ""))
            if grant is not None and grant.bound:
                del self._executions[key]
                self.forgotten.append(found)
        self.touch()

    def start_late(self, effect: Callable[[], object]) -> None:
        """Do something in `late_s`, unless the machine is switched off before."""

        def due() -> None:
            self.coming.remove(timer)
            with contextlib.suppress(ExecutorError):
                effect()

        timer = asyncio.get_running_loop().call_later(self.late_s, due, context=NOBODY)
        self.coming.append(timer)

    def power_off(self, *, forget: bool = False) -> None:
        for timer in self.coming:
            timer.cancel()
        self.coming.clear()
        for runner in list(self._runners.values()):  # those that are forgotten, too
            runner.tell(signal.SIGKILL)
        self.forgotten.clear()
        self.tmpfs = Tmpfs()
        super().power_off(forget=forget)

    def _end(self, found: _Execution, at: float, exit_code: int, *, oom: bool = False) -> None:
        assert at <= self.now(), "runners settle what is to come"
        if found.life(at) is Life.ALIVE:
            found.oom = oom
            runner = self._runners[found.runtime]
            self._told.setdefault(found.runtime, "crashed")
            if runner.running and exit_code != 128 + signal.SIGKILL:
                runner.crash(exit_code)
            else:
                runner.tell(signal.SIGKILL)

    def _began(self, found: _Execution) -> None:
        spec = found.spec
        found.run = Run(self.name, spec.store_id, spec.execution, spec.pipeline, spec.slot, self.now())
        self.ledger.runs.append(found.run)
        self.touch()

    def _over(self, found: _Execution, code: int, failure: tuple[str, str] | None) -> None:
        found.ends, found.exit_code, found.failure = self.now(), code, failure
        if found.run is not None:
            found.run.end = self.now()
            by_itself = "crashed" if failure is None else failure[0]
            self.ends.append(End(found.run, self._told.get(found.runtime, by_itself)))
        self.touch()


class Machine:
    """What an agent finds again after a restart, and what a reboot or a replacement takes away.

    `host` is the name that its agent uses; two machines may use the same one.
    """

    def __init__(
        self,
        name: str,
        *,
        loop: VirtualLoop,
        ledger: Ledger,
        zone: str,
        driver: str,
        seed: int,
        host: str = "",
        boot_rate: float = 1.0,
    ) -> None:
        self.name, self.host, self.zone, self.driver = name, host or name, zone, driver
        self.clock = VirtualClock(loop, boot_rate=boot_rate)
        self.engine = Hardware(name, clock=self.clock, ledger=ledger, now=loop.time, seed=seed)
        self.disk = Disk(f"{name}-agent-1")
        self.on = True
        self.boots: list[tuple[float, str]] = [(0.0, self.engine.boot)]  # (when, boot id)
        self._loop = loop
        self._disks = 1

    def power_off(self) -> None:
        self.on = False
        self.engine.drop_late()  # what it was asked while it hung and had not begun
        self.engine.hanging = False
        self.engine.power_off(forget=self.driver == "process")

    def power_on(self) -> None:
        self.on = True
        self.engine.boot = f"{self.name}-boot-{len(self.boots) + 1}"
        self.boots.append((self._loop.time(), self.engine.boot))
        self.clock.reboot()

    def replace_disk(self) -> None:
        """Another machine under the same name."""
        self.engine.power_off(forget=True)
        self.lose_state()

    def lose_state(self, *, traces: bool = False) -> None:
        """The state directory is gone, and with it the agent's identity and its bundles; what runs is still seen,
        unless its `traces` are lost too (there are none of Docker's to lose, but its labels)."""
        if traces and self.driver == "process":
            self.engine.forget()
        self._disks += 1
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


class SimLease:
    """`agent.lease.LeaseKeeper` on a machine's memory, as text."""

    def __init__(self, tmpfs: Tmpfs) -> None:
        self._tmpfs = tmpfs

    def read(self) -> LeaseFile | None:
        found = None if self._tmpfs.lease is None else permits.parse_lease(self._tmpfs.lease)
        if found is None:
            return None
        return LeaseFile(Session(found.agent, found.boot, found.number), found.deadline_s, found.lease_s)

    def write(self, lease: LeaseFile) -> None:
        session = lease.session
        self._tmpfs.put_lease(
            permits.lease_text(
                permits.Lease(
                    agent=session.agent,
                    boot=session.boot,
                    number=session.number,
                    deadline_s=lease.deadline_s,
                    lease_s=lease.lease_s,
                )
            )
        )


class SimGrants:
    """`agent.grants.GrantKeeper` on a machine's memory, as text."""

    def __init__(self, tmpfs: Tmpfs) -> None:
        self._tmpfs = tmpfs

    def list(self) -> Mapping[str, Grant]:
        found = {name: permits.parse_grant(text) for name, text in sorted(self._tmpfs.grants.items())}
        return {name: grant for name, grant in found.items() if grant is not None}

    def give(self, grant: Grant) -> None:
        self._tmpfs.put_grant(grant.execution, permits.grant_text(grant))

    def revoke(self, name: str) -> None:
        self._tmpfs.put_grant(name, None)


class SimBundles(Bundles):
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


class SimEngine(FakeExecutor):
    """The engine of a machine, as one agent process sees it. One that is switched off does not answer.

    Docker does what it was asked, whatever becomes of whoever asked; processes are started by the agent itself, so they
    are started late when it was frozen, and not at all when it died.
    """

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine.engine, cluster=CLUSTER, driver=machine.driver)
        self._machine = machine
        self._boot = machine.engine.boot
        self.dead = False  # the agent process is

    async def ensure_running(self, spec: Spec) -> None:
        engine = self._machine.engine
        if not engine.late_s or self._machine.driver != "docker":
            await super().ensure_running(spec)
            return
        engine.start_late(lambda: engine.start(self._create(spec)))
        await self._machine.clock.sleep(CALL_DEADLINE_S)
        raise ExecutorUnavailable(f"the engine of {engine.name} did not answer within {CALL_DEADLINE_S} s")

    async def _call(self, takes_s: float, effect: Callable[[], T]) -> T:
        docker = self._machine.driver == "docker"

        def still_here() -> T:
            if not self._machine.on or self._machine.engine.boot != self._boot or (self.dead and not docker):
                raise ExecutorUnavailable("the machine was switched off")
            return effect()

        call = super()._call(takes_s, still_here)
        if not docker:
            return await call
        task = asyncio.get_running_loop().create_task(call, name=f"engine of {self._machine.name}", context=NOBODY)
        task.add_done_callback(_heard)
        return await asyncio.shield(task)


def _heard(task: asyncio.Task[Any]) -> None:
    """Whoever asked may be dead; then nobody else asks for the error."""
    with contextlib.suppress(asyncio.CancelledError):
        task.exception()
