"""One agent on virtual time, over the fakes: what it tells the history, and how little."""

from __future__ import annotations

import asyncio
from pathlib import Path

from shared.documents import Event, decode
from shared.states import Wanted
from tests.support.agent_rig import Rig, is_ready, phases, play


def told(rig: Rig, kind: str = "") -> list[Event]:
    events = [decode(Event, data) for _, data in rig.server.events]
    return [event for event in events if kind in ("", event.kind)]


def test_a_crash_loop_is_told_once_a_minute(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        async with rig.agent():
            await rig.assign(("a", Wanted.RUN), ("b", Wanted.RUN))
            await rig.until(is_ready("a", "b"))
            rig.machine.crash_after_s["a"] = 0.5
            rig.machine.crash("a-0-1")
            await asyncio.sleep(180)
            events = told(rig)
            assert 2 <= len(events) <= 4
            assert {(event.kind, event.subject, event.store_id) for event in events} == {
                ("execution-ended", "a", "store-a")
            }
            assert events[0].message == "a-0-1 on h1: it ended with exit code 1; restart 1 in 1 s"
            assert "times more before" in events[1].message
            assert (events[0].term, events[0].plan) == (1, 1)

    play(tmp_path, test)


def test_the_end_of_a_session_is_told_when_the_store_is_back(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        async with rig.agent() as agent:
            await rig.assign(("a", Wanted.RUN))
            await rig.until(is_ready("a"))
            session = agent.heart.session
            for store in rig.stores:
                store.faults.down = True
            await asyncio.sleep(10)
            assert agent.heart.session != session
            for store in rig.stores:
                store.faults.down = False
            await rig.until_true(lambda: bool(told(rig)))
            (event,) = told(rig)
            assert (event.kind, event.subject) == ("session-ended", "h1")
            assert event.message == f"session {session}: the lease ran out: no heartbeat was acknowledged in time"

    play(tmp_path, test)


def test_an_engine_that_goes_and_comes_and_an_assignment_that_is_refused(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        async with rig.agent():
            await rig.assign(("a", Wanted.RUN))
            await rig.until(is_ready("a"))
            rig.machine.unavailable = "the engine is restarting"
            await rig.until(lambda r: bool(r.problem))
            rig.machine.unavailable = ""
            await rig.until(lambda r: not r.problem and phases(r) == {"a-0-1": "ready"})
            await rig.assign(store_id="store-b", plan=99)
            await rig.until_true(lambda: bool(told(rig, "assignment-refused")), within_s=10)
            assert [event.message for event in told(rig, "engine-silent")] == ["the engine is restarting"]
            assert len(told(rig, "engine-answers")) == 1
            assert "shoal store accept store-b" in told(rig, "assignment-refused")[0].message
            await asyncio.sleep(100)
            assert len(told(rig)) == 3, "said once"

    play(tmp_path, test)


def test_what_cannot_be_told_is_dropped_and_holds_nobody_up(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        names = sorted(f"p{number}" for number in range(300))
        async with rig.agent():
            await rig.assign(*[(name, Wanted.RUN) for name in names], bound=False)
            await rig.until(is_ready(*names), within_s=120)
            rig.stores[0].faults.down = True
            for name in names:
                rig.machine.crash(f"{name}-0-1")
            await rig.until_true(lambda: len(rig.machine.alive()) == 300, within_s=60)
            assert told(rig) == []
            rig.stores[0].faults.down = False
            await asyncio.sleep(60)
            assert 0 < len(told(rig)) <= 201

    play(tmp_path, test)
