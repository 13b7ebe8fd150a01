"""An event loop whose clock moves only when nothing is left to do now: an hour passes in milliseconds, and the same
seed gives the same run.

Besides time, three things of asyncio would differ between two runs: threads (work for one is done in place), files
(never looked at), and the order of sets of tasks, which follows addresses (tasks are numbered here).

Everything that runs belongs to a `Process`, by its context; a process that is frozen (SIGSTOP, a stalled machine) runs
nothing: what becomes due meanwhile is kept and runs, late, when it thaws.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import selectors
from asyncio.events import Handle
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from datetime import UTC, datetime, timedelta
from typing import Any

_EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
STEP_S = (
    1e-7  # each turn of the loop takes so long: two clocks that differ by a rounding error must get past each other
)
TOGETHER_S = 1e-6  # timers that differ by a rounding error are due together
STEPS_MAX = 100_000  # of the loop in one second; the busiest honest ones take some thousand
LIVELOCK = "somebody in the simulated cluster is busy with itself without ever waiting"
DEADLOCK = "every task waits and no timer is set: the simulated cluster is dead-locked"


class Process:
    """Whose code it is that runs. `context` is for what is called on its behalf from outside."""

    def __init__(self, name: str, loop: VirtualLoop) -> None:
        self.name = name
        self.context = Context()
        self.context.run(_RUNNING.set, self)
        self._loop = loop
        self._frozen = False
        self._kept: list[_Call] = []

    @property
    def frozen(self) -> bool:
        return self._frozen

    def freeze(self) -> None:
        """From now on nothing of it runs."""
        self._loop.frozen += not self._frozen
        self._frozen = True

    def thaw(self, *, timers_last: bool = False) -> None:
        """It goes on, with all that has become due. `timers_last`: it learns of what has arrived before it learns how
        late it is, as after one look at all of its sockets."""
        self._loop.frozen -= self._frozen
        self._frozen = False
        kept, self._kept = self._kept, []
        if timers_last:
            kept.sort(key=lambda call: isinstance(call, _Timer))
        self._loop.resume(kept)

    def keep(self, call: _Call) -> None:
        self._kept.append(call)


_RUNNING: ContextVar[Process | None] = ContextVar("process", default=None)
NOBODY = Context()  # of what travels: no process can freeze it


class _NoFiles(selectors.SelectSelector):
    """For the pipe that asyncio wants to be woken through; nobody ever looks at it."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        raise AssertionError("a virtual loop never waits for files")


class _Task(asyncio.Task):
    """A task whose place in a set is its number."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], number: int, **options: Any) -> None:
        self._number = number
        super().__init__(coroutine, **options)

    def __hash__(self) -> int:
        return self._number

    def __eq__(self, other: object) -> bool:
        return self is other


class _Call(Handle):
    """A handle without what asyncio keeps for debugging: most of what a simulation does is to make them."""

    __slots__ = ()

    def __init__(self, callback: Callable[..., Any], args: tuple[Any, ...], context: Context | None) -> None:
        self._callback: Any = callback
        self._args: Any = args
        self._context = copy_context() if context is None else context
        self._cancelled = False

    def __repr__(self) -> str:
        return f"<call of {self._callback}>"

    def cancel(self) -> None:
        self._cancelled = True
        self._callback = self._args = None


class _Timer(_Call):
    """The same at a time. One that was cancelled is dropped when its time comes."""

    __slots__ = ()


class VirtualLoop(asyncio.SelectorEventLoop):
    """Time starts at 0 and jumps from timer to timer. `frozen` = how many processes are."""

    def __init__(self) -> None:
        self._now = 0.0
        self._timers: list[tuple[float, int, _Call]] = []
        self._due: deque[_Call] = deque()
        self._numbers = itertools.count(1)
        self.frozen = 0
        super().__init__(_NoFiles())
        numbers = itertools.count(1)
        self.set_task_factory(lambda loop, work, **options: _Task(work, next(numbers), loop=loop, **options))

    def time(self) -> float:
        return self._now

    # asyncio's own loop looks at files in each turn and compares timers in Python; this one is five times as fast.

    def call_soon(self, callback: Any, *args: Any, context: Context | None = None) -> Handle:  # type: ignore[override]
        call = _Call(callback, args, context)
        self._due.append(call)
        return call

    def call_at(self, when: float, callback: Any, *args: Any, context: Context | None = None) -> _Timer:  # type: ignore[override]
        timer = _Timer(callback, args, context)
        heapq.heappush(self._timers, (when, next(self._numbers), timer))
        return timer

    def call_later(self, delay: float, callback: Any, *args: Any, context: Context | None = None) -> _Timer:  # type: ignore[override]
        timer = _Timer(callback, args, context)
        heapq.heappush(self._timers, (self._now + delay, next(self._numbers), timer))
        return timer

    def resume(self, calls: list[_Call]) -> None:
        """What was kept of a frozen process is due now."""
        self._due.extend(calls)

    def _run_once(self) -> None:
        """Turn after turn, until the loop is to stop."""
        due, timers, pop = self._due, self._timers, heapq.heappop
        second, steps = int(self._now), 0
        while True:
            if due:
                self._now += STEP_S
            else:
                while timers and timers[0][2]._cancelled:
                    pop(timers)
                if not timers:
                    raise RuntimeError(DEADLOCK)
                self._now = max(self._now + STEP_S, timers[0][0])
                if self._now >= second + 1:
                    second, steps = int(self._now), 0
            steps += 1
            if steps > STEPS_MAX:
                raise RuntimeError(LIVELOCK)
            end = self._now + TOGETHER_S
            while timers and timers[0][0] < end:
                due.append(pop(timers)[2])
            for _ in range(len(due)):
                call = due.popleft()
                if call._cancelled or (self.frozen and self._kept(call)):
                    continue
                try:
                    call._context.run(call._callback, *call._args)
                except (SystemExit, KeyboardInterrupt):
                    raise
                except BaseException as error:  # noqa: BLE001 - as any event loop
                    self.call_exception_handler({"message": f"{call} failed", "exception": error, "handle": call})
            if self._stopping:  # type: ignore[attr-defined]
                return

    def _kept(self, call: _Call) -> bool:
        """Whether it is for a process that is frozen, which gets it when it thaws."""
        process = call._context.get(_RUNNING)
        if process is None or not process.frozen:
            return False
        process.keep(call)
        return True

    def waiting_now(self) -> list[Handle]:
        """What wants to run right now, for people."""
        return list(self._due)

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        """Done in place, so that there are no threads: `asyncio.to_thread` ends up here."""
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 - it belongs to whoever awaits the future
            future.set_exception(error)
        return future


class VirtualClock:
    """`shared.clock.Clock` on a virtual loop, of one machine. `reboot` starts its boot clock anew.

    `boot_rate`: seconds of its boot clock per second of real time, which is slewed by whoever keeps its time;
    `raw_rate` of its raw clock, which is not, and errs by as much as its crystal does.
    """

    def __init__(self, loop: VirtualLoop, *, boot_rate: float = 1.0, raw_rate: float = 1.0) -> None:
        self._loop = loop
        self._booted = 0.0
        self.boot_rate, self.raw_rate = boot_rate, raw_rate

    def monotonic(self) -> float:
        return self._loop.time() * self.raw_rate

    def boot(self) -> float:
        return (self._loop.time() - self._booted) * self.boot_rate

    def real(self, boot_s: float) -> float:
        """When, in real time, the boot clock shows `boot_s`."""
        return self._booted + boot_s / self.boot_rate

    def reboot(self) -> None:
        self._booted = self._loop.time()

    def wall(self) -> str:
        now = _EPOCH + timedelta(seconds=self._loop.time())
        return now.isoformat(timespec="milliseconds").replace("+00:00", "Z")

    def sleep(self, seconds: float) -> Coroutine[Any, Any, None]:
        return asyncio.sleep(seconds / self.boot_rate)

    async def wait(self, event: asyncio.Event, seconds: float | None) -> bool:
        # What `asyncio.timeout` would do, without throwing and catching two exceptions each time.
        if event.is_set() or seconds is None:
            return await event.wait()
        over = self._loop.create_future()
        timer = self._loop.call_later(seconds / self.boot_rate, _end, over)
        waiters: deque[asyncio.Future[Any]] = event._waiters
        waiters.append(over)
        try:
            await over
        finally:
            timer.cancel()
            waiters.remove(over)
        return event.is_set()


def _end(over: asyncio.Future[Any]) -> None:
    if not over.done():
        over.set_result(None)
