"""What befalls the store as a whole, and what operators and users do not do every day. Two runs in five have some.

    stream made anew    somebody deletes a stream and makes it again, empty; later an operator says what counts now
    host forgotten      an operator forgets a host that is silent, dead or not
    minds changed       users change `on_partition` and `overlap` of what runs
    lease edge          a host is cut off or frozen until the very moment around the end of its lease
    late starts         an engine gives no answer when it is to start something, and starts it much later
    deposed server      reads are answered by a stream leader that does not know yet that it is none

They are drawn from a source of chance of their own, so that a seed tells the same story without them, and up to the
first of them with them. Operators do what the CLI does, with the same expectations.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from cli import forgetting
from cli.cluster import TimedOut
from runner import permits
from shared.documents import Assignment, Heartbeat, Journal, Report, decode, encode
from shared.errors import Refused, StoreError
from shared.intents import ConfirmIntent, HostIntent, StoreIntent
from shared.keys import JOURNAL, STORE_INTENT, assign_key, confirm_intent_key
from tests.sim.faults import HOST_ROLES, SCHEDULER_ROLES, Fault, Shape
from tests.sim.moves import items_of
from tests.support.fake_store import FakeStore

if TYPE_CHECKING:
    from tests.sim.world import World

SHARE = 0.4  # of all runs
STREAMS = ("pipelines", "control", "hosts", "reports")
STREAMS_MAX = 2  # of one run: who loses all that says what runs where cannot know it
STRANGERS = {"second agent", "host replaced", "state lost", "all traces lost"}  # after which heartbeats tell nothing
FORGET_S = 60.0  # the time-out of `shoal hosts forget`
EDGES_S = (-0.3, -0.02, -0.001, 0.0, 0.001, 0.02, 0.3, 2.0, 2.25, 2.26, 4.0, 4.25)  # after the end of a lease
GIVEN_UP_S = 25.0  # a lease that is still far from its end was extended: no edge to hit

KINDS = ("stream made anew", "host forgotten", "minds changed", "lease edge")
LASTING = ("late starts", "deposed server")  # as any other fault, from its begin to its end


def draw(seed: int, shape: Shape) -> list[Fault]:
    """All accidents of a run."""
    chance = random.Random(f"{seed}:accidents")
    if chance.random() >= SHARE:
        return []
    kinds = [kind for kind in (*KINDS, *LASTING) if chance.random() < 0.5]
    streams = chance.sample(STREAMS, STREAMS_MAX)
    if {"control", "reports"} <= set(streams) and STRANGERS & set(shape.kinds):
        streams = ["control", "hosts"]  # else nothing at all would tell what runs on a host
    found = []
    at = chance.uniform(4, 20)
    while at < shape.faults_s and kinds:
        kind = chance.choice(kinds)
        match kind:
            case "stream made anew":
                target, how, amount = chance.choice(streams), "", 0.0
            case "lease edge":
                target, amount = chance.choice(shape.hosts), chance.choice(EDGES_S)
                how = chance.choice(("agent frozen", "host cut off", "heartbeats cut off"))
            case "late starts":
                target, how, amount = chance.choice(shape.hosts), "", chance.uniform(3, 40)
            case "deposed server":
                nodes = [f"{node}.{role}" for node in shape.schedulers for role in SCHEDULER_ROLES]
                nodes += [f"{node}.{role}" for node in shape.hosts for role in HOST_ROLES]
                target, how, amount = chance.choice(nodes), "", chance.uniform(0.1, 3.5)
            case _:
                target, how, amount = chance.choice(shape.hosts), "", 0.0
        lasts_s = chance.uniform(1, 15) if kind in LASTING else 0.0
        found.append(Fault(at, at + lasts_s, kind, target, amount, how))
        at += chance.expovariate(1 / chance.choice((5.0, 20.0)))
    return found


class Accidents:
    """What happens when one of them begins, and what operators go on doing afterwards."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._chance = random.Random(f"{world.seed}:operators")
        self._connection: FakeStore | None = None
        self._lost: set[str] = set()  # ids of stores
        self._kinds: dict[str, Callable[[Fault], Awaitable[None]]] = {
            "stream made anew": self._make_anew,
            "host forgotten": self._forget,
            "minds changed": self._change_minds,
            "lease edge": self._hit_the_edge,
        }

    async def befall(self, fault: Fault) -> None:
        """The accident and its consequences; returns when all is done that has to be done about it at once."""
        await self._kinds[fault.kind](fault)

    async def look_after(self) -> None:
        """What operators do in the end about everything that waits for their word."""
        world = self._world
        if not any(fault.kind == "stream made anew" for fault in world.faults):
            return
        await self._accept()
        await self._confirm()

    # --- streams

    async def _make_anew(self, fault: Fault) -> None:
        world = self._world
        bucket = getattr(world.keys, fault.target)
        data = world.server.value(world.keys.control, JOURNAL)
        if fault.target == "control" and data is not None:
            self._lost.add(decode(Journal, data).store_id)
        world.server.make_anew(bucket, world.loop.time())
        await world.clock.sleep(self._chance.uniform(0.5, 25.0))
        if fault.target == "control":
            await self._accept()
        elif fault.target == "pipelines":
            for pipeline in sorted(world.users.kinds):
                if self._chance.random() < 0.5:
                    await world.users.write_again(pipeline)
            if self._chance.random() < 0.5:
                await self._confirm()

    async def _accept(self) -> None:
        """`shoal store accept`, for the agents of one other store."""
        world = self._world
        live = world.server.live(world.keys.control)
        if JOURNAL not in live:
            return
        journal = decode(Journal, live[JOURNAL])
        beats = {h: decode(Heartbeat, v) for h, v in world.server.live(world.keys.hosts).items() if h in world.machines}
        reports = {h: decode(Report, v) for h, v in world.server.live(world.keys.reports).items()}
        old = {beat.store_id for beat in beats.values()}
        old |= {report.store_id for host, report in reports.items() if host not in beats}
        old |= {stray.store_id for beat in beats.values() for stray in beat.strays}
        known = {"", journal.store_id, *journal.accepted}
        # What agents do not say, an operator has noted: all of them may have lost their state meanwhile.
        old = (old - known) or (self._lost - known)
        if not old:
            return
        replaces = min(old)
        world.tell(f"operator: store {journal.store_id} may command the agents of {replaces}")
        intent = encode(StoreIntent(accept=journal.store_id, replaces=replaces))
        await self._write(world.keys.operator, STORE_INTENT, intent)

    async def _confirm(self) -> None:
        """`shoal store confirm pipelines`."""
        world = self._world
        data = world.server.value(world.keys.control, JOURNAL)
        hold = None if data is None else decode(Journal, data).holds.get("pipelines")
        if data is None or hold is None:
            return
        word = ConfirmIntent(store_id=decode(Journal, data).store_id, plan=hold.plan, created=hold.mark.created)
        key = confirm_intent_key("pipelines")
        if world.server.value(world.keys.operator, key) == encode(word):
            return
        world.tell("operator: what the stream of pipelines says counts now")
        await self._write(world.keys.operator, key, encode(word))

    # --- hosts

    async def _forget(self, fault: Fault) -> None:
        """`shoal hosts forget`, as soon as the host is silent; given up when it is heard again or nothing happens."""
        world, host = self._world, fault.target
        if not await self._until(lambda: self._silent(host), FORGET_S / 2) or self._going_on(host):
            return
        before = world.users.intents.get(host, HostIntent())
        store, left_s = self._connected(), world.shape.faults_s - world.loop.time()
        try:
            known = await forgetting.look(store.read, world.keys, host)
            if forgetting.objection(known):
                return
            await world.users.intend(host, HostIntent(cordon=True, forget=True))
            await forgetting.until_let_go(store.read, world.keys, known, min(FORGET_S, left_s))
            await forgetting.delete(store.read, store, world.keys, known)
        except (StoreError, Refused, TimedOut) as error:
            world.tell(f"operator: {host} stays: {error}")
        else:
            before = HostIntent()
            world.tell(f"operator: {host} is forgotten")
        await world.users.intend(host, before)

    def _silent(self, host: str) -> bool:
        """Whether the CLI would call it silent: nothing heard for a few heartbeats."""
        world = self._world
        past = world.server.streams[world.keys.hosts].past.get(host, [])
        return bool(past) and past[-1][0] < world.loop.time() - 3.0

    def _going_on(self, host: str) -> bool:
        """Whether something exclusive may run on there for ever, for all that its document says."""
        data = self._world.server.value(self._world.keys.control, assign_key(host))
        if data is None:
            return False
        return any(not i.lease_bound and i.overlap == "exclusive" for i in items_of(decode(Assignment, data)))

    async def _until(self, done: Callable[[], bool], timeout_s: float) -> bool:
        world = self._world
        end = min(world.loop.time() + timeout_s, world.shape.faults_s)
        while not done():
            if world.loop.time() >= end:
                return False
            await world.clock.sleep(0.25)
        return True

    # --- users

    async def _change_minds(self, fault: Fault) -> None:
        for pipeline in sorted(self._world.users.kinds):
            if self._chance.random() < 0.4:
                await self._world.users.change_mind(pipeline, self._chance)

    # --- leases

    async def _hit_the_edge(self, fault: Fault) -> None:
        """A fault from now on that ends `amount` after the end of the lease as it is now."""
        world, machine = self._world, self._world.machines[fault.target]
        text = machine.engine.tmpfs.lease
        lease = None if text is None else permits.parse_lease(text)
        now = world.loop.time()
        if lease is None or not machine.on:
            return
        until = machine.clock.real(lease.deadline_s) + fault.amount
        if now < until < now + GIVEN_UP_S:
            target = f"{fault.target}.heart" if fault.how == "heartbeats cut off" else fault.target
            how = "timers last" if fault.how == "agent frozen" else "held"
            edge = Fault(now, until, fault.how, target, how=how)
            world.faults.append(edge)
            await world.suffer(edge)

    def _connected(self) -> FakeStore:
        if self._connection is None:  # late: who connects when decides on everybody's small delays
            self._connection = self._world.server.connect("operators")
        return self._connection

    async def _write(self, bucket: str, key: str, value: bytes | None, *, expected: int | None = None) -> None:
        """Once; an operator who is not answered looks again later."""
        try:
            await self._connected().write(bucket, key, value, expected=expected)
        except StoreError as error:
            self._world.tell(f"operator: {bucket} {key} was not written: {error}")
