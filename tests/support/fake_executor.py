"""An executor in memory, for simulations on virtual time. It passes the contract suite of the real ones.

    FakeHost        one machine: executions live here and outlive the executor object (an agent crash keeps them,
                    `power_off` kills them), and here faults are switched on and off
    FakeExecutor    what an agent gets; any number of them may look at the same FakeHost
    Ledger          who ran when, on all hosts, on the simulation's own time: for checkers

Nothing here starts a task or a timer. What will happen (an execution that ends, gets ready) is kept as the time at
which it happens and evaluated when somebody looks; only calls wait, in `asyncio`, whose loop may be a virtual one. So
the same calls at the same times give the same answers.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from agent.executor import Found, Life, Spec
from shared.clock import Clock
from shared.documents import Driver
from shared.errors import CannotStart, ExecutorError, ExecutorUnavailable
from tests.support.fake_health import health

T = TypeVar("T")

CALL_DEADLINE_S = 10.0  # as in the real executors; a stop has its grace on top
LINES_MAX = 1000  # of output kept per execution


@dataclass(slots=True)
class Run:
    """One uninterrupted run of an execution. `end` is None, or may lie in the future (it is draining)."""

    host: str
    store_id: str
    execution: str
    pipeline: str
    slot: int
    start: float
    end: float | None = None


class Ledger:
    """Every run of every execution on all hosts, in the order of their starts."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self.runs: list[Run] = []

    def running(self, pipeline: str, slot: int) -> list[Run]:
        """The runs of a slot at this instant."""
        now = self._now()
        return [r for r in self.runs if (r.pipeline, r.slot) == (pipeline, slot) and (r.end is None or r.end > now)]

    def overlaps(self) -> Iterator[tuple[Run, Run]]:
        """Every pair of runs of one slot that ran at the same time (in any store)."""
        slots: dict[tuple[str, int], list[Run]] = {}
        for run in self.runs:
            slots.setdefault((run.pipeline, run.slot), []).append(run)
        for runs in slots.values():
            for index, later in enumerate(runs):
                for earlier in runs[:index]:
                    if earlier.end is None or earlier.end > later.start:
                        yield earlier, later


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """How long things take, and how Bento behaves on this host."""

    call_s: float = 0.005  # every call to the engine
    start_s: float = 0.08  # create and start
    ready_s: float = 0.1  # from start until ready
    drain_s: float = 0.05  # from SIGTERM until it has ended; longer than the grace: it is killed


@dataclass(slots=True)
class _Execution:
    """An execution on this host. Its life follows from `started` and `ends`, compared with now."""

    cluster: str
    spec: Spec
    runtime: str
    started: float | None = None
    started_boot_s: float | None = None  # the same on the host's boot clock
    ends: float | None = None  # known end of the current run, maybe ahead
    exit_code: int = 0
    oom: bool = False
    failure: tuple[str, str] | None = None  # (kind, message) of the health document
    run: Run | None = None
    lines: list[bytes] = field(default_factory=list)
    lines_dropped: int = 0

    def life(self, now: float) -> Life:
        if self.started is None:
            return Life.CREATED
        return Life.ALIVE if self.ends is None or self.ends > now else Life.EXITED


class FakeHost:
    """One machine with its executions and its faults. `now` is the simulation's own time, for the ledger."""

    def __init__(
        self, name: str, *, clock: Clock, ledger: Ledger, now: Callable[[], float], boot: str = "boot-1"
    ) -> None:
        self.name = name
        self.boot = boot  # boot id; whoever lets the machine boot again sets another one
        self.clock = clock
        self.ledger = ledger
        self.now = now
        self.behaviour = Behaviour()
        self.behaviour_of: dict[str, Behaviour] = {}  # by pipeline
        # --- faults
        self.unavailable = ""  # every call fails at once with these words
        self.cannot_start: dict[str, CannotStart] = {}  # by pipeline
        self.crash_after_s: dict[str, float] = {}  # by pipeline: each run ends by itself after so long
        self.crash_code = 1  # the exit code of these
        self._hanging = False
        self._late: list[Callable[[], object]] = []
        # --- state
        self._executions: dict[tuple[str, str], _Execution] = {}  # by (store id, execution)
        self._serial = 0
        self._changed = asyncio.Event()

    # --- faults and outside views

    @property
    def hanging(self) -> bool:
        """While true, calls get no answer. What they asked for happens when it ends: the engine was only frozen."""
        return self._hanging

    @hanging.setter
    def hanging(self, value: bool) -> None:
        self._hanging = value
        if not value:
            late, self._late = self._late, []
            for effect in late:
                with contextlib.suppress(ExecutorError):
                    effect()
            self.touch()

    def drop_late(self) -> None:
        """What was asked while it hung never happens."""
        self._late.clear()

    def crash(self, execution: str, *, exit_code: int = 1, oom: bool = False) -> None:
        """The execution ends by itself, now."""
        for found in self._alive():
            if found.spec.execution == execution:
                self._end(found, self.now(), exit_code, oom=oom)
        self.touch()

    def power_off(self, *, forget: bool = False) -> None:
        """The machine loses power: everything that runs ends now. `forget`: what was kept in memory (process driver)
        is gone too. Calls that were under way never happen."""
        for found in self._alive():
            self._end(found, self.now(), 137)
        self._late.clear()
        if forget:
            self._executions.clear()
        self.touch()

    def write(self, execution: str, line: bytes) -> None:
        """The execution prints a line."""
        for found in self._executions.values():
            if found.spec.execution == execution:
                self._print(found, line)
        self.touch()

    def alive(self) -> list[str]:
        """What runs now, in all clusters and stores; sorted."""
        return sorted(found.spec.execution for found in self._alive())

    def present(self) -> list[str]:
        """What exists now, running or not; sorted."""
        return sorted(found.spec.execution for found in self._executions.values())

    # --- for FakeExecutor

    def of(self, execution: str, cluster: str, accepted: frozenset[str]) -> list[_Execution]:
        keys = [(store_id, execution) for store_id in sorted(accepted)]
        return [self._executions[k] for k in keys if k in self._executions and self._executions[k].cluster == cluster]

    def all_of(self, cluster: str, accepted: frozenset[str]) -> list[_Execution]:
        return [found for found in self._all(cluster) if found.spec.store_id in accepted]

    def others(self, cluster: str, accepted: frozenset[str]) -> list[_Execution]:
        return [found for found in self._all(cluster) if found.spec.store_id not in accepted]

    def _all(self, cluster: str) -> list[_Execution]:
        found = (e for e in self._executions.values() if e.cluster == cluster)
        return sorted(found, key=lambda e: (e.spec.execution, e.spec.store_id))

    def create(self, cluster: str, spec: Spec) -> _Execution:
        key = (spec.store_id, spec.execution)
        if key not in self._executions:
            self._serial += 1
            self._executions[key] = _Execution(cluster, spec, runtime=f"{self.name}-{self._serial}")
            self.touch()
        return self._executions[key]

    def start(self, found: _Execution) -> None:
        now, spec = self.now(), found.spec
        if found.life(now) is Life.ALIVE or self._executions.get((spec.store_id, spec.execution)) is not found:
            return
        found.run = Run(self.name, spec.store_id, spec.execution, spec.pipeline, spec.slot, now)
        self.ledger.runs.append(found.run)
        found.started, found.ends, found.oom = now, None, False
        found.started_boot_s = self.clock.boot()
        self._print(found, b"started\n")
        if spec.pipeline in self.crash_after_s:
            self._end(found, now + self.crash_after_s[spec.pipeline], self.crash_code)
        self.touch()

    def terminate(self, found: _Execution, grace_s: float) -> None:
        """SIGTERM now, SIGKILL after the grace: its end is settled from here on, whoever goes away meanwhile."""
        drain_s = self.behaviour_for(found.spec.pipeline).drain_s
        drained = drain_s <= grace_s
        self._end(found, self.now() + min(drain_s, grace_s), 0 if drained else 137)
        self.touch()

    def delete(self, found: _Execution) -> None:
        if found.life(self.now()) is Life.ALIVE:
            self._end(found, self.now(), 137)
        self._executions.pop((found.spec.store_id, found.spec.execution), None)
        self.touch()

    def ready(self, found: _Execution) -> bool:
        """Whether the runner of an execution that lives says that Bento is ready."""
        return (
            found.started is not None and self.now() - found.started >= self.behaviour_for(found.spec.pipeline).ready_s
        )

    def behaviour_for(self, pipeline: str) -> Behaviour:
        return self.behaviour_of.get(pipeline, self.behaviour)

    def late(self, effect: Callable[[], object]) -> None:
        self._late.append(effect)

    def touch(self) -> None:
        """Wake everybody who waits for a change."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def change(self, timeout_s: float | None) -> None:
        """Wait for a change, at most `timeout_s`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()

    def next_end(self) -> float | None:
        """When the next execution ends by itself, if that is settled."""
        ends = [found.ends for found in self._alive() if found.ends is not None]
        return min(ends, default=None)

    # --- inside

    def _alive(self) -> list[_Execution]:
        now = self.now()
        return [found for _, found in sorted(self._executions.items()) if found.life(now) is Life.ALIVE]

    def _end(self, found: _Execution, at: float, exit_code: int, *, oom: bool = False) -> None:
        if found.life(self.now()) is not Life.ALIVE or (found.ends is not None and found.ends <= at):
            return
        found.ends, found.exit_code, found.oom = at, exit_code, oom
        assert found.run is not None, "what is alive has a run"
        found.run.end = at

    def _print(self, found: _Execution, line: bytes) -> None:
        found.lines.append(line)
        excess = len(found.lines) - LINES_MAX
        if excess > 0:
            del found.lines[:excess]
            found.lines_dropped += excess


class FakeExecutor:
    """The `Executor` of one agent on a `FakeHost`."""

    def __init__(self, host: FakeHost, *, cluster: str = "shoal", driver: str = "process") -> None:
        self._host = host
        self._cluster = cluster
        self._driver = driver
        self._accepted: frozenset[str] = frozenset()
        self._strays: tuple[Found, ...] = ()

    @property
    def driver(self) -> str:
        return self._driver

    def adopt(self, accepted: frozenset[str]) -> None:
        self._accepted = accepted

    async def check(self) -> Driver:
        try:
            await self._call(self._host.behaviour.call_s, lambda: None)
        except ExecutorUnavailable as error:
            return Driver(False, str(error))
        return Driver(True)

    async def list(self) -> tuple[Found, ...]:
        return await self._call(self._host.behaviour.call_s, self._look)

    @property
    def strays(self) -> tuple[Found, ...]:
        return self._strays

    async def health(self, executions: Mapping[str, str]) -> Mapping[str, Mapping[str, Any]]:
        ours = self._host.all_of(self._cluster, self._accepted)
        return {e.spec.execution: self._health(e) for e in ours if executions.get(e.spec.execution) == e.spec.store_id}

    async def ensure_running(self, spec: Spec) -> None:
        assert spec.store_id in self._accepted, "the agent starts nothing of a store that it has not admitted"
        existing = self._host.of(spec.execution, self._cluster, self._accepted)
        if existing:
            target = next((found for found in existing if found.spec.store_id == spec.store_id), existing[0])
        else:
            target = await self._call(self._host.behaviour.start_s / 2, lambda: self._create(spec))
        await self._call(self._host.behaviour.start_s / 2, lambda: self._host.start(target))

    async def stop(self, execution: str, grace_s: float) -> None:
        for found in self._host.of(execution, self._cluster, self._accepted):
            await self._stop(found, grace_s)

    async def remove(self, execution: str, grace_s: float) -> None:
        for found in self._host.of(execution, self._cluster, self._accepted):
            await self._stop(found, grace_s)
            await self._call(self._host.behaviour.call_s, lambda found=found: self._host.delete(found))  # type: ignore[misc]

    async def logs(self, execution: str, *, tail: int, follow: bool) -> AsyncIterator[bytes]:
        read = None
        while found := self._host.of(execution, self._cluster, self._accepted):
            lines, dropped = found[-1].lines, found[-1].lines_dropped
            read = max(0, len(lines) - tail) + dropped if read is None else read
            for line in lines[max(0, read - dropped) :]:
                yield line
            read = dropped + len(lines)
            if not follow:
                return
            await self._host.change(None)

    async def events(self) -> AsyncIterator[None]:
        while True:
            end = self._host.next_end()
            await self._host.change(None if end is None else max(0.0, end - self._host.now()))
            yield None

    async def close(self) -> None:
        """Nothing to release; executions go on."""

    # --- inside

    async def _call(self, takes_s: float, effect: Callable[[], T]) -> T:
        """One call to the engine: fails, hangs until its deadline, or takes effect at its end.

        What a frozen engine was asked happens when it thaws, also if the caller has given up.
        """
        host = self._host
        if host.unavailable:
            raise ExecutorUnavailable(host.unavailable)
        await host.clock.sleep(takes_s)
        deadline = host.now() + CALL_DEADLINE_S
        answered = not host.hanging
        try:
            while host.hanging:
                left = deadline - host.now()
                if left <= 0:
                    raise ExecutorUnavailable(f"the engine of {host.name} did not answer within {CALL_DEADLINE_S} s")
                await host.change(left)
            answered = True
        finally:
            if not answered:
                host.late(effect)
        if host.unavailable:
            raise ExecutorUnavailable(host.unavailable)
        return effect()

    def _look(self) -> tuple[Found, ...]:
        others = self._host.others(self._cluster, self._accepted)
        self._strays = tuple(replace(self._found(e), health={}) for e in others)
        return tuple(self._found(e) for e in self._host.all_of(self._cluster, self._accepted))

    def _create(self, spec: Spec) -> _Execution:
        refusal = self._host.cannot_start.get(spec.pipeline)
        if refusal is not None:
            raise CannotStart(refusal.kind, str(refusal))
        return self._host.create(self._cluster, spec)

    async def _stop(self, found: _Execution, grace_s: float) -> None:
        await self._call(self._host.behaviour.call_s, lambda: self._host.terminate(found, grace_s))
        while found.life(self._host.now()) is Life.ALIVE:
            left = None if found.ends is None else max(0.0, found.ends - self._host.now())
            await self._host.change(left)

    def _found(self, execution: _Execution) -> Found:
        spec, life = execution.spec, execution.life(self._host.now())
        ended = life is Life.EXITED
        return Found(
            execution=spec.execution,
            store_id=spec.store_id,
            pipeline=spec.pipeline,
            slot=spec.slot,
            version=spec.version,
            digest=spec.digest,
            life=life,
            runtime=execution.runtime,
            started_s=execution.started_boot_s,
            exit_code=execution.exit_code if ended else None,
            oom=execution.oom and ended,
            health=self._health(execution),
        )

    def _health(self, execution: _Execution) -> Mapping[str, Any]:
        if execution.started is None or execution.started_boot_s is None:
            return {}
        alive = execution.life(self._host.now()) is Life.ALIVE
        return health(
            alive=alive,
            ready=alive and self._host.ready(execution),
            boot=self._host.boot,
            started=execution.started_boot_s,
            exit_code=None if alive else execution.exit_code,
            failure=None if alive else execution.failure,
        )
