"""One agent on virtual time, over the fakes: sessions that end, grants, and what stops and resumes because of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from agent.executor import Life
from shared.documents import Assignment, Report, Session, encode
from shared.keys import assign_key
from shared.states import Phase, Wanted
from tests.support.agent_rig import KEYS, Rig, is_ready, phases, play
from tests.support.fake_executor import Behaviour

FENCE_KILL_S = 2.0
EXIT_LEASE = 77
A, B = "t-store-a-a-0-1", "t-store-a-b-0-1"  # names of grants


def granted(rig: Rig) -> Mapping[str, bool]:
    """Names of grants, and whether they are bound."""
    return {name: grant.bound for name, grant in rig.tmpfs.grants.given.items()}


async def mixed(rig: Rig) -> Assignment:
    """Assign `a`, which is lease-bound, and `b`, which is not, and wait until both are ready."""
    document = await rig.assign(("a", Wanted.RUN), ("b", Wanted.RUN))
    bound, free = document.executions
    document = await rig.answer(executions=(bound, replace(free, lease_bound=False)))
    await rig.until(is_ready("a", "b"))
    return document


def cut_off(rig: Rig, *, off: bool) -> None:
    for store in rig.stores:
        store.faults.down = off


def starts(rig: Rig, pipeline: str) -> int:
    return sum(run.pipeline == pipeline for run in rig.machine.ledger.runs)


def test_what_is_lease_bound_ends_with_the_session_and_resumes_in_place(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        async with rig.agent() as agent:
            await mixed(rig)
            before = await rig.report()
            assert before is not None
            assert granted(rig) == {A: True, B: False}
            rig.machine.behaviour = Behaviour(drain_s=20.0)
            cut_off(rig, off=True)
            await asyncio.sleep(8.0 + FENCE_KILL_S + 1.0)
            assert rig.machine.alive() == ["b-0-1"], "killed, not drained; the other one goes on"
            assert granted(rig) == {B: False}
            await asyncio.sleep(60)
            assert rig.machine.alive() == ["b-0-1"]
            cut_off(rig, off=False)
            report = await rig.until(lambda r: "the leader has not answered" in r.executions[0].reason)
            waiting, session = report.executions[0], agent.heart.session
            assert report.session == session != before.session
            assert waiting.phase is Phase.STARTING
            assert waiting.reason == f"waiting: the leader has not answered session {session} of this host yet"
            await asyncio.sleep(5)
            assert rig.machine.alive() == ["b-0-1"], "an assignment of an older session starts nothing"
            answered = rig.loop.time()
            await rig.answer()
            report = await rig.until(is_ready("a", "b"))
            assert rig.loop.time() - answered < 1.0, "one round trip and a start"
            assert [one.restarts for one in report.executions] == [0, 0]
            assert [one.runtime for one in report.executions] == [one.runtime for one in before.executions]
            assert (starts(rig, "a"), starts(rig, "b")) == (2, 1)
            number = rig.tmpfs.grants.given[A].number
            assert number == agent.heart.session.number

    play(tmp_path, test)


def test_while_the_host_has_no_session_the_reason_says_so(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        async with rig.agent() as agent:
            await rig.assign(("a", Wanted.RUN))
            await rig.until(is_ready("a"))
            cut_off(rig, off=True)
            await asyncio.sleep(15)
            (observed,) = agent.decision.observed
            assert observed.reason == (
                "waiting: no heartbeat of this host has been acknowledged lately, so it may not run here"
            )

    play(tmp_path, test)


@pytest.mark.parametrize("who", ["tombstone", "stranger"])
def test_whatever_ends_the_session_revokes_at_once(tmp_path: Path, who: str) -> None:
    async def test(rig: Rig) -> None:
        async with rig.agent() as agent:
            await mixed(rig)
            beat, session = await rig.heartbeat(), agent.heart.session
            assert beat is not None
            other = replace(beat, session=Session("agent-2", "boot-2", 1))
            await rig.operator.write(
                KEYS.hosts, "h1", encode(replace(beat, dead=session) if who == "tombstone" else other)
            )
            await rig.until_true(lambda: agent.heart.session != session, within_s=2)
            assert granted(rig) == {B: False}, "revoked before anything else is done"
            await rig.until_true(lambda: rig.machine.alive() == ["b-0-1"], within_s=FENCE_KILL_S + 1)
            await rig.until_true(lambda: agent.heart.valid, within_s=10)
            await rig.answer()
            report = await rig.until(is_ready("a", "b"))
            assert [one.restarts for one in report.executions] == [0, 0]

    play(tmp_path, test)


def test_a_host_that_was_rebooted_starts_nothing_exclusive_before_it_was_answered(tmp_path: Path) -> None:
    """It remembers its assignment, and what was in it may run elsewhere by now: what is bound because it was silent,
    what is not because an operator said that it is dead."""

    async def test(rig: Rig) -> None:
        async with rig.agent():
            await mixed(rig)
        rig.machine.power_off()
        rig.tmpfs.lease = None
        rig.tmpfs.grants.given.clear()
        rig.machine.boot = "boot-2"
        async with rig.agent() as agent:
            await asyncio.sleep(20)
            assert agent.heart.valid
            assert rig.machine.alive() == []
            assert granted(rig) == {}
            await rig.answer()
            await rig.until(is_ready("a", "b"))

    play(tmp_path, test)


def test_an_agent_that_is_back_within_the_lease_disturbs_nothing(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        async with rig.agent():
            await mixed(rig)
        before = dict(rig.tmpfs.grants.given)
        await asyncio.sleep(5)
        async with rig.agent() as agent:
            await rig.until_true(lambda: agent.heart.valid)
            await asyncio.sleep(10)
            assert rig.tmpfs.grants.given == before
            assert (starts(rig, "a"), starts(rig, "b")) == (1, 1)

    play(tmp_path, test)


def test_an_agent_that_comes_back_too_late_stops_what_was_bound(tmp_path: Path) -> None:
    """The fake machine obeys no lease: what a frozen runner might have left running."""

    async def test(rig: Rig) -> None:
        async with rig.agent():
            await mixed(rig)
        await asyncio.sleep(9)
        starting = rig.agent()
        async with starting as agent:
            assert granted(rig) == {B: False}, "before anything else"
            await rig.until_true(lambda: rig.machine.alive() == ["b-0-1"], within_s=5)
            await rig.until_true(lambda: agent.heart.valid)
            await rig.answer()
            report = await rig.until(is_ready("a", "b"))
            assert [one.restarts for one in report.executions] == [0, 0]

    play(tmp_path, test)


def test_another_lease_length_begins_without_grants_and_waits_out_the_old_lease(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        async with rig.agent():
            await mixed(rig)
        assert rig.tmpfs.lease is not None
        deadline_s = rig.tmpfs.lease.deadline_s
        async with rig.agent(lease_s=12.0) as agent:
            assert granted(rig) == {B: False}
            await rig.until_true(lambda: agent.heart.valid)
            assert rig.clock.boot() >= deadline_s

    play(tmp_path, test)


@pytest.mark.parametrize("then", [Wanted.PAUSE, None])
def test_the_grant_is_gone_before_the_executor_is_asked_to_stop(tmp_path: Path, then: Wanted | None) -> None:
    async def test(rig: Rig) -> None:
        async with rig.agent():
            for bound in (True, False):
                await rig.assign(("a", Wanted.RUN), bound=bound)
                await rig.until(is_ready("a"))
                assert granted(rig) == {A: bound}
                rig.machine.hanging = True
                told = await rig.assign(*([("a", then)] if then else []), bound=bound)
                await rig.until(lambda r, plan=told.plan: r.plan == plan and phases(r) == {"a-0-1": "stopping"})  # type: ignore[misc]
                assert granted(rig) == {}, "while the engine still says nothing"
                rig.machine.hanging = False
                await rig.until(
                    lambda r, plan=told.plan: r.plan == plan and set(phases(r).values()) <= {"stopped"},  # type: ignore[misc]
                    within_s=60,
                )

    play(tmp_path, test)


def test_a_start_that_completes_when_nobody_wants_it_any_more_has_no_grant(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        async with rig.agent():
            await rig.assign()
            await rig.until(lambda r: r.plan == 1)
            rig.machine.hanging = True
            await rig.assign(("a", Wanted.RUN), bound=False)
            await rig.until_true(lambda: granted(rig) == {A: False})
            await rig.assign()
            await rig.until_true(lambda: granted(rig) == {})
            await asyncio.sleep(40)
            assert granted(rig) == {}
            rig.machine.hanging = False
            await rig.until(lambda r: r.plan == 3 and not r.executions and not r.problem)
            assert rig.machine.present() == []

    play(tmp_path, test)


def test_on_partition_changes_while_it_runs(tmp_path: Path) -> None:
    """The grant is rewritten before the plan counts as applied: from then on the leader relies on it."""

    async def test(rig: Rig) -> None:
        async with rig.agent() as agent:
            document = await rig.assign(("a", Wanted.RUN), bound=False)
            await rig.until(is_ready("a"))
            item = document.executions[0]
            for bound in (True, False, True):
                await rig.answer(executions=(replace(item, lease_bound=bound, bound_in=rig.plan + 1),))
                await rig.until(lambda r: r.plan == rig.plan)
                assert granted(rig) == {A: bound}
            assert rig.tmpfs.grants.given[A].number == agent.heart.session.number
            assert starts(rig, "a") == 1
            assert (await rig.report() or document).session == agent.heart.session

    play(tmp_path, test)


def test_what_cannot_be_bound_yet_does_not_count_as_applied(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        async with rig.agent() as agent:
            document = await rig.assign(("a", Wanted.RUN), bound=False)
            await rig.until(is_ready("a"))
            item = document.executions[0]
            older = replace(agent.heart.session, number=0)
            await rig.answer(executions=(replace(item, lease_bound=True, bound_in=2),), session=older)
            await rig.until_true(lambda: agent.facts()["plan"] == 2)
            await asyncio.sleep(5)
            report = await rig.report()
            assert report is not None
            assert (report.plan, granted(rig)) == (1, {A: False}), "not bound to a session that is not answered"
            assert rig.machine.alive() == ["a-0-1"]
            await rig.answer()
            await rig.until(lambda r: r.plan == 3)
            assert granted(rig) == {A: True}
            rig.tmpfs.grants.broken = True
            await rig.answer(executions=(replace(item, lease_bound=False),))
            await rig.until_true(lambda: agent.facts()["plan"] == 4)
            await asyncio.sleep(5)
            assert agent.facts()["applied_plan"] == 3
            rig.tmpfs.grants.broken = False
            await rig.answer()
            await rig.until(lambda r: r.plan == 5)
            assert granted(rig) == {A: False}
            assert starts(rig, "a") == 1

    play(tmp_path, test)


def test_without_a_grant_nothing_is_started(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        async with rig.agent():
            rig.tmpfs.grants.broken = True
            await rig.assign(("a", Wanted.RUN))
            report = await rig.until(lambda r: any("no space" in one.reason for one in r.executions))
            assert report.executions[0].reason.startswith("waiting: host:")
            assert rig.machine.present() == []
            rig.tmpfs.grants.broken = False
            report = await rig.until(is_ready("a"))
            assert report.executions[0].restarts == 0

    play(tmp_path, test)


def test_what_its_runner_stops_for_want_of_a_lease_is_no_crash(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        async with rig.agent():
            await rig.assign(("a", Wanted.RUN))
            await rig.until(is_ready("a"))
            await asyncio.sleep(10)
            for _ in range(4):
                rig.machine.crash("a-0-1", exit_code=EXIT_LEASE)
                ended = rig.loop.time()
                await rig.until(_started_after(rig, ended))
                assert rig.loop.time() - ended < 0.5, "no back-off"
                report = await rig.until(is_ready("a"))
                assert report.executions[0].restarts == 0
                assert report.executions[0].exit_code == EXIT_LEASE
                await asyncio.sleep(6)

    play(tmp_path, test)


def test_runners_that_never_find_their_lease_do_not_spin(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        async with rig.agent():
            rig.machine.crash_after_s["a"] = 0.1
            rig.machine.crash_code = EXIT_LEASE
            await rig.assign(("a", Wanted.RUN))
            await asyncio.sleep(60)
            assert 30 <= starts(rig, "a") <= 60
            report = await rig.report()
            assert report is not None
            assert report.executions[0].restarts == 0
            assert "stopped itself" in report.executions[0].reason

    play(tmp_path, test)


def test_an_older_assignment_that_is_read_again_starts_nothing(tmp_path: Path) -> None:
    """A replica that lags, or a store that was set back."""

    async def test(rig: Rig) -> None:
        async with rig.agent():
            first = await rig.assign(("a", Wanted.RUN))
            await rig.until(is_ready("a"))
            await rig.assign()
            await rig.until(lambda r: r.plan == 2 and not r.executions)
            await rig.operator.write(KEYS.control, assign_key("h1"), encode(first))
            await asyncio.sleep(20)
            assert rig.machine.present() == []
            assert granted(rig) == {}

    play(tmp_path, test)


def test_executions_of_a_lost_state_directory_are_kept_or_removed_as_told(tmp_path: Path) -> None:
    """A new agent id: nothing of the old sessions counts, and what runs without a bound is found again."""

    async def test(rig: Rig) -> None:
        async with rig.agent():
            await mixed(rig)
        rig.disk.saved = replace(rig.disk.saved, agent="agent-2", number=0, admitted=None)
        rig.disk.memories = {}
        async with rig.agent() as agent:
            assert granted(rig) == {B: False}
            await rig.until_true(lambda: agent.heart.valid, within_s=10)
            assert rig.tmpfs.lease is not None
            await rig.answer()
            report = await rig.until(is_ready("a", "b"))
            assert [one.restarts for one in report.executions] == [0, 0]
            assert (starts(rig, "a"), starts(rig, "b")) == (2, 1)
            await rig.assign()
            await rig.until(lambda r: not r.executions)
            assert rig.machine.present() == []
            assert granted(rig) == {}

    play(tmp_path, test)


def _started_after(rig: Rig, then: float) -> Callable[[Report], bool]:
    def holds(_: Report) -> bool:
        return any(run.start > then for run in rig.machine.ledger.runs)

    return holds


def test_the_life_of_what_was_fenced_is_what_the_engine_says(tmp_path: Path) -> None:
    """An engine that does not answer keeps it listed as stopping, without a grant, for as long as it lasts."""

    async def test(rig: Rig) -> None:
        async with rig.agent() as agent:
            await mixed(rig)
            rig.machine.hanging = True
            cut_off(rig, off=True)
            await asyncio.sleep(30)
            assert granted(rig) == {B: False}
            found = agent.lookout.inventory.found["a-0-1"]
            assert found.life is Life.ALIVE
            observed = next(one for one in agent.decision.observed if one.execution == "a-0-1")
            assert observed.phase is Phase.STOPPING
            cut_off(rig, off=False)
            await rig.until_true(lambda: agent.heart.valid)
            await rig.answer(executions=rig.told.executions[1:] if rig.told else ())
            rig.machine.hanging = False
            await rig.until(lambda r: phases(r) == {"b-0-1": "ready"} and not r.problem, within_s=60)
            assert rig.machine.present() == ["b-0-1"]

    play(tmp_path, test)
