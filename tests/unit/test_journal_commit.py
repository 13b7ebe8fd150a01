"""Committing over a store that loses, delays and refuses: interrupted after every step, the chain never forks."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable

import pytest

from scheduler.journal import Batch, Chain, Deposed, Journal, Landed
from shared import documents
from shared.documents import decode, encode
from shared.keys import JOURNAL, Keys, term_key
from shared.store import Write
from tests.sim.virtual_time import VirtualClock, VirtualLoop
from tests.support.fake_store import FakeStore, FakeStoreServer

KEYS = Keys("c")
TERM = 1


class Chamber:
    """A server with a journal that `leader` owns, and another connection to interfere from."""

    def __init__(self, loop: VirtualLoop, latency_s: tuple[float, float] = (0.001, 0.001)) -> None:
        self.clock = VirtualClock(loop)
        self.server = FakeStoreServer(self.clock, seed=1, latency_s=latency_s)
        self.server.create_streams(KEYS)
        self.store: FakeStore = self.server.connect("leader")
        self.other: FakeStore = self.server.connect("other")
        self.retries: list[str] = []
        self._tokens = itertools.count()

    async def journal(self) -> Journal:
        first = documents.Journal(store_id="s", term=0, plan=1, attempt="takeover", holder="me", term_id="t")
        begin = [Write(JOURNAL, encode(first), 0), Write(term_key("t"), b"", 0)]
        revision = await self.store.commit(KEYS.control, begin)
        assert revision == TERM
        chain = Chain("s", TERM, "t", "me", revision)
        return Journal(
            self.store,
            KEYS.control,
            self.clock,
            chain,
            token=lambda: f"attempt-{next(self._tokens)}",
            on_retry=self.retries.append,
        )

    async def take_over(self) -> int:
        """Another leader takes over, whatever the journal is; its term."""
        found = await self.other.read(KEYS.control, JOURNAL)
        theirs = documents.Journal(store_id="s", term=0, plan=99, attempt="theirs", holder="they")
        return await self.other.write(KEYS.control, JOURNAL, encode(theirs), expected=found.revision)

    def value(self, key: str) -> bytes | None:
        entry = self.server.streams[KEYS.control].last.get(key)
        return None if entry is None else entry.value

    def writes(self, key: str) -> list[bytes | None]:
        return [entry.value for _, entry, _ in self.server.writes if entry.key == key]

    def head(self) -> documents.Journal:
        return decode(documents.Journal, self.value(JOURNAL) or b"")


def batch(plan: int) -> Batch:
    return Batch(plan, (Write("status.p", b"%d" % plan), Write("assign.h", b"%d" % plan)))


def run(scenario: Callable[[Chamber], Awaitable[None]], latency_s: tuple[float, float] = (0.001, 0.001)) -> None:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, VirtualLoop)
        runner.run(_run(scenario, Chamber(loop, latency_s)))


async def _run(scenario: Callable[[Chamber], Awaitable[None]], chamber: Chamber) -> None:
    await scenario(chamber)
    await chamber.server.settle()


def test_commits_follow_each_other() -> None:
    async def scenario(chamber: Chamber) -> None:
        journal = await chamber.journal()
        first = await journal.commit(batch(2))
        second = await journal.commit(batch(3))
        assert isinstance(first, Landed)
        assert isinstance(second, Landed)
        assert (first.revision, second.revision, journal.chain.revision) == (3, 7, 7)
        assert (second.journal, chamber.value("status.p")) == (chamber.head(), b"3")

    run(scenario)


def test_a_lost_answer_is_found_out_and_the_first_attempt_counts() -> None:
    async def scenario(chamber: Chamber) -> None:
        journal = await chamber.journal()
        chamber.store.faults.lose_replies = 1.0
        committing = asyncio.create_task(journal.commit(batch(2)))
        await asyncio.sleep(1.0)
        chamber.store.faults.lose_replies = 0.0
        landed = await committing
        assert isinstance(landed, Landed)
        assert (landed.revision, landed.journal.attempt) == (3, "attempt-0")
        assert chamber.writes("status.p") == [b"2"]
        assert chamber.retries == ["OutcomeUnknown"]

    run(scenario)


def test_a_lost_request_is_sent_again_with_another_attempt() -> None:
    async def scenario(chamber: Chamber) -> None:
        journal = await chamber.journal()
        chamber.store.faults.lose_requests = 1.0
        committing = asyncio.create_task(journal.commit(batch(2)))
        await asyncio.sleep(1.0)
        chamber.store.faults.lose_requests = 0.0
        landed = await committing
        assert isinstance(landed, Landed)
        assert landed.journal.attempt == "attempt-1"
        assert chamber.writes("status.p") == [b"2"]

    run(scenario)


def test_a_straggler_of_the_same_leader_is_refused() -> None:
    async def scenario(chamber: Chamber) -> None:
        journal = await chamber.journal()
        chamber.store.faults.straggle, chamber.store.faults.straggle_s = 1.0, 60.0
        committing = asyncio.create_task(journal.commit(batch(2)))
        await asyncio.sleep(1.0)
        chamber.store.faults.straggle = 0.0
        landed = await committing
        assert isinstance(landed, Landed)
        after = await journal.commit(batch(3))
        assert isinstance(after, Landed)
        await chamber.server.settle()  # the first attempt arrives now
        assert chamber.writes("status.p") == [b"2", b"3"]

    run(scenario)


def test_a_straggler_that_arrives_just_before_its_repetition_is_the_one_that_counts() -> None:
    async def scenario(chamber: Chamber) -> None:
        journal = await chamber.journal()
        chamber.store.faults.held = True
        committing = asyncio.create_task(journal.commit(batch(2)))
        await asyncio.sleep(12.0)  # two attempts wait in the frozen server
        chamber.store.faults.held = False
        landed = await committing
        assert isinstance(landed, Landed)
        assert landed.journal == chamber.head()
        assert chamber.writes("status.p") == [b"2"]

    run(scenario)


def test_deposed_between_commits() -> None:
    async def scenario(chamber: Chamber) -> None:
        journal = await chamber.journal()
        await chamber.take_over()
        outcome = await journal.commit(batch(2))
        assert isinstance(outcome, Deposed)
        assert "they" in outcome.reason
        assert chamber.writes("status.p") == []

    run(scenario)


def test_the_store_is_away_for_a_minute() -> None:
    async def scenario(chamber: Chamber) -> None:
        journal = await chamber.journal()
        chamber.store.faults.down = True
        committing = asyncio.create_task(journal.commit(batch(2)))
        await asyncio.sleep(60.0)
        chamber.store.faults.down = False
        assert isinstance(await committing, Landed)
        assert chamber.writes("status.p") == [b"2"]
        assert len(chamber.retries) < 60

    run(scenario)


def test_a_control_stream_that_went_back_deposes() -> None:
    async def scenario(chamber: Chamber) -> None:
        journal = await chamber.journal()
        assert isinstance(await journal.commit(batch(2)), Landed)
        chamber.server.recreate(KEYS.control)
        assert isinstance(await journal.commit(batch(3)), Deposed)

    run(scenario)


def test_a_control_bucket_that_is_gone_deposes() -> None:
    async def scenario(chamber: Chamber) -> None:
        journal = await chamber.journal()
        del chamber.server.streams[KEYS.control]
        assert isinstance(await journal.commit(batch(2)), Deposed)

    run(scenario)


def test_never_two_batches_at_once() -> None:
    async def scenario(chamber: Chamber) -> None:
        journal = await chamber.journal()
        committing = asyncio.create_task(journal.commit(batch(2)))
        await asyncio.sleep(0)
        with pytest.raises(AssertionError):
            await journal.commit(batch(3))
        assert isinstance(await committing, Landed)

    run(scenario)


# Request and answer take 10 ms each; a conflict is followed by a read. So these moments hit every step: before sending,
# on the way, after landing, with the answer on its way, after it.
MOMENTS_S = [0.0, 0.005, 0.0101, 0.015, 0.0201, 0.025, 0.035, 0.045]


@pytest.mark.parametrize("moment_s", MOMENTS_S)
@pytest.mark.parametrize("lossy", [False, True], ids=["healthy", "answers lost"])
def test_a_takeover_at_any_moment_of_a_commit(moment_s: float, lossy: bool) -> None:
    async def scenario(chamber: Chamber) -> None:
        journal = await chamber.journal()
        chamber.store.faults.lose_replies = 1.0 if lossy else 0.0
        committing = asyncio.create_task(journal.commit(batch(2)))
        await asyncio.sleep(moment_s)
        term = await chamber.take_over()
        chamber.store.faults.lose_replies = 0.0
        await committing
        await chamber.server.settle()
        stored = chamber.server.streams[KEYS.control].last
        assert all(entry.revision <= term for entry in stored.values()), "nothing lands after a takeover"
        assert isinstance(await _again(journal, committing.result()), Deposed)

    async def _again(journal: Journal, outcome: Landed | Deposed) -> Landed | Deposed:
        """A leader that has not noticed yet commits once more."""
        return await journal.commit(batch(3)) if isinstance(outcome, Landed) else outcome

    run(scenario, latency_s=(0.01, 0.01))


@pytest.mark.parametrize("moment_s", MOMENTS_S)
@pytest.mark.parametrize("lossy", [False, True], ids=["healthy", "answers lost"])
def test_cancelled_at_any_moment_the_next_commit_tells_what_landed(moment_s: float, lossy: bool) -> None:
    async def scenario(chamber: Chamber) -> None:
        journal = await chamber.journal()
        chamber.store.faults.lose_replies = 1.0 if lossy else 0.0
        first, second = batch(2), batch(3)
        committing = asyncio.create_task(journal.commit(first))
        await asyncio.sleep(moment_s)
        committing.cancel()
        await asyncio.gather(committing, return_exceptions=True)
        chamber.store.faults.lose_replies = 0.0
        landed = await journal.commit(second)
        await chamber.server.settle()
        assert isinstance(landed, Landed)
        assert landed.batch in (first, second)
        assert (landed.journal, landed.revision) == (chamber.head(), journal.chain.revision)
        assert chamber.value("status.p") == b"%d" % landed.batch.plan

    run(scenario, latency_s=(0.01, 0.01))
