"""One agent on virtual time, over the fakes: whose host name it is, and whom it obeys."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from shared.documents import Session, encode
from shared.keys import assign_key
from shared.states import Wanted
from tests.support.agent_rig import KEYS, STORE_ID, Disk, Rig, is_ready, phases, play


def test_an_agent_that_is_back_within_its_lease_keeps_its_session(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        async with rig.agent() as first:
            await asyncio.sleep(2)
            session = first.heart.session
        await asyncio.sleep(5)
        async with rig.agent() as second:
            await asyncio.sleep(2)
            assert second.heart.session == session
            assert second.heart.valid
        await asyncio.sleep(9)
        async with rig.agent() as third:
            await asyncio.sleep(1)
            assert third.heart.session == replace(session, number=session.number + 1), "the lease had run out"
            assert third.heart.valid, "its own key: at once"

    play(tmp_path, test)


def test_an_outage_lapses_the_session_once_and_moves_nothing(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        async with rig.agent() as agent:
            await rig.assign(("a", Wanted.RUN))
            await rig.until(is_ready("a"))
            number = agent.heart.session.number
            for store in rig.stores:
                store.faults.down = True
            await asyncio.sleep(60)
            assert agent.heart.session.number == number + 1
            for store in rig.stores:
                store.faults.down = False
            await rig.until(lambda r: r.session.number == number + 1, within_s=5)
            assert rig.machine.present() == ["a-0-1"]

    play(tmp_path, test)


def test_lost_acknowledgements_extend_nothing_and_keep_the_name(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        async with rig.agent() as agent:
            await asyncio.sleep(2)
            rig.stores[1].faults.lose_replies = 0.4
            for _ in range(200):
                await asyncio.sleep(0.5)
                lease = rig.tmpfs.lease
                assert lease is not None
                assert lease.deadline_s <= rig.clock.boot() + 8.0
            rig.stores[1].faults.lose_replies = 0.0
            await asyncio.sleep(3)
            assert agent.heart.valid
            assert rig.stores[1].server_changes > 0, "each time-out changes the server"

    play(tmp_path, test)


def test_a_second_agent_of_the_same_name_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        other = Rig(tmp_path / "other", server=rig.server, disk=Disk("agent-2"))
        (tmp_path / "other").mkdir()
        async with rig.agent() as first:
            await rig.assign(("a", Wanted.RUN))
            await rig.until(is_ready("a"))
            async with other.agent(boot="boot-2") as second:
                await asyncio.sleep(30)
                assert first.heart.valid
                assert not second.heart.valid
                assert "is alive: give one of the two hosts another name" in second.heart.waiting
                assert other.machine.present() == [], "it obeys nothing"
                report = await rig.report()
                assert report is not None
                assert report.session == first.heart.session, "and reports nothing"

    play(tmp_path, test)


def test_a_silent_host_name_is_claimed_after_four_reads(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        async with rig.agent():
            await asyncio.sleep(2)
        other = Rig(tmp_path, server=rig.server, disk=Disk("agent-2"))
        begun = rig.loop.time()
        async with other.agent(boot="boot-2") as second:
            await rig.until_true(lambda: second.heart.valid)
            assert 3.0 <= rig.loop.time() - begun <= 4.0

    play(tmp_path, test)


def test_an_agent_whose_name_was_taken_stops_obeying_and_reporting(tmp_path: Path) -> None:
    """V1 of the model report, the agent's half."""

    async def test(rig: Rig) -> None:
        async with rig.agent() as agent:
            await rig.assign(("a", Wanted.RUN), bound=False)
            await rig.until(is_ready("a"))
            session = agent.heart.session
            beat = await rig.heartbeat()
            assert beat is not None
            stranger = replace(beat, session=Session("agent-2", "boot-2", 1))

            async def heartbeat_as_stranger() -> None:
                while True:
                    await rig.operator.write(KEYS.hosts, "h1", encode(stranger))
                    await asyncio.sleep(0.5)

            beating = asyncio.create_task(heartbeat_as_stranger())
            await asyncio.sleep(3)
            assert agent.heart.session == replace(session, number=session.number + 1)
            reports = [entry.revision for bucket, entry, _ in rig.server.writes if bucket == KEYS.reports]
            await rig.assign()
            await asyncio.sleep(20)
            assert [entry.revision for bucket, entry, _ in rig.server.writes if bucket == KEYS.reports] == reports
            assert rig.machine.alive() == ["a-0-1"], "the assignment is the other's"
            beating.cancel()
            await asyncio.wait([beating])

    play(tmp_path, test)


@pytest.mark.parametrize("whose", ["own", "stranger"])
def test_a_tombstone_ends_the_session(tmp_path: Path, whose: str) -> None:
    """V3: whoever was declared dead on our key, this session writes nothing over it."""

    async def test(rig: Rig) -> None:
        async with rig.agent() as agent:
            await asyncio.sleep(2)
            session = agent.heart.session
            dead = session if whose == "own" else Session("agent-2", "boot-2", 1)
            beat = await rig.heartbeat()
            assert beat is not None
            await rig.operator.write(KEYS.hosts, "h1", encode(replace(beat, dead=dead)))
            buried = rig.loop.time()
            expected = replace(session, number=session.number + 1)
            await rig.until_true(lambda: agent.heart.valid and agent.heart.session == expected)
            assert rig.loop.time() - buried < (2.0 if whose == "own" else 6.0)

    play(tmp_path, test)


def test_no_document_and_documents_of_others_are_not_obeyed(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        async with rig.agent():
            await rig.assign(("a", Wanted.RUN))
            await rig.until(is_ready("a"))
            await rig.operator.write(KEYS.control, assign_key("h1"), None)
            await asyncio.sleep(12)
            await rig.assign(store_id="store-b", plan=99)
            await asyncio.sleep(12)
            await rig.assign(plan=0)
            await asyncio.sleep(12)
            await rig.operator.write(KEYS.control, assign_key("h1"), b'{"plan": "many"')
            await asyncio.sleep(12)
            assert rig.machine.alive() == ["a-0-1"]
            await rig.assign(store_id="store-b", plan=1, accepted=(STORE_ID,))
            await rig.until(lambda r: r.store_id == "store-b" and not r.executions)
            assert rig.machine.present() == [], "what the older store had started is ours, and was taken away"

    play(tmp_path, test)


def test_a_store_that_was_accepted_keeps_what_it_assigns_again(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        async with rig.agent():
            await rig.assign(("a", Wanted.RUN))
            await rig.until(is_ready("a"))
            await rig.assign(("a", Wanted.RUN), store_id="store-b", plan=1, accepted=(STORE_ID,))
            await rig.until(lambda r: r.store_id == "store-b" and phases(r) == {"a-0-1": "ready"})
            await asyncio.sleep(10)
            assert len(rig.machine.ledger.runs) == 1

    play(tmp_path, test)


def test_nothing_is_obeyed_that_cannot_be_made_durable(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        async with rig.agent():
            await rig.assign()
            await rig.until(lambda r: r.plan == 1)
            rig.disk.full = True
            await rig.assign(("a", Wanted.RUN))
            await asyncio.sleep(20)
            assert rig.machine.present() == []
            rig.disk.full = False
            await rig.until(is_ready("a"))

    play(tmp_path, test)
