"""Pulses over a store on virtual time: silence grows only in pulses of the own term that came back in time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

from scheduler.pulse import Hosts, Pulse
from scheduler.tally import GRACE_S
from shared import documents
from shared.documents import Heartbeat, Session, encode
from shared.keys import PULSE, Keys
from tests.sim.virtual_time import VirtualClock, VirtualLoop
from tests.support.fake_store import FakeStore, FakeStoreServer

KEYS = Keys("c")
TERM = 7


class Hall:
    """A pulse and the hosts that it watches."""

    def __init__(self, loop: VirtualLoop) -> None:
        self.loop = loop
        self.clock = VirtualClock(loop)
        self.server = FakeStoreServer(self.clock, seed=3)
        self.server.create_streams(KEYS)
        self.store: FakeStore = self.server.connect("pulse")
        self.agents: FakeStore = self.server.connect("agents")
        self.snapshots: list[tuple[float, Hosts]] = []
        self.pulses: list[float] = []
        self.pulse = Pulse(
            self.store,
            KEYS,
            self.clock,
            thresholds_s=(4.0, 12.0),
            on_hosts=lambda hosts: self.snapshots.append((loop.time(), hosts)),
            on_pulse=lambda took_s, _: self.pulses.append(took_s),
        )

    async def beat(self, host: str, seconds: float) -> None:
        """An agent's heartbeats for so long, one a second."""
        beat = Heartbeat(
            store_id="s",
            host=host,
            session=Session("a", "b", 1),
            sequence=0,
            lease_s=8,
            fence_kill_s=2,
            poll_s=0.25,
            cpu=4,
            memory_bytes=1,
        )
        end = self.loop.time() + seconds
        while self.loop.time() < end:
            beat = replace(beat, sequence=beat.sequence + 1)
            await self.agents.write(KEYS.hosts, host, encode(beat))
            await asyncio.sleep(1.0)

    @property
    def now(self) -> Hosts:
        return self.snapshots[-1][1]

    async def fresh(self) -> Hosts:
        """A snapshot with every silence up to date."""
        count = len(self.snapshots)
        self.pulse.refresh()
        while not any(hosts.fresh for _, hosts in self.snapshots[count:]):  # noqa: ASYNC110 - virtual time
            await asyncio.sleep(0.01)
        return self.now

    async def silence(self, host: str) -> float:
        return (await self.fresh()).views[host].silence_s


def run(scenario: Callable[[Hall], Awaitable[None]]) -> None:
    async def main(loop: VirtualLoop) -> None:
        hall = Hall(loop)
        running = asyncio.create_task(hall.pulse.run())
        await scenario(hall)
        running.cancel()

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, VirtualLoop)
        runner.run(main(loop))


def test_a_host_that_stops_is_announced_at_each_threshold() -> None:
    async def scenario(hall: Hall) -> None:
        hall.pulse.lead("s", TERM)
        await hall.beat("h", 5)
        stopped = hall.loop.time()
        await asyncio.sleep(20)
        first = {
            level: next(at for at, hosts in hall.snapshots if hosts.views["h"].silence_s >= level) - stopped
            for level in (4.0, 12.0)
        }
        # The last heartbeat is up to a second old, and the pulse after it may follow at once.
        assert 2.5 <= first[4.0] <= 4.2
        assert 10.5 <= first[12.0] <= 12.4

    run(scenario)


def test_a_quiet_cluster_hands_over_nothing() -> None:
    async def scenario(hall: Hall) -> None:
        hall.pulse.lead("s", TERM)
        async with asyncio.TaskGroup() as group:
            for number in range(20):
                group.create_task(hall.beat(f"h{number}", 60))
            await asyncio.sleep(16)  # the thresholds of the own age are behind
            before = len(hall.snapshots)
            await asyncio.sleep(40)
            assert len(hall.snapshots) == before
        assert len(hall.now.views) == 20

    run(scenario)


def test_hosts_that_start_together_are_handed_over_together() -> None:
    async def scenario(hall: Hall) -> None:
        await asyncio.sleep(1)
        before = len(hall.snapshots)
        async with asyncio.TaskGroup() as group:
            for number in range(300):
                group.create_task(hall.beat(f"h{number}", 1))
        assert len(hall.now.views) == 300
        assert len(hall.snapshots) - before < 10

    run(scenario)


def test_a_standby_counts_nothing_and_a_takeover_begins_at_zero() -> None:
    async def scenario(hall: Hall) -> None:
        await hall.beat("h", 2)
        await asyncio.sleep(30)
        assert await hall.silence("h") == 0.0
        hall.pulse.lead("s", TERM)
        await asyncio.sleep(3)
        assert 2.0 <= await hall.silence("h") <= 3.0
        assert hall.now.term_age_s == hall.now.views["h"].silence_s
        hall.pulse.stop_leading()
        await asyncio.sleep(30)
        assert await hall.silence("h") == 0.0
        hall.pulse.lead("s", TERM + 1)
        await asyncio.sleep(1)
        assert await hall.silence("h") <= 1.0

    run(scenario)


def test_pulses_of_another_leader_count_nothing() -> None:
    async def scenario(hall: Hall) -> None:
        hall.pulse.lead("s", TERM)
        await hall.beat("h", 2)
        for number in range(100):
            for pulse in (documents.Pulse("s", TERM + 1, number), documents.Pulse("other", TERM, number)):
                await hall.agents.write(KEYS.hosts, PULSE, encode(pulse))
        assert await hall.silence("h") <= 2.0

    run(scenario)


def test_nobody_grows_silent_while_the_watch_stands_still() -> None:
    async def scenario(hall: Hall) -> None:
        hall.pulse.lead("s", TERM)
        await hall.beat("h", 2)
        hall.store.faults.held = True
        hall.agents.faults.held = True
        await asyncio.sleep(60)
        assert await hall.silence("h") <= 2.0
        hall.store.faults.held = False
        hall.agents.faults.held = False
        await asyncio.sleep(GRACE_S - 2)
        assert await hall.silence("h") == 0.0, "after an interruption nobody is silent before the grace is over"
        await asyncio.sleep(8)
        assert await hall.silence("h") >= GRACE_S

    run(scenario)


def test_a_reconnection_starts_every_silence_anew_with_grace() -> None:
    async def scenario(hall: Hall) -> None:
        hall.pulse.lead("s", TERM)
        await hall.beat("h", 2)
        await asyncio.sleep(9)
        assert await hall.silence("h") > 8
        hall.store.stall_watches()
        await asyncio.sleep(10)
        assert await hall.silence("h") == 0.0
        async with asyncio.TaskGroup() as group:
            group.create_task(hall.beat("heard", 1))
        await asyncio.sleep(4)
        assert await hall.silence("heard") >= 3.5, "who was heard since is counted as always"

    run(scenario)


def test_slow_pulses_start_every_silence_anew() -> None:
    async def scenario(hall: Hall) -> None:
        hall.pulse.lead("s", TERM)
        await hall.beat("h", 2)
        hall.store.faults.watch_delay_s = 3.0
        await asyncio.sleep(60)
        assert await hall.silence("h") == 0.0
        hall.store.faults.watch_delay_s = 0.0
        await asyncio.sleep(GRACE_S + 6)
        assert await hall.silence("h") >= GRACE_S

    run(scenario)


def test_a_silence_is_never_longer_than_the_time_that_passed() -> None:
    async def scenario(hall: Hall) -> None:
        hall.pulse.lead("s", TERM)
        await hall.beat("h", 1)
        heard = hall.loop.time() - 1.0
        for number in range(60):
            # Requests and answers get lost, so that pulses are repeated; a late one must not count as well.
            hall.store.faults.lose_replies = 0.5 * (number % 2)
            hall.store.faults.lose_requests = 0.3 * (number % 3)
            await asyncio.sleep(0.7)
            assert await hall.silence("h") <= hall.loop.time() - heard

    run(scenario)


def test_the_mark_follows_what_was_read() -> None:
    async def scenario(hall: Hall) -> None:
        await hall.beat("h", 3)
        mark = (await hall.fresh()).mark
        assert mark.sequence == hall.server.streams[KEYS.hosts].sequence == 3

    run(scenario)


def test_an_empty_list_is_handed_over() -> None:
    async def scenario(hall: Hall) -> None:
        await asyncio.sleep(1)
        assert not hall.now.views

    run(scenario)
