"""What simulations rely on in the fake beyond the contract: faults, late effects, and a ledger that is never wrong."""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from agent.executor import Executor, Life
from shared.errors import CannotStart, ExecutorUnavailable
from tests.support import fake_executor
from tests.support.executor_rigs import FakeRig, one, opened


def play(rig: FakeRig, scenario: Callable[[Executor], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        async with opened(rig) as executor:
            await scenario(executor)

    asyncio.run(run())


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeRig:
    monkeypatch.setattr(fake_executor, "CALL_DEADLINE_S", 0.05)
    return FakeRig(tmp_path)


def test_what_a_frozen_engine_was_asked_happens_when_it_thaws(rig: FakeRig) -> None:
    async def scenario(executor: Executor) -> None:
        running, fresh = rig.spec(slot=0), rig.spec(slot=1)
        await executor.ensure_running(running)
        rig.host.hanging = True
        for call in (executor.ensure_running(fresh), executor.stop(running.execution, 1.0)):
            with pytest.raises(ExecutorUnavailable, match="did not answer"):
                await call
        with pytest.raises(ExecutorUnavailable):
            await executor.list()
        assert rig.host.alive() == [running.execution]
        rig.host.hanging = False
        await asyncio.sleep(0.1)
        assert rig.host.alive() == []
        # The start had not got further than the creation.
        found = await one(executor, fresh.execution)
        assert found is not None
        assert found.life is Life.CREATED

    play(rig, scenario)


def test_frozen_engine_that_thaws_in_time_is_only_slow(rig: FakeRig) -> None:
    async def scenario(executor: Executor) -> None:
        rig.host.hanging = True
        asyncio.get_running_loop().call_later(0.02, setattr, rig.host, "hanging", False)
        await executor.ensure_running(rig.spec())
        assert rig.host.alive() == [rig.spec().execution]

    play(rig, scenario)


def test_refusals_are_raised_until_they_are_lifted(rig: FakeRig) -> None:
    async def scenario(executor: Executor) -> None:
        rig.host.cannot_start["runs"] = CannotStart("image", "no such image")
        with pytest.raises(CannotStart, match="no such image"):
            await executor.ensure_running(rig.spec())
        rig.host.cannot_start.clear()
        rig.host.unavailable = "the daemon is gone"
        with pytest.raises(ExecutorUnavailable, match="the daemon is gone"):
            await executor.ensure_running(rig.spec())
        assert not (await executor.check()).ok
        assert rig.host.present() == []
        rig.host.unavailable = ""
        await executor.ensure_running(rig.spec())

    play(rig, scenario)


@pytest.mark.parametrize("forget", [False, True])
def test_power_off_ends_everything_at_once(rig: FakeRig, forget: bool) -> None:
    async def scenario(executor: Executor) -> None:
        spec = rig.spec()
        await executor.ensure_running(spec)
        rig.host.power_off(forget=forget)
        assert rig.host.alive() == []
        assert rig.ledger.runs[0].end is not None
        found = await executor.list()
        assert [one.life for one in found] == ([] if forget else [Life.EXITED])

    play(rig, scenario)


def test_ledger_tells_overlapping_runs_of_a_slot_on_any_host_from_others(rig: FakeRig) -> None:
    async def scenario(executor: Executor) -> None:
        first, second, other = rig.spec(serial=1), rig.spec(serial=2), rig.spec(slot=1)
        for spec in (first, other):
            await executor.ensure_running(spec)
        await executor.remove(first.execution, 1.0)
        await executor.ensure_running(second)
        assert list(rig.ledger.overlaps()) == []
        assert [run.execution for run in rig.ledger.running("runs", 0)] == [second.execution]
        await executor.ensure_running(rig.spec(serial=3))
        ((earlier, later),) = rig.ledger.overlaps()
        assert (earlier.execution, later.execution) == (second.execution, "runs-0-3")

    play(rig, scenario)
