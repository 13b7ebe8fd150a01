"""An event loop whose clock moves only when nothing is left to do now: an hour passes in milliseconds, and the same
seed gives the same run.

Besides time, three things of asyncio would differ between two runs: threads (work for one is done in place), files
(never looked at), and the order of sets of tasks, which follows addresses (tasks are numbered here).
"""

from __future__ import annotations

import asyncio
import itertools
import selectors
from collections.abc import Callable, Coroutine, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

_EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
STEP_S = (
    1e-7  # each turn of the loop takes so long: two clocks that differ by a rounding error must get past each other
)
STEPS_MAX = 100_000  # of the loop in one second; the busiest honest ones take some thousand
LIVELOCK = "somebody in the simulated cluster is busy with itself without ever waiting"
DEADLOCK = "every task waits and no timer is set: the simulated cluster is dead-locked"


class _Jump(selectors.BaseSelector):
    """Instead of waiting for files, moves the loop's clock on to its next timer."""

    def __init__(self) -> None:
        self._real = selectors.DefaultSelector()
        self.now = 0.0
        self._second, self._steps = 0, 0  # steps in this second

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError(DEADLOCK)
        self.now += timeout if timeout > 0 else STEP_S
        if int(self.now) != self._second:
            self._second, self._steps = int(self.now), 0
        self._steps += 1
        if self._steps > STEPS_MAX:
            raise RuntimeError(LIVELOCK)
        return []

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._real.unregister(fileobj)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._real.get_map()

    def close(self) -> None:
        self._real.close()


class _Task(asyncio.Task):
    """A task whose place in a set is its number."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], number: int, **options: Any) -> None:
        self._number = number
        super().__init__(coroutine, **options)

    def __hash__(self) -> int:
        return self._number

    def __eq__(self, other: object) -> bool:
        return self is other


class VirtualLoop(asyncio.SelectorEventLoop):
    """Time starts at 0 and jumps from timer to timer."""

    def __init__(self) -> None:
        self._jump = _Jump()
        super().__init__(self._jump)
        self._clock_resolution = 1e-6  # timers that differ by a rounding error are due together
        numbers = itertools.count(1)
        self.set_task_factory(lambda loop, work, **options: _Task(work, next(numbers), loop=loop, **options))

    def time(self) -> float:
        return self._jump.now

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        """Done in place, so that there are no threads: `asyncio.to_thread` ends up here."""
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 - it belongs to whoever awaits the future
            future.set_exception(error)
        return future


class VirtualClock:
    """`shared.clock.Clock` on a virtual loop, of one machine. `reboot` starts its boot clock anew."""

    def __init__(self, loop: VirtualLoop, boot_offset_s: float = 0.0) -> None:
        self._loop = loop
        self._offset = boot_offset_s

    def monotonic(self) -> float:
        return self._loop.time()

    def boot(self) -> float:
        return self._loop.time() + self._offset

    def reboot(self) -> None:
        self._offset = -self._loop.time()

    def wall(self) -> str:
        now = _EPOCH + timedelta(seconds=self._loop.time())
        return now.isoformat(timespec="milliseconds").replace("+00:00", "Z")

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
