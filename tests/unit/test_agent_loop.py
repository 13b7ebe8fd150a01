"""One agent on virtual time, over the fakes: what it starts, stops, reports and recovers from."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path

import pytest

from shared.errors import CannotStart
from shared.states import Phase, Wanted
from tests.support.agent_rig import KEYS, Rig, is_ready, phases, play
from tests.support.fake_executor import Behaviour


def test_from_assignment_to_ready_and_to_nothing(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        async with rig.agent():
            await rig.assign(("a", Wanted.RUN))
            begun = rig.loop.time()
            report = await rig.until(is_ready("a"))
            # 0.08 s start and 0.1 s until it is ready; the rest is the agent and the simulated network.
            assert rig.loop.time() - begun < 0.18 + 0.06 + 0.05
            assert (report.plan, report.term, report.problem) == (1, 1, "")
            assert report.executions[0].runtime == "h1-1"
            await rig.assign(("a", Wanted.PAUSE))
            await rig.until(lambda r: phases(r) == {"a-0-1": "stopped"} and r.plan == 2)
            await rig.assign(("a", Wanted.RUN))
            again = await rig.until(is_ready("a"))
            assert again.executions[0].runtime == "h1-1", "the same container"
            assert again.executions[0].restarts == 0
            await rig.assign()
            gone = await rig.until(lambda r: r.plan == 4 and not r.executions)
            assert rig.machine.present() == []
            beat = await rig.heartbeat()
            assert beat is not None
            assert gone.session == beat.session
            await asyncio.sleep(1)

    play(tmp_path, test)
    assert list(tmp_path.iterdir()) == [], "nothing refers to the bundle"


def test_a_quiet_agent_writes_nothing_but_heartbeats(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        async with rig.agent():
            await rig.assign(("a", Wanted.RUN), ("b", Wanted.PAUSE))
            await rig.until(lambda r: phases(r) == {"a-0-1": "ready", "b-0-1": "stopped"})
            await asyncio.sleep(2)
            before, memories = len(rig.server.writes), rig.disk.memories
            await asyncio.sleep(120)
            written = rig.server.writes[before:]
            assert {bucket for bucket, _, _ in written} == {KEYS.hosts}
            assert 118 <= len(written) <= 121
            assert rig.disk.memories is memories

    play(tmp_path, test)


def test_a_start_costs_few_reports_and_readiness_is_told_at_once(tmp_path: Path) -> None:
    """Each report is a commit of the leader. How far a start has come can wait a moment; that it is over cannot."""

    async def test(rig: Rig) -> None:
        rig.machine.behaviour = Behaviour(ready_s=2.0)

        def reports() -> int:
            return sum(bucket == KEYS.reports for bucket, _, _ in rig.server.writes)

        async with rig.agent():
            await rig.assign()
            await rig.until(lambda r: r.plan == 1)
            before = reports()
            await rig.assign(("a", Wanted.RUN))
            shown = await rig.until(lambda r: phases(r) == {"a-0-1": "running"}, within_s=0.5)
            assert shown.plan == 2
            begun = rig.loop.time()
            await rig.until(is_ready("a"))
            assert rig.loop.time() - begun < 2.0 + 0.05
            assert reports() - before <= 3, "placed, running, ready"

    play(tmp_path, test)


def test_a_lost_hint_costs_a_few_seconds(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        async with rig.agent():
            await rig.assign()
            await rig.until(lambda r: r.plan == 1)
            rig.server.republished.clear()
            await rig.assign(("a", Wanted.RUN))
            await rig.until(is_ready("a"), within_s=7)

    play(tmp_path, test)


def test_what_is_removed_is_listed_until_it_is_gone(tmp_path: Path) -> None:
    """A report of the new plan must not confirm what still runs."""

    async def test(rig: Rig) -> None:
        rig.machine.behaviour = Behaviour(drain_s=3.0)
        async with rig.agent():
            await rig.assign(("a", Wanted.RUN))
            await rig.until(is_ready("a"))
            await rig.assign()
            first = await rig.until(lambda r: r.plan == 2)
            assert phases(first) == {"a-0-1": "stopping"}
            assert rig.machine.alive() == ["a-0-1"]
            await rig.until(lambda r: r.executions == ())
            assert rig.machine.alive() == []

    play(tmp_path, test)


def test_a_start_that_gets_no_answer_is_not_forgotten_when_it_is_no_longer_wanted(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        async with rig.agent():
            await rig.assign()
            await rig.until(lambda r: r.plan == 1)
            rig.machine.hanging = True
            await rig.assign(("a", Wanted.RUN))
            await asyncio.sleep(1)
            await rig.assign()
            report = await rig.report()
            for _ in range(300):
                report = await rig.report()
                assert report is not None
                assert report.plan == 1 or phases(report) or report.problem, "nothing is confirmed that may still start"
                await asyncio.sleep(0.1)
            assert report is not None
            assert report.problem
            rig.machine.hanging = False  # what was asked happens now
            await rig.until(lambda r: r.plan == 3 and not r.executions and not r.problem, within_s=30)
            assert rig.machine.present() == []

    play(tmp_path, test)


def test_crashes_are_counted_delayed_and_end_with_the_cause(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        rig.machine.crash_after_s["a"] = 0.5
        async with rig.agent():
            await rig.assign(("a", Wanted.RUN), ("b", Wanted.RUN))
            report = await rig.until(
                lambda r: any(one.restarts == 3 and one.phase is Phase.BACKOFF for one in r.executions)
            )
            crashed, healthy = report.executions
            assert crashed.reason == "it ended with exit code 1"
            assert crashed.exit_code == 1
            assert healthy.phase is Phase.READY, "others are not disturbed"
            starts = [one.start for one in rig.machine.ledger.runs if one.pipeline == "a"]
            gaps = [later - earlier - 0.5 for earlier, later in itertools.pairwise(starts)]
            assert gaps == pytest.approx([1.0, 2.0, 4.0], abs=0.4)
            rig.machine.crash_after_s.clear()
            settled = await rig.until(is_ready("a", "b"))
            assert settled.executions[0].restarts == 4

    play(tmp_path, test)


def test_counts_survive_an_agent_that_is_killed(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        rig.machine.crash_after_s["a"] = 0.2
        async with rig.agent():
            await rig.assign(("a", Wanted.RUN))
            await rig.until(lambda r: any(one.restarts == 2 for one in r.executions))
            rig.machine.crash_after_s.clear()
            await rig.until(lambda r: is_ready("a")(r) and r.executions[0].restarts == 3)
            await asyncio.sleep(2)
        runs = len(rig.machine.ledger.runs)
        async with rig.agent():
            await asyncio.sleep(3)
            report = await rig.until(is_ready("a"))
            assert report.executions[0].restarts == 3
        assert len(rig.machine.ledger.runs) == runs, "adopted, not restarted"

    play(tmp_path, test)


def test_without_a_store_the_agent_keeps_what_was_assigned_running(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        async with rig.agent():
            await rig.assign(("a", Wanted.RUN), ("b", Wanted.RUN), bound=False)
            await rig.until(is_ready("a", "b"))
        rig.machine.crash("a-0-1")
        starting = rig.agent()
        async with starting as agent:
            for store in rig.stores:
                store.faults.down = True
            await asyncio.sleep(20)
            assert rig.machine.alive() == ["a-0-1", "b-0-1"], "adopted b, restarted a from the last assignment"
            assert not agent.heart.valid
            for store in rig.stores:
                store.faults.down = False
            await rig.until(lambda r: is_ready("a", "b")(r) and r.executions[0].restarts == 1)

    play(tmp_path, test)


def test_an_engine_that_is_away_confirms_nothing_and_is_recovered_from(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        async with rig.agent() as agent:
            await rig.assign(("a", Wanted.RUN))
            await rig.until(is_ready("a"))
            rig.machine.unavailable = "the engine is restarting"
            await rig.assign()
            await rig.until(lambda r: r.problem == "the engine is restarting", within_s=10)
            await asyncio.sleep(15)
            report = await rig.report()
            assert report is not None
            assert phases(report) == {"a-0-1": "stopping"}, "listed, so that nothing is confirmed"
            beat = await rig.heartbeat()
            assert beat is not None
            assert beat.drivers["process"].reason == "the engine is restarting"
            assert agent.heart.valid, "heartbeats are none of the engine's business"
            rig.machine.unavailable = ""
            await rig.until(lambda r: r.plan == 2 and not r.executions and not r.problem, within_s=15)

    play(tmp_path, test)


def test_one_hanging_engine_call_never_delays_a_heartbeat(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        async with rig.agent():
            await asyncio.sleep(2)
            rig.machine.hanging = True
            before = len(rig.server.writes)
            await asyncio.sleep(60)
            beats = [entry for bucket, entry, _ in rig.server.writes[before:] if bucket == KEYS.hosts]
            assert len(beats) >= 59

    play(tmp_path, test)


def test_a_failed_start_waits_visibly_while_others_start(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        rig.machine.cannot_start["a"] = CannotStart("image", "no such image: nowhere/a")
        async with rig.agent():
            await rig.assign(("a", Wanted.RUN), ("b", Wanted.RUN))
            report = await rig.until(lambda r: phases(r) == {"a-0-1": "fetching", "b-0-1": "ready"})
            assert report.executions[0].reason == "waiting: image: no such image: nowhere/a"
            assert report.executions[0].restarts == 0
            rig.machine.cannot_start.clear()
            settled = await rig.until(is_ready("a", "b"), within_s=40)
            assert settled.executions[0].restarts == 0

    play(tmp_path, test)


def test_long_stops_keep_nobody_from_starting(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        names = [f"old{number}" for number in range(60)]
        async with rig.agent():
            await rig.assign(*[(name, Wanted.RUN) for name in names])
            await rig.until(is_ready(*sorted(names)), within_s=60)
            rig.machine.behaviour = Behaviour(drain_s=4.0)
            await rig.assign(("new", Wanted.RUN))
            begun = rig.loop.time()
            await rig.until(lambda r: phases(r).get("new-0-1") == "ready")
            assert rig.loop.time() - begun < 0.5
            await rig.until(is_ready("new"), within_s=60)

    play(tmp_path, test)


def test_a_burst_keeps_the_engine_as_busy_as_bare_starts_would(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        names = sorted(f"p{number}" for number in range(100))
        async with rig.agent():
            await rig.assign()
            await rig.until(lambda r: r.plan == 1)
            await rig.assign(*[(name, Wanted.RUN) for name in names])
            begun = rig.loop.time()
            await rig.until(is_ready(*names), within_s=60)
            # 100 starts of 0.08 s, 16 at a time, and the last one's 0.1 s; 0.8 of that throughput is the bar.
            assert rig.loop.time() - begun < (100 / 16 * 0.08 + 0.1) / 0.8

    play(tmp_path, test)


def test_a_lost_report_is_written_again(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        async with rig.agent():
            await rig.assign(("a", Wanted.RUN))
            await rig.until(is_ready("a"))
            await rig.operator.write(KEYS.reports, "h1", None)
            await rig.until(is_ready("a"), within_s=65)

    play(tmp_path, test)


def test_reports_outlive_write_failures(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        async with rig.agent():
            rig.stores[0].faults.lose_replies = 0.3
            rig.stores[0].faults.straggle = 0.3
            await rig.assign(("a", Wanted.RUN))
            await rig.until(is_ready("a"), within_s=120)
            rig.stores[0].faults.lose_replies = rig.stores[0].faults.straggle = 0.0
            await asyncio.sleep(60)
            report = await rig.report()
            assert report is not None
            assert is_ready("a")(report), "no straggler covers a newer report"

    play(tmp_path, test)


def test_no_longer_ready_is_shown(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        async with rig.agent():
            await rig.assign(("a", Wanted.RUN))
            await rig.until(is_ready("a"))
            rig.machine.behaviour = Behaviour(ready_s=1e9)
            report = await rig.until(lambda r: phases(r) == {"a-0-1": "running"}, within_s=2)
            assert report.executions[0].reason == "not connected yet"

    play(tmp_path, test)


def test_remove_all_leaves_nothing_and_forgets_the_restarts(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        async with rig.agent() as agent:
            await rig.assign(("a", Wanted.RUN), ("b", Wanted.RUN))
            await rig.until(is_ready("a", "b"))
        await agent.remove_all()
        assert rig.machine.present() == []
        async with rig.agent():
            report = await rig.until(is_ready("a", "b"))
            assert [one.restarts for one in report.executions] == [0, 0]

    play(tmp_path, test)
