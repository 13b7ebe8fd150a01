"""Elections between several instances, on virtual time over a store that can fail."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from scheduler.elector import Elector, Role
from scheduler.takeover import Leadership, holder_of
from shared import documents
from shared.documents import decode
from shared.keys import JOURNAL, LEASE, Keys
from shared.store import Change
from tests.sim.virtual_time import VirtualClock, VirtualLoop
from tests.support.fake_store import FakeStore, FakeStoreServer

KEYS = Keys("c")


@dataclass
class Candidate:
    """One instance with what it was told."""

    elector: Elector
    store: FakeStore
    task: asyncio.Task[None]
    watch: asyncio.Task[None]
    led: list[tuple[float, Leadership]] = field(default_factory=list)
    lost: list[tuple[float, int, str]] = field(default_factory=list)
    eligible: bool = True

    @property
    def leads(self) -> bool:
        return len(self.led) > len(self.lost)

    def crash(self) -> None:
        self.task.cancel()
        self.watch.cancel()


class Arena:
    """A store and the instances that were started on it."""

    def __init__(self, loop: VirtualLoop) -> None:
        self.loop = loop
        self.clock = VirtualClock(loop)
        self.server = FakeStoreServer(self.clock, seed=2)
        self.server.create_streams(KEYS)
        self.candidates: list[Candidate] = []
        self._tokens = itertools.count()

    def start(self, name: str) -> Candidate:
        store = self.server.connect(name)
        holder: list[Candidate] = []
        elector = Elector(
            store,
            KEYS,
            self.clock,
            holder=f"{name}-process",
            name=name,
            token=lambda: f"token-{next(self._tokens)}",
            eligible=lambda: holder[0].eligible,
            on_leading=lambda leadership: holder[0].led.append((self.loop.time(), leadership)),
            on_lost=lambda term, reason: holder[0].lost.append((self.loop.time(), term, reason)),
        )
        task = asyncio.create_task(elector.run(), name=name)
        watch = asyncio.create_task(self._watch(name, elector), name=f"{name} watch")
        candidate = Candidate(elector, store, task, watch)
        holder.append(candidate)
        self.candidates.append(candidate)
        return candidate

    async def _watch(self, name: str, elector: Elector) -> None:
        """The control watch of the loop, over a connection of its own."""
        async for item in self.server.connect(f"{name}-watch").watch(KEYS.control):
            if isinstance(item, Change) and item.entry.key == LEASE and not holder_of(item.entry):
                elector.look()

    async def until(self, condition: Callable[[], bool], seconds: float, *, step_s: float = 0.01) -> float:
        """How long `condition` took to come true, at most `seconds`."""
        began = self.loop.time()
        while not condition():
            assert self.loop.time() < began + seconds, f"not within {seconds} s"
            await asyncio.sleep(step_s)
        return self.loop.time() - began

    def journals(self) -> list[documents.Journal]:
        return [
            decode(documents.Journal, entry.value or b"") for _, entry, _ in self.server.writes if entry.key == JOURNAL
        ]


def run(scenario: Callable[[Arena], Awaitable[None]]) -> None:
    async def main(loop: VirtualLoop) -> None:
        arena = Arena(loop)
        await scenario(arena)
        for candidate in arena.candidates:
            candidate.crash()

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, VirtualLoop)
        runner.run(main(loop))


def test_the_first_instance_leads_at_once_and_makes_the_store_id() -> None:
    async def scenario(arena: Arena) -> None:
        a = arena.start("a")
        await arena.until(lambda: a.leads, 0.1)
        leadership = a.led[0][1]
        (journal,) = arena.journals()
        assert (leadership.plan, leadership.store_id) == (1, journal.store_id)
        assert leadership.term == arena.server.streams[KEYS.control].last[JOURNAL].revision

    run(scenario)


def test_a_leader_that_renews_stays_leader() -> None:
    async def scenario(arena: Arena) -> None:
        a = arena.start("a")
        b = arena.start("b")
        await asyncio.sleep(120)
        assert [len(a.led) + len(b.led), len(a.lost) + len(b.lost)] == [1, 0]

    run(scenario)


def test_a_crashed_leader_is_followed_within_three_seconds() -> None:
    async def scenario(arena: Arena) -> None:
        a = arena.start("a")
        await arena.until(lambda: a.leads, 0.1)
        b = arena.start("b")
        await asyncio.sleep(3.3)
        a.crash()
        took = await arena.until(lambda: b.leads, 3.0)
        assert took >= 1.5, "no leader may be declared silent sooner than it could have changed its server"
        assert (b.led[0][1].plan, b.led[0][1].store_id) == (2, a.led[0][1].store_id)

    run(scenario)


def test_a_leader_that_leaves_is_followed_at_once() -> None:
    async def scenario(arena: Arena) -> None:
        a = arena.start("a")
        await arena.until(lambda: a.leads, 0.1)
        b = arena.start("b")
        await asyncio.sleep(1.23)
        began = arena.loop.time()
        await a.elector.leave()
        await arena.until(lambda: b.leads, 0.1)
        assert b.led[0][0] - began <= 0.1
        assert a.elector.role is Role.LEFT
        assert a.lost[0][2] == "leaving on purpose"
        await asyncio.wait_for(a.task, 1.0)

    run(scenario)


def test_a_standby_that_leaves_leaves_the_lease_alone() -> None:
    async def scenario(arena: Arena) -> None:
        a = arena.start("a")
        await arena.until(lambda: a.leads, 0.1)
        b = arena.start("b")
        await asyncio.sleep(1)
        await b.elector.leave()
        await asyncio.sleep(5)
        assert a.leads

    run(scenario)


def test_an_instance_that_cannot_plan_does_not_claim() -> None:
    async def scenario(arena: Arena) -> None:
        a = arena.start("a")
        a.eligible = False
        await asyncio.sleep(30)
        assert not a.led
        a.eligible = True
        a.elector.look()
        await arena.until(lambda: a.leads, 0.05)

    run(scenario)


def test_a_leader_that_is_cut_off_is_followed_and_learns_of_it() -> None:
    async def scenario(arena: Arena) -> None:
        a = arena.start("a")
        await arena.until(lambda: a.leads, 0.1)
        b = arena.start("b")
        await asyncio.sleep(2)
        a.store.faults.held = True
        await arena.until(lambda: b.leads, 3.5)
        assert a.leads, "it cannot know yet"
        a.store.faults.held = False
        await arena.until(lambda: not a.leads, 2.0)
        await asyncio.sleep(30)
        assert b.leads
        assert len(a.led) == 1

    run(scenario)


def test_a_store_that_is_away_for_a_minute_deposes_nobody() -> None:
    async def scenario(arena: Arena) -> None:
        a = arena.start("a")
        await arena.until(lambda: a.leads, 0.1)
        b = arena.start("b")
        await asyncio.sleep(2)
        a.store.faults.down = b.store.faults.down = True
        await asyncio.sleep(60)
        a.store.faults.down = b.store.faults.down = False
        await asyncio.sleep(30)
        assert a.leads
        assert not b.led

    run(scenario)


@pytest.mark.parametrize("fault", ["lose_replies", "lose_requests"])
def test_a_lost_renewal_is_repeated_before_a_standby_gives_up(fault: str) -> None:
    async def scenario(arena: Arena) -> None:
        a = arena.start("a")
        await arena.until(lambda: a.leads, 0.1)
        b = arena.start("b")
        for _ in range(5):
            await asyncio.sleep(3.1)
            setattr(a.store.faults, fault, 1.0)
            await asyncio.sleep(0.55)  # one renewal
            setattr(a.store.faults, fault, 0.0)
        await asyncio.sleep(5)
        assert a.leads
        assert not b.led
        assert a.store.server_changes >= 5

    run(scenario)


@pytest.mark.parametrize("fault", ["lose_replies", "lose_requests"])
def test_a_takeover_without_an_answer_is_found_out(fault: str) -> None:
    async def scenario(arena: Arena) -> None:
        a = arena.start("a")
        await arena.until(lambda: a.leads, 0.1)
        b = arena.start("b")
        b.eligible = False
        a.crash()
        await asyncio.sleep(5)
        b.eligible = True
        await arena.until(lambda: b.elector.role is Role.CLAIMING, 2.0, step_s=0.0005)
        await asyncio.sleep(0.007)  # the journal is read by now, and the batch on its way
        setattr(b.store.faults, fault, 1.0)
        await asyncio.sleep(0.5)
        setattr(b.store.faults, fault, 0.0)
        await arena.until(lambda: b.leads, 2.0)
        assert b.led[0][1].term == arena.server.streams[KEYS.control].last[JOURNAL].revision
        await asyncio.sleep(20)
        assert len(b.led) == 1
        assert not b.lost

    run(scenario)


def test_a_takeover_that_lands_late_leaves_one_leader() -> None:
    async def scenario(arena: Arena) -> None:
        a = arena.start("a")
        await arena.until(lambda: a.leads, 0.1)
        b = arena.start("b")
        c = arena.start("c")
        c.eligible = False
        a.crash()
        await arena.until(lambda: b.elector.role is Role.CLAIMING, 5.0)
        b.store.faults.straggle, b.store.faults.straggle_s = 1.0, 5.0  # all writes of b, also its repetitions
        c.eligible = True
        await asyncio.sleep(20)
        b.store.faults.straggle = 0.0
        await asyncio.sleep(20)
        leading = [candidate for candidate in (b, c) if candidate.leads]
        assert len(leading) == 1
        lease = decode(documents.Lease, arena.server.streams[KEYS.control].last[LEASE].value or b"")
        assert lease.name == ("b" if leading[0] is b else "c")

    run(scenario)


def test_a_refused_commit_ends_the_leadership() -> None:
    async def scenario(arena: Arena) -> None:
        a = arena.start("a")
        await arena.until(lambda: a.leads, 0.1)
        a.elector.resign(a.led[0][1].term)
        await arena.until(lambda: bool(a.lost), 0.05)
        await arena.until(lambda: a.leads, 1.0)  # nobody else is there
        assert a.led[1][1].term > a.led[0][1].term
        a.elector.resign(a.led[0][1].term)  # late news of the former term
        await asyncio.sleep(5)
        assert a.leads

    run(scenario)


def test_a_control_stream_that_was_made_anew_is_led_anew_under_another_store_id() -> None:
    async def scenario(arena: Arena) -> None:
        a = arena.start("a")
        await arena.until(lambda: a.leads, 0.1)
        await asyncio.sleep(5)
        arena.server.recreate(KEYS.control)
        await arena.until(lambda: len(a.led) == 2, 20.0)
        assert a.led[0][1].store_id != a.led[1][1].store_id

    run(scenario)


def test_five_instances_one_of_which_crashes_every_few_seconds() -> None:
    async def scenario(arena: Arena) -> None:
        alive = [arena.start(f"n{number}") for number in range(5)]
        for number in range(20):
            await arena.until(lambda: any(candidate.leads for candidate in alive), 4.0)
            leading = [candidate for candidate in alive if candidate.leads]
            assert len(leading) == 1
            leading[0].crash()
            alive.remove(leading[0])
            alive.append(arena.start(f"m{number}"))
        plans = [journal.plan for journal in arena.journals()]
        assert plans == list(range(1, len(plans) + 1)), "every landed takeover has a plan number of its own"

    run(scenario)


def test_a_journal_that_cannot_be_read_is_said_once_and_not_tried_in_a_loop(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Nor with a lease that nobody holds, which is claimed at once. Put right again, it is gone on from."""

    async def scenario(arena: Arena) -> None:
        operator = arena.server.connect("operator")
        await operator.write(KEYS.control, LEASE, b"no lease")
        await operator.write(KEYS.control, JOURNAL, b"no journal")
        one = arena.start("one")
        reads = 0
        read = one.store.read

        async def counted(*arguments: Any, **named: Any) -> Any:
            nonlocal reads
            reads += 1
            return await read(*arguments, **named)

        one.store.read = counted  # type: ignore[method-assign]
        await asyncio.sleep(10.0)
        assert not one.led
        assert 10 < reads < 500, "it goes on trying, at a pace"
        assert capsys.readouterr().out.count("Nobody can lead") == 1
        good = documents.Journal(store_id="s", term=1, plan=7, attempt="a", holder="before")
        await operator.write(KEYS.control, JOURNAL, documents.encode(good))
        await arena.until(lambda: one.leads, 5.0)
        assert one.led[0][1].plan == 8

    run(scenario)
