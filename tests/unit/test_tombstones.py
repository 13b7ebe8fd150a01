"""Writing tombstones: what the store's answer means, and that nothing is assumed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from scheduler.core.view import Tombstone
from scheduler.tombstones import Outcome, Tombstones
from shared.documents import Heartbeat, Session, decode, encode
from shared.keys import Keys
from tests.sim.virtual_time import VirtualClock, VirtualLoop
from tests.support.fake_store import FakeStore, FakeStoreServer

KEYS = Keys("c")
SESSION = Session("agent", "boot", 3)
BEAT = Heartbeat(
    store_id="s",
    host="h",
    session=SESSION,
    sequence=9,
    lease_s=8,
    fence_kill_s=2,
    poll_s=0.25,
    cpu=4,
    memory_bytes=1,
    labels={"zone": "a"},
)


class Yard:
    def __init__(self, loop: VirtualLoop) -> None:
        self.server = FakeStoreServer(VirtualClock(loop), seed=3)
        self.server.create_streams(KEYS)
        self.leader: FakeStore = self.server.connect("leader")
        self.agent: FakeStore = self.server.connect("agent")
        self.tombstones = Tombstones(self.leader, KEYS)

    async def beat(self, session: Session = SESSION) -> Tombstone:
        """A heartbeat, and the tombstone that would follow it."""
        beat = Heartbeat(**{**{name: getattr(BEAT, name) for name in BEAT.__dataclass_fields__}, "session": session})
        return Tombstone("h", session, await self.agent.write(KEYS.hosts, "h", encode(beat)), beat)

    async def bury(self, *stones: Tombstone) -> list[Outcome]:
        return [result.outcome for result in await self.tombstones.write(stones, "s")]

    async def there(self) -> Heartbeat:
        entry = await self.agent.read(KEYS.hosts, "h")
        assert entry.value is not None
        return decode(Heartbeat, entry.value)


def run(scenario: Callable[[Yard], Awaitable[None]]) -> None:
    async def main(loop: VirtualLoop) -> None:
        await scenario(Yard(loop))

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, VirtualLoop)
        runner.run(main(loop))


def test_it_is_the_heartbeat_with_the_dead_session_and_is_written_once() -> None:
    async def scenario(yard: Yard) -> None:
        stone = await yard.beat()
        assert await yard.bury(stone) == [Outcome.WRITTEN]
        found = await yard.there()
        assert (found.dead, found.session, found.labels) == (SESSION, SESSION, {"zone": "a"})
        assert await yard.bury(stone) == [], "asked for again before the watch shows it"

    run(scenario)


def test_a_heartbeat_in_between_refuses_it() -> None:
    async def scenario(yard: Yard) -> None:
        stone = await yard.beat()
        again = await yard.beat()
        assert await yard.bury(stone) == [Outcome.REFUSED]
        assert (await yard.there()).dead is None
        assert await yard.bury(stone) == [], "that revision is over for good"
        assert await yard.bury(again) == [Outcome.WRITTEN]

    run(scenario)


def test_the_tombstone_of_another_leader_is_as_good() -> None:
    async def scenario(yard: Yard) -> None:
        stone = await yard.beat()
        await yard.agent.write(KEYS.hosts, "h", encode(stone.document("s")), expected=stone.revision)
        assert await yard.bury(stone) == [Outcome.WRITTEN]

    run(scenario)


def test_a_lost_answer_is_looked_up_and_no_answer_at_all_is_tried_again() -> None:
    async def scenario(yard: Yard) -> None:
        stone = await yard.beat()
        yard.leader.faults.down = True
        assert await yard.bury(stone) == [Outcome.UNKNOWN]
        yard.leader.faults.down = False
        yard.leader.faults.lose_replies = 1.0
        assert await yard.bury(stone) == [Outcome.UNKNOWN]
        assert (await yard.there()).dead == SESSION, "it was stored, and nobody knows"
        yard.leader.faults.lose_replies = 0.0
        assert await yard.bury(stone) == [Outcome.WRITTEN]

    run(scenario)


def test_a_key_that_is_gone_is_made_anew_unless_its_agent_was_faster() -> None:
    async def scenario(yard: Yard) -> None:
        await yard.beat()
        marker = await yard.agent.write(KEYS.hosts, "h", None)
        stone = Tombstone("h", SESSION, marker, None)
        back = await yard.agent.write(KEYS.hosts, "h", encode(BEAT), expected=marker)
        assert await yard.bury(stone) == [Outcome.REFUSED]
        marker = await yard.agent.write(KEYS.hosts, "h", None, expected=back)
        assert await yard.bury(Tombstone("h", SESSION, marker, None)) == [Outcome.WRITTEN]
        found = await yard.there()
        assert (found.host, found.dead, found.drivers) == ("h", SESSION, {})

    run(scenario)
