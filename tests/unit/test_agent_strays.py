"""What an agent tells of executions that no store commands."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from agent.core.admit import Admitted
from agent.core.strays import strays
from agent.executor import Found, Life
from shared.documents import STRAYS_MAX, Assigned, Assignment, Heartbeat, Stopping, Stray, decode, encode
from shared.keys import assign_key
from shared.states import Overlap, Wanted
from tests.support.agent_rig import KEYS, Disk, Rig, is_ready, play

FOUND = Found(
    execution="a-0-1",
    store_id="store-1",
    pipeline="a",
    slot=0,
    version="1",
    digest="d" * 64,
    life=Life.ALIVE,
    runtime="7",
)
STRAY = Stray(store_id="store-1", execution="a-0-1", pipeline="a", slot=0, version="1", digest="d" * 64)
EMPTY = Assignment(store_id="store-2", term=1, plan=1, host="h", session=None)
ASSIGNED = Assigned(
    execution="a-0-1",
    pipeline="a",
    slot=0,
    replicas=1,
    version="1",
    digest="d" * 64,
    wanted=Wanted.RUN,
    overlap=Overlap.SHAREABLE,
    lease_bound=False,
    stop_grace_s=1.0,
    cpu=0.0,
    memory_bytes=0,
)
STOPPING = Stopping(
    execution="a-0-1",
    pipeline="a",
    slot=0,
    version="1",
    overlap=Overlap.SHAREABLE,
    cpu=0.0,
    memory_bytes=0,
    asked_of=None,
    asked_in=1,
    reason="",
)


@pytest.mark.parametrize(
    ("found", "admitted", "told"),
    [
        pytest.param(FOUND, None, True, id="an agent that obeys no store tells of everything"),
        pytest.param(replace(FOUND, life=Life.CREATED), None, True, id="what may start just now"),
        pytest.param(replace(FOUND, life=Life.EXITED), None, False, id="what has ended is nobody's to start"),
        pytest.param(FOUND, Admitted(assignment=EMPTY), True, id="of another store than the one that is obeyed"),
        pytest.param(
            FOUND, Admitted(assignment=EMPTY, chain=("store-1",)), True, id="an accepted one's, until it is removed"
        ),
        pytest.param(
            FOUND,
            Admitted(assignment=replace(EMPTY, executions=(ASSIGNED,)), chain=("store-1",)),
            False,
            id="taken over: its document names it",
        ),
        pytest.param(
            FOUND,
            Admitted(assignment=replace(EMPTY, stopping=(STOPPING,)), chain=("store-1",)),
            False,
            id="to be stopped, as its document says",
        ),
        pytest.param(
            FOUND,
            Admitted(assignment=replace(EMPTY, executions=(ASSIGNED,))),
            True,
            id="of a store that is not accepted, though this one has given the same id again",
        ),
        pytest.param(
            FOUND, Admitted(assignment=replace(EMPTY, store_id="store-1")), False, id="of the store that is obeyed"
        ),
        pytest.param(replace(FOUND, execution="../a"), None, False, id="a label that no document could say"),
        pytest.param(replace(FOUND, store_id="a b"), None, False, id="a store id that none is"),
        pytest.param(replace(FOUND, slot=10**9), None, False, id="a slot that none is"),
    ],
)
def test_what_is_a_stray(found: Found, admitted: Admitted | None, told: bool) -> None:
    assert strays([found, found], admitted) == ((STRAY,) if told else (), "")


def test_more_than_a_heartbeat_holds_is_said() -> None:
    many = [replace(FOUND, execution=f"a-{slot}-1", slot=slot) for slot in range(STRAYS_MAX + 1)]
    assert strays(many[1:], None)[1] == ""
    told, why = strays(many, None)
    assert len(told) == STRAYS_MAX
    assert str(STRAYS_MAX + 1) in why


def test_a_heartbeat_with_the_longest_strays_passes_a_server() -> None:
    name = "x" * 63
    longest = Stray(
        store_id="s" * 64,
        execution=f"{name}-{10**17}-{10**17}",
        pipeline=name,
        slot=10**6,
        version="v" * 63,
        digest="d" * 128,
    )
    assert decode(Stray, encode(longest)) == longest
    assert STRAYS_MAX * (len(encode(longest)) + 1) < 700_000, "a NATS server takes messages of 1 MiB"


async def heard(rig: Rig) -> Heartbeat:
    beat = await rig.heartbeat()
    assert beat is not None
    return beat


def test_an_agent_that_lost_its_state_tells_what_runs(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        async with rig.agent():
            await rig.assign(("a", Wanted.RUN))
            await rig.until(is_ready("a"))
            beat = await heard(rig)
            assert (beat.strays, beat.strays_unknown) == ((), "")
        rig.disk = Disk("agent-2")
        await rig.operator.write(KEYS.control, assign_key("h1"), None)  # lost with its stream
        rig.machine.hanging = True
        async with rig.agent():
            await asyncio.sleep(20.0)
            beat = await heard(rig)
            assert (beat.session.agent, beat.store_id, beat.strays) == ("agent-2", "", ())
            assert beat.strays_unknown, "the engine has not said anything yet"
            rig.machine.hanging = False
            await asyncio.sleep(5.0)
            beat = await heard(rig)
            assert [(stray.execution, stray.pipeline) for stray in beat.strays] == [("a-0-1", "a")]
            assert beat.strays_unknown == ""
            rig.machine.crash("a-0-1")
            await asyncio.sleep(15.0)  # the list that hung makes it wait for the next one
            assert (await heard(rig)).strays == (), "it has ended"

    play(tmp_path, test)


def test_a_first_heartbeat_tells_already(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        rig.machine.behaviour = replace(rig.machine.behaviour, call_s=3.0)  # a list takes that long
        async with rig.agent() as agent:
            await rig.until_true(lambda: agent.heart.valid)
            assert (await heard(rig)).strays_unknown == ""

    play(tmp_path, test)


def test_an_agent_that_was_restarted_repeats_what_it_had_told(tmp_path: Path) -> None:
    """A scheduler that starts at the same time has not heard it, and would place something beside it."""

    async def test(rig: Rig) -> None:
        async with rig.agent():
            await rig.assign(("a", Wanted.RUN))
            await rig.until(is_ready("a"))
        rig.disk = Disk("agent-2")  # and its document is lost with its stream
        await rig.operator.write(KEYS.control, assign_key("h1"), None)
        async with rig.agent():
            await asyncio.sleep(20.0)
            told = (await heard(rig)).strays
            assert [stray.execution for stray in told] == ["a-0-1"]
        rig.machine.hanging = True
        async with rig.agent():
            await asyncio.sleep(20.0)
            beat = await heard(rig)
            assert beat.strays == told
            assert beat.strays_unknown

    play(tmp_path, test)
