"""One suite for every executor: what an agent may rely on, whatever runs the executions."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.executor import Executor, Life
from shared.errors import ExecutorUnavailable
from tests.support.components import require
from tests.support.executor_rigs import (
    DockerRig,
    FakeRig,
    ProcessRig,
    Rig,
    eventually,
    one,
    play,
    until_life,
    until_ready,
)

Scenario = Callable[[Rig, Executor], Awaitable[None]]
NOTICED_S = 5.0  # from the end of an execution to the wake-up; a process takes a millisecond, an engine some ten
KINDS = [
    "fake",
    pytest.param("process", marks=pytest.mark.timeout(300)),
    pytest.param("docker", marks=[pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(600)]),
]


@pytest.fixture(params=KINDS)
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    """A host of each kind; the test fails if anything is left of it."""
    if request.param == "fake":
        yield FakeRig(tmp_path)
    elif request.param == "process":
        yield ProcessRig(tmp_path, require("bento"))
    else:
        yield DockerRig(tmp_path, request.getfixturevalue("engines_session")[0])


def test_started_execution_is_listed_with_all_its_facts_and_gets_ready(rig: Rig) -> None:
    async def scenario(executor: Executor) -> None:
        spec = rig.spec("runs", slot=3, serial=17)
        assert await executor.list() == ()
        await executor.ensure_running(spec)
        await until_ready(executor, spec.execution)
        (found,) = await executor.list()
        facts = (found.execution, found.store_id, found.pipeline, found.slot, found.version, found.digest)
        assert facts == (spec.execution, spec.store_id, spec.pipeline, 3, "1", spec.digest)
        assert found.life is Life.ALIVE
        assert found.exit_code is None
        assert found.health["phase"] == "ready"
        assert found.started_s is not None
        assert found.started_s > 0
        assert (await executor.check()).ok

    play(rig, scenario)


def test_starting_what_runs_changes_nothing(rig: Rig) -> None:
    async def scenario(executor: Executor) -> None:
        spec = rig.spec()
        await executor.ensure_running(spec)
        await until_ready(executor, spec.execution)
        before = await one(executor, spec.execution)
        await executor.ensure_running(spec)
        await asyncio.gather(executor.ensure_running(spec), executor.ensure_running(rig.spec(slot=1)))
        after = await one(executor, spec.execution)
        assert before is not None
        assert after is not None
        assert (before.runtime, before.started_s, before.life) == (after.runtime, after.started_s, after.life)
        assert (await executor.health({spec.execution: spec.store_id}))[spec.execution]["ready"]

    play(rig, scenario)


def test_stopped_execution_is_kept_and_resumes(rig: Rig) -> None:
    async def scenario(executor: Executor) -> None:
        spec = rig.spec()
        await executor.ensure_running(spec)
        await until_ready(executor, spec.execution)
        first = await one(executor, spec.execution)
        await executor.stop(spec.execution, rig.grace_s)
        stopped = await one(executor, spec.execution)
        assert first is not None
        assert stopped is not None
        assert (stopped.life, stopped.exit_code, stopped.oom) == (Life.EXITED, 0, False)
        await executor.stop(spec.execution, rig.grace_s)
        await executor.ensure_running(spec)
        # Nothing of the run before may pass for the new one's.
        health = (await executor.health({spec.execution: spec.store_id})).get(spec.execution, {})
        assert health.get("exit") is None
        resumed = await until_life(executor, spec.execution, Life.ALIVE)
        await until_ready(executor, spec.execution)
        if rig.kind != "process":
            assert resumed.runtime == first.runtime == stopped.runtime
        assert resumed.digest == spec.digest

    play(rig, scenario)


def test_removal_leaves_no_trace(rig: Rig) -> None:
    async def scenario(executor: Executor) -> None:
        running, stopped = rig.spec(slot=0), rig.spec(slot=1)
        await asyncio.gather(executor.ensure_running(running), executor.ensure_running(stopped))
        await until_ready(executor, running.execution)
        await executor.stop(stopped.execution, rig.grace_s)
        assert rig.traces(running.execution) != []
        assert rig.traces(stopped.execution) != []
        await asyncio.gather(*(executor.remove(s.execution, rig.grace_s) for s in (running, stopped)))
        assert await executor.list() == ()
        assert rig.traces(running.execution) == []
        assert rig.traces(stopped.execution) == []
        # Already so.
        await executor.remove(running.execution, rig.grace_s)
        await executor.stop(running.execution, rig.grace_s)

    play(rig, scenario)


def test_next_agent_adopts_what_runs_and_what_is_stopped(rig: Rig) -> None:
    async def scenario(executor: Executor) -> None:
        running, stopped = rig.spec(slot=0), rig.spec(slot=1)
        await executor.ensure_running(running)
        await executor.ensure_running(stopped)
        await until_ready(executor, running.execution)
        await executor.stop(stopped.execution, rig.grace_s)
        before = await executor.list()
        await executor.close()

        following = rig.executor()
        after = await following.list()
        assert [(f.execution, f.life, f.runtime, f.digest) for f in before] == [
            (f.execution, f.life, f.runtime, f.digest) for f in after
        ]
        # Without a list first, too: the first thing a new agent is told may be to stop.
        third = rig.executor()
        await third.stop(running.execution, rig.grace_s)
        await third.remove(stopped.execution, rig.grace_s)
        left = await one(third, running.execution)
        assert left is not None
        assert left.life is Life.EXITED
        assert rig.traces(stopped.execution) == []
        await rig.executor().ensure_running(running)
        await until_ready(third, running.execution)

    play(rig, scenario)


def test_executions_of_other_stores_and_clusters_are_invisible(rig: Rig) -> None:
    async def scenario(executor: Executor) -> None:
        spec = rig.spec()
        await executor.ensure_running(spec)
        await until_ready(executor, spec.execution)
        other = rig.executor()
        other.adopt(frozenset({"another-store"}))
        assert await other.list() == ()
        assert await other.health({spec.execution: spec.store_id}) == {}
        await other.stop(spec.execution, 0)
        await other.remove(spec.execution, 0)
        found = await one(executor, spec.execution)
        assert found is not None
        assert found.life is Life.ALIVE
        rig_cluster, rig.cluster = rig.cluster, "elsewhere"
        try:
            stranger = rig.make()
        finally:
            rig.cluster = rig_cluster
        if rig.kind == "fake":
            stranger.adopt(frozenset({rig.store_id}))
            assert await stranger.list() == ()
        assert stranger.strays == ()
        await stranger.close()
        # An operator's word makes them ours.
        other.adopt(frozenset({"another-store", rig.store_id}))
        assert [f.execution for f in await other.list()] == [spec.execution]

    play(rig, scenario)


def test_executions_of_other_stores_are_shown_as_strays(rig: Rig) -> None:
    async def scenario(executor: Executor) -> None:
        running, stopped = rig.spec(slot=0), rig.spec(slot=1)
        await asyncio.gather(executor.ensure_running(running), executor.ensure_running(stopped))
        await until_ready(executor, running.execution)
        await until_ready(executor, stopped.execution)
        await executor.stop(stopped.execution, rig.grace_s)
        await executor.list()
        assert executor.strays == ()
        other = rig.executor()
        for accepted in (frozenset[str](), frozenset({"another-store"})):
            other.adopt(accepted)
            assert await other.list() == ()
            lives = {running.execution: Life.ALIVE, stopped.execution: Life.EXITED}
            assert [
                (f.store_id, f.execution, f.pipeline, f.slot, f.version, f.digest, f.life) for f in other.strays
            ] == [
                (s.store_id, s.execution, s.pipeline, s.slot, s.version, s.digest, lives[s.execution])
                for s in (running, stopped)
            ]
            assert all(f.health == {} for f in other.strays)
        other.adopt(frozenset({"another-store", rig.store_id}))
        assert len(await other.list()) == 2
        assert other.strays == ()
        other.adopt(frozenset({"another-store"}))
        await executor.remove(running.execution, rig.grace_s)
        await executor.remove(stopped.execution, rig.grace_s)
        await other.list()
        assert other.strays == ()

    play(rig, scenario)


def test_execution_of_an_accepted_store_is_gone_on_with_under_the_new_one(rig: Rig) -> None:
    async def scenario(executor: Executor) -> None:
        old = rig.spec()
        await executor.ensure_running(old)
        before = await until_life(executor, old.execution, Life.ALIVE)
        executor.adopt(frozenset({rig.store_id, "successor-store"}))
        await executor.list()
        await executor.ensure_running(replace(old, store_id="successor-store"))
        found = await executor.list()
        assert [(f.execution, f.store_id, f.runtime) for f in found] == [(old.execution, rig.store_id, before.runtime)]
        await executor.remove(old.execution, rig.grace_s)
        assert await executor.list() == ()

    play(rig, scenario)


@pytest.mark.parametrize("store_id", ["0" * 16, "f" * 16], ids=["first in order", "last in order"])
def test_execution_that_is_there_under_two_stores_is_the_one_that_is_named(rig: Rig, store_id: str) -> None:
    """An engine may start one late for a store that was lost, when its successor has begun to start it, too."""

    async def scenario(executor: Executor) -> None:
        old, new = rig.spec(), rig.spec(store_id=store_id)
        await executor.ensure_running(old)
        await until_ready(executor, old.execution)
        await executor.stop(old.execution, rig.grace_s)
        successor, both = rig.executor(), rig.executor()
        successor.adopt(frozenset({store_id}))
        await successor.ensure_running(new)
        await until_ready(successor, new.execution)
        both.adopt(frozenset({rig.store_id, store_id}))
        before = {found.store_id: found for found in await both.list()}
        assert {store: found.life for store, found in before.items()} == {
            rig.store_id: Life.EXITED,
            store_id: Life.ALIVE,
        }
        for store, found in before.items():
            assert (await both.health({old.execution: store}))[old.execution]["phase"] == found.health["phase"]
        await both.ensure_running(new)
        after = {found.store_id: found for found in await both.list()}
        assert {s: (f.life, f.runtime) for s, f in after.items()} == {s: (f.life, f.runtime) for s, f in before.items()}
        await both.remove(old.execution, rig.grace_s)
        assert await both.list() == ()
        assert rig.traces(old.execution) == []

    play(rig, scenario)


@pytest.mark.parametrize(("what", "code"), [("ends", 0), ("broken", 1)])
def test_execution_that_ends_by_itself_is_seen_with_its_exit_code(rig: Rig, what: str, code: int) -> None:
    async def scenario(executor: Executor) -> None:
        spec = rig.spec(what)
        await executor.ensure_running(spec)
        found = await until_life(executor, spec.execution, Life.EXITED)
        assert found.exit_code == (1 if rig.kind == "fake" else code)
        assert found.health["phase"] == "exited"
        # Started again it ends again, and is not mistaken for the run before.
        await executor.ensure_running(spec)
        again = await until_life(executor, spec.execution, Life.EXITED)
        assert again.health["started_boot_s"] != found.health["started_boot_s"]

    play(rig, scenario)


@pytest.mark.parametrize("what", ["bento", "runner"])
def test_killed_execution_is_noticed_at_once_and_starts_again(rig: Rig, what: str) -> None:
    async def scenario(executor: Executor) -> None:
        spec = rig.spec()
        async with listening(executor) as woken:
            await executor.ensure_running(spec)
            await until_ready(executor, spec.execution)
            found = await one(executor, spec.execution)
            assert found is not None
            await quiet(woken)
            rig.hurt(found, what)
            async with asyncio.timeout(NOTICED_S):
                await woken.wait()
        ended = await until_life(executor, spec.execution, Life.EXITED)
        assert ended.exit_code == 137
        await executor.ensure_running(spec)
        await until_ready(executor, spec.execution)

    play(rig, scenario)


def test_events_also_tell_of_what_another_agent_started(rig: Rig) -> None:
    async def scenario(executor: Executor) -> None:
        spec = rig.spec("ends")
        await executor.ensure_running(spec)
        following = rig.executor()
        async with listening(following) as woken:
            await following.list()
            await quiet(woken, 0.0)
            async with asyncio.timeout(NOTICED_S):
                await woken.wait()

            async def ended() -> bool:
                found = await one(following, spec.execution)
                return found is not None and found.life is Life.EXITED

            await eventually(ended, "it ended")

    play(rig, scenario)


def test_stop_kills_after_the_grace(rig: Rig) -> None:
    async def scenario(executor: Executor) -> None:
        spec = rig.spec("stubborn", stop_grace_s=60.0)
        await executor.ensure_running(spec)
        await until_ready(executor, spec.execution)
        started = asyncio.get_running_loop().time()
        await executor.stop(spec.execution, 1.0)
        took = asyncio.get_running_loop().time() - started
        assert 0.9 <= took < 20
        found = await one(executor, spec.execution)
        assert found is not None
        assert (found.life, found.exit_code) == (Life.EXITED, 137)

    play(rig, scenario)


def test_removal_right_after_the_start_does_not_take_the_whole_grace(rig: Rig) -> None:
    """The first process of a container loses signals that it does not catch yet."""

    async def scenario(executor: Executor) -> None:
        for attempt in range(3):
            spec = rig.spec(slot=attempt)
            await executor.ensure_running(spec)
            started = asyncio.get_running_loop().time()
            await executor.remove(spec.execution, 60.0)
            assert asyncio.get_running_loop().time() - started < 20
            assert rig.traces(spec.execution) == []

    play(rig, scenario)


def test_two_starts_of_the_same_execution_at_once_give_one(rig: Rig) -> None:
    """The agent makes one call at a time; but an agent that was killed in a call may have a successor at once."""

    async def scenario(executor: Executor) -> None:
        spec = rig.spec()
        both = executor, rig.executor()
        results = await asyncio.gather(*(one.ensure_running(spec) for one in both), return_exceptions=True)
        assert None in results, results
        for each, result in zip(both, results, strict=True):
            if result is not None:
                # The engine knew the name already, but not yet the container: an agent's next pass asks again.
                assert isinstance(result, ExecutorUnavailable), result
                await each.ensure_running(spec)
        await until_ready(executor, spec.execution)
        assert len(await executor.list()) == 1
        await executor.remove(spec.execution, rig.grace_s)
        assert rig.traces(spec.execution) == []

    play(rig, scenario)


def test_logs_are_tailed_and_followed_over_a_restart_until_removal(rig: Rig) -> None:
    async def scenario(executor: Executor) -> None:
        spec = rig.spec("ends")
        await executor.ensure_running(spec)
        await until_life(executor, spec.execution, Life.EXITED)
        mark = b"started" if rig.kind == "fake" else b"the end"
        whole = await read(executor, spec.execution, tail=1000)
        assert whole.count(mark) == 1
        assert len((await read(executor, spec.execution, tail=1)).splitlines()) == 1
        assert await read(executor, spec.execution, tail=0) == b""
        assert await read(executor, "nothing-0-1", tail=10) == b""

        heard = bytearray()

        async def follow() -> None:
            async for chunk in executor.logs(spec.execution, tail=1000, follow=True):
                heard.extend(chunk)

        async with asyncio.TaskGroup() as group:
            following = group.create_task(follow(), name="follow the logs")

            async def heard_runs(count: int) -> None:
                async def enough() -> bool:
                    return heard.count(mark) >= count

                await eventually(enough, f"{count} runs in the logs")

            await heard_runs(1)
            await executor.ensure_running(spec)
            await heard_runs(2)
            await executor.remove(spec.execution, rig.grace_s)
            async with asyncio.timeout(10):
                await following
        assert heard.count(mark) == 2

    play(rig, scenario)


def test_closing_a_followed_log_ends_it(rig: Rig) -> None:
    async def scenario(executor: Executor) -> None:
        spec = rig.spec()
        await executor.ensure_running(spec)
        await until_ready(executor, spec.execution)
        for _ in range(3):
            logs: Any = executor.logs(spec.execution, tail=5, follow=True)
            async with asyncio.timeout(10), contextlib.aclosing(logs):
                async for chunk in logs:
                    assert chunk
                    break

    play(rig, scenario)


def test_many_starts_and_removals_at_once(rig: Rig) -> None:
    async def scenario(executor: Executor) -> None:
        specs = [rig.spec(slot=slot) for slot in range(8)]
        await asyncio.gather(*(executor.ensure_running(spec) for spec in specs))
        await asyncio.gather(*(until_ready(executor, spec.execution) for spec in specs))
        assert [found.execution for found in await executor.list()] == sorted(spec.execution for spec in specs)
        await asyncio.gather(*(executor.remove(spec.execution, rig.grace_s) for spec in specs))
        assert await executor.list() == ()
        assert [trace for spec in specs for trace in rig.traces(spec.execution)] == []

    play(rig, scenario)


@contextlib.asynccontextmanager
async def listening(executor: Executor) -> Any:
    """An event that is set by every wake-up."""
    woken = asyncio.Event()

    async def listen() -> None:
        async for _ in executor.events():
            woken.set()

    task = asyncio.create_task(listen(), name="listen to events")
    try:
        yield woken
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def quiet(woken: asyncio.Event, for_s: float = 0.5) -> None:
    """Return once no wake-up has come for so long."""
    while True:
        woken.clear()
        try:
            async with asyncio.timeout(for_s):
                await woken.wait()
        except TimeoutError:
            return


async def read(executor: Executor, execution: str, *, tail: int) -> bytes:
    return b"".join([chunk async for chunk in executor.logs(execution, tail=tail, follow=False)])
