"""Frozen processes: nothing of them runs, and then all of it, late."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from shared.clock import Clock, SystemClock
from tests.sim.virtual_time import Process, VirtualClock, VirtualLoop


def test_a_frozen_process_runs_late_what_became_due() -> None:
    seen: list[tuple[str, float]] = []

    async def tick(loop: VirtualLoop) -> None:
        while True:
            await asyncio.sleep(1.0)
            seen.append((asyncio.current_task().get_name(), round(loop.time(), 3)))  # type: ignore[union-attr]

    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        one = Process("one", loop)
        tasks = [
            loop.create_task(tick(loop), name="one", context=one.context),
            loop.create_task(tick(loop), name="other"),
        ]
        await asyncio.sleep(1.5)
        one.freeze()
        await asyncio.sleep(3.0)
        one.thaw()
        await asyncio.sleep(1.2)
        assert not any(task.done() for task in tasks)

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(main())
    assert [at for name, at in seen if name == "one"] == [1.0, 4.5, 5.5]
    assert [at for name, at in seen if name == "other"] == [1.0, 2.0, 3.0, 4.0, 5.0]


@pytest.mark.parametrize(("timers_last", "outcome"), [(False, "late"), (True, "answered")])
def test_what_arrived_and_what_became_due_come_in_either_order(timers_last: bool, outcome: str) -> None:
    outcomes: list[str] = []

    async def ask(answer: asyncio.Future[None]) -> None:
        try:
            async with asyncio.timeout(1.0):
                await answer
            outcomes.append("answered")
        except TimeoutError:
            outcomes.append("late")

    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        one, answer = Process("one", loop), loop.create_future()
        asking = loop.create_task(ask(answer), context=one.context)
        await asyncio.sleep(0.5)
        one.freeze()
        await asyncio.sleep(1.0)
        answer.set_result(None)
        await asyncio.sleep(1.0)
        one.thaw(timers_last=timers_last)
        await asking

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(main())
    assert outcomes == [outcome]


def test_what_a_frozen_process_would_call_waits_in_its_name() -> None:
    seen: list[float] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        one = Process("one", loop)
        one.freeze()
        loop.call_soon(lambda: seen.append(loop.time()), context=one.context)
        await asyncio.sleep(2.0)
        one.thaw()
        await asyncio.sleep(0.1)

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(main())
    assert [round(at, 3) for at in seen] == [2.0]


def test_clocks_of_machines_run_at_their_own_rates() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        clock = VirtualClock(loop, boot_rate=0.9, raw_rate=1.01)
        await asyncio.sleep(10.0)
        assert clock.boot() == pytest.approx(9.0, abs=1e-3)
        assert clock.monotonic() == pytest.approx(10.1, abs=1e-3)
        assert clock.real(clock.boot()) == pytest.approx(loop.time(), abs=1e-3)
        clock.reboot()
        await clock.sleep(0.9)
        assert clock.boot() == pytest.approx(0.9, abs=1e-3)
        assert clock.real(0.0) == pytest.approx(10.0, abs=1e-3)

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(main())


@pytest.mark.parametrize("clock_of", [lambda _: SystemClock(), lambda loop: VirtualClock(loop, boot_rate=0.5)])
def test_a_clock_waits_for_an_event_and_for_so_long_at_most(clock_of: Callable[[VirtualLoop], Clock]) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        clock, event = clock_of(loop), asyncio.Event()
        asleep_s = 1.0 if isinstance(clock, SystemClock) else 2.0
        assert not await clock.wait(event, 1.0)
        assert loop.time() == pytest.approx(asleep_s, abs=1e-3)
        loop.call_later(0.5, event.set)
        assert await clock.wait(event, 1.0)
        assert loop.time() == pytest.approx(asleep_s + 0.5, abs=1e-3)
        assert await clock.wait(event, 1.0), "it is set already"
        event.clear()
        loop.call_later(7.0, event.set)
        assert await clock.wait(event, None)
        assert loop.time() == pytest.approx(asleep_s + 7.5, abs=1e-3)
        event.clear()
        waiting = asyncio.create_task(clock.wait(event, 1.0))
        await asyncio.sleep(0.1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(main())
