"""The interleavings of the abstract model that are a few milliseconds wide, and others that chance meets rarely, as
scripts (`traces`). Each says which rule it is for; with that rule in place nothing bad happens in it."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from shared.documents import Lease, decode
from shared.intents import HostIntent
from shared.keys import JOURNAL, LEASE
from tests.sim.faults import Fault
from tests.sim.traces import document, heard, revision, runs, settled, suffering, when
from tests.sim.world import World

SILENT_S = 12.0  # the silence after which what is exclusive moves


async def _next_session_unacknowledged(world: World) -> None:
    """The first session of a host lapses. The next one is heard, and its agent does not learn that."""
    number = heard(world).session.number
    heart = world.agents["h0"]
    async with suffering(world, "heartbeats cut off", "h0.heart", "down"):
        await when(world, lambda: heart.agent and heart.agent.heart.session.number > number, "the session lapses")
    async with suffering(world, "heartbeats cut off", "h0.heart", "deaf"):
        await when(world, lambda: heard(world).session.number > number, "the next session is heard")


async def unacknowledged(world: World) -> None:
    """A session that the leader has answered, of which the agent has no acknowledgement, so that it cannot lapse: its
    heartbeat lands when its host has been given up and the move is on its way.

    For the tombstone, and for its compare-and-set.
    """
    await settled(world)
    stuck = AsyncExitStack()
    await _next_session_unacknowledged(world)
    async with suffering(world, "heartbeats cut off", "h0.heart", "down"):
        await when(world, lambda: document(world).session == heard(world).session, "it is answered")
        await world.clock.sleep(SILENT_S - 1.5)
        assert heard(world).dead is None
        await stuck.enter_async_context(suffering(world, "connection frozen", "s0.main"))
        await world.clock.sleep(3.0)  # the leader has decided by now
    await _resumed_or_not(world)
    await stuck.aclose()


async def back_behind_its_tombstone(world: World) -> None:
    """A host that returns between its tombstone and the commit that moves what it had.

    For the session in the assignment, which an agent looks at before it starts something.
    """
    await settled(world)
    stuck = AsyncExitStack()
    async with suffering(world, "host cut off", "h0", "down"):
        await when(world, lambda: heard(world).dead is not None, "its session is declared dead")
        await world.clock.sleep(0.007)  # the leader knows it, and has not sent what follows from it
        await stuck.enter_async_context(suffering(world, "connection frozen", "s0.main"))
        await world.clock.sleep(1.0)  # the leader has seen it, and decided
    await _resumed_or_not(world)
    await stuck.aclose()


async def behind_a_strangers_tombstone(world: World) -> None:
    """A session that cannot lapse, as before; meanwhile another agent claims its host's name, falls silent and is
    declared dead. The first one returns when the move of what it had is on its way.

    For a session that never writes over what somebody else wrote.
    """
    await settled(world)
    stuck = AsyncExitStack()
    await _next_session_unacknowledged(world)
    async with suffering(world, "heartbeats cut off", "h0.heart", "down"):
        first = heard(world).session
        await when(world, lambda: document(world).session == first, "it is answered")
        async with suffering(world, "second agent", "h0"):
            await when(world, lambda: heard(world).session.agent != first.agent, "another agent has its name")
        await when(world, lambda: heard(world).dead is not None, "that one is declared dead")
        await world.clock.sleep(0.007)
        await stuck.enter_async_context(suffering(world, "connection frozen", "s0.main"))
        await world.clock.sleep(1.0)
    await _resumed_or_not(world)
    await stuck.aclose()


async def taken_over(world: World) -> None:
    """The control stream is made anew, with numbers below those of the old one, and an operator accepts it.

    For numbers that compare only within one store.
    """
    await settled(world)
    async with suffering(world, "scheduler stop", "s0"):
        await world.clock.sleep(0.5)  # so that the term is not the first one
    await world.users.edit("p0", status="paused")
    await when(world, lambda: not runs(world, "h0"), "it is told something in that term")
    await world.users.edit("p0", status="published")
    await when(world, lambda: runs(world, "h0"), "it runs again")
    await world.clock.sleep(2.0)
    await world.accidents.befall(Fault(world.loop.time(), world.loop.time(), "stream made anew", "control"))
    await world.clock.sleep(5.0)
    await world.users.edit("p0", status="paused")
    await world.clock.sleep(2.0)  # what is wanted in the end is judged as ever


async def found_by_a_new_agent(world: World) -> None:
    """The control stream is made anew while the agent of a host loses all that it knows, and what may overlap runs on
    there. The agent is back, and the next version must not overlap.

    For what heartbeats tell of executions that no store commands.
    """
    await settled(world)
    before = heard(world).session.agent
    async with suffering(world, "all traces lost", "h0"):
        now = world.loop.time()
        world.faults.append(Fault(now, now, "stream made anew", "control"))
        world.server.make_anew(world.keys.control, now)
        await world.clock.sleep(5.0)  # another store leads
    await when(world, lambda: heard(world).session.agent != before, "another agent has its name")
    await world.users.publish_next("p0", overlap="forbid")
    await world.clock.sleep(20.0)
    assert runs(world, "h0"), "nobody may touch it before an operator's word"
    await world.accidents.look_after()
    await world.clock.sleep(10.0)


async def made_anew(world: World) -> None:
    """The leader is cut off in the middle of a commit. Meanwhile the control stream is made anew, and the journal of
    its next leader comes to stand at the very revision that this commit expects.

    For the name of a term, under which every commit expects a key that no other stream has.
    """
    await settled(world)
    control, (first, second) = world.keys.control, leader(world)
    async with AsyncExitStack() as stuck:
        await stuck.enter_async_context(suffering(world, "connection frozen", f"{first}.main"))
        async with suffering(world, "host cut off", "h0", "down"):
            await world.clock.sleep(SILENT_S / 2)  # it says of that host that it is silent
            for role in ("elector", "pulse"):
                await stuck.enter_async_context(suffering(world, "connection frozen", f"{first}.{role}"))
        expected = world.server.streams[control].last[JOURNAL].revision
        anew = Fault(world.loop.time(), world.loop.time(), "stream made anew", "control")
        operator = asyncio.create_task(world.accidents.befall(anew))
        await when(world, lambda: JOURNAL not in world.server.streams[control].last, "it is made anew")
        world.server.streams[control].sequence = expected - 2  # as if so much had been written
        await when(world, lambda: world.server.value(control, JOURNAL), "the other one leads it", to_s=0.0001)
        assert leader(world)[0] == second
        assert world.server.streams[control].last[JOURNAL].revision == expected
    arrived = world.loop.time()
    await operator
    await world.clock.sleep(10.0)
    assert any(at >= arrived and writer == f"{first}.main" for at, writer in world.server.arrivals(control))


async def acknowledged_late(world: World) -> None:
    """An agent that is frozen right after its heartbeat was stored learns of it six seconds later, and is cut off.

    For a lease that counts from before the heartbeat was sent.
    """
    await settled(world)
    before = revision(world)
    await when(world, lambda: revision(world) > before, "a heartbeat is stored", to_s=0.0001)
    async with AsyncExitStack() as cut:
        async with suffering(world, "agent frozen", "h0", "timers last"):
            await world.clock.sleep(6.5)
            await cut.enter_async_context(suffering(world, "host cut off", "h0", "down"))
        await world.clock.sleep(25.0)


async def started_late(world: World) -> None:
    """An engine that does not answer when it is to start something, whose list does not have it, and that starts it
    when nobody wants it any more.

    For grants that are revoked before anything is stopped, removed or reported.
    """
    await settled(world)
    engine = world.machines["h0"].engine
    async with suffering(world, "late starts", "h0", amount=20.0):
        engine.remove_all()
        await when(world, lambda: engine.coming, "it is to be started again")
        await world.clock.sleep(1.0)
        await world.users.intend("h0", HostIntent(cordon=True, drain=True))
        await when(world, lambda: runs(world, "h1"), "it runs elsewhere")
        await when(world, lambda: not engine.coming, "the engine gets to it")
        await world.clock.sleep(1.0)
    await world.users.intend("h0", HostIntent())


async def started_in_a_session_that_is_over(world: World) -> None:
    """An engine that starts what it was asked to under one session when its host is back in the next one, and the slot
    runs elsewhere.

    For the session in a grant, which a runner compares with that of the lease.
    """
    await settled(world)
    engine = world.machines["h0"].engine
    async with suffering(world, "late starts", "h0", amount=SILENT_S + 5.0):
        engine.remove_all()
        await when(world, lambda: engine.coming, "it is to be started again")
        async with suffering(world, "host cut off", "h0", "down"):
            await when(world, lambda: runs(world, "h1"), "it runs elsewhere")
            await world.clock.sleep(1.0)
        await when(world, lambda: not engine.coming, "the engine gets to it")
        await world.clock.sleep(1.0)


async def read_from_a_deposed_server(world: World) -> None:
    """An agent whose reads are answered by a stream leader that does not know yet that it is none: what it was told
    first comes back.

    For plan numbers that never go back.
    """
    await settled(world)
    await world.users.intend("h0", HostIntent(cordon=True, drain=True))
    await when(world, lambda: document(world).stopping, "it is to stop")
    await when(world, lambda: runs(world, "h1"), "it runs elsewhere")
    async with suffering(world, "deposed server", "h0.main", amount=6.0):
        await world.clock.sleep(5.5)  # it reads every five seconds
    await world.users.intend("h0", HostIntent())


async def led_before(world: World) -> None:
    """A scheduler that leads again knows how silent a host was when it led for the first time, and not that it was
    heard since.

    For silences that a new leader and a list start from zero.
    """
    await settled(world)
    first, second = leader(world)
    async with AsyncExitStack() as again:
        async with AsyncExitStack() as blind:
            async with suffering(world, "host cut off", "h0", "down"):
                await world.clock.sleep(SILENT_S - 1.5)
                await blind.enter_async_context(suffering(world, "connection frozen", f"{first}.pulse"))
                async with suffering(world, "scheduler frozen", first):
                    await when(world, lambda: leader(world)[0] == second, "the other one leads")
            await when(world, lambda: runs(world, "h0"), "it has resumed")
            await world.clock.sleep(3.0)
            await again.enter_async_context(suffering(world, "scheduler frozen", second))
            await again.enter_async_context(suffering(world, "host cut off", "h0", "down"))
        await when(world, lambda: leader(world)[0] == first, "the first one leads again, and lists the hosts")
        await world.clock.sleep(4.0)


async def out_of_sight(world: World) -> None:
    """The schedulers are cut off for longer than any silence may last; the hosts are well.

    For a silence that is counted in pulses.
    """
    await settled(world)
    async with suffering(world, "schedulers cut off", "s0", "down"):
        await world.clock.sleep(SILENT_S + 8.1)  # a moment after the hosts were heard
    await world.clock.sleep(10.0)


async def forgotten_while_it_starts(world: World) -> None:
    """An agent dies with all that it knows while the runner it has started verifies its bundle; its successor is told
    to run the same slot.

    For execution ids that a new agent never gets from its predecessor.
    """
    await settled(world)
    machine = world.machines["h0"]
    (running,) = machine.engine.alive()
    machine.engine.verify_s = 40.0
    machine.engine.crash(running)
    await when(world, lambda: running in machine.engine.alive(), "its runner verifies")
    async with suffering(world, "all traces lost", "h0"):
        await world.clock.sleep(0.3)
    machine.engine.verify_s = 0.03
    await world.clock.sleep(70.0)


async def read_late(world: World) -> None:
    """A scheduler takes over that sees everything but the records of pipelines: to it this one is still paused.

    For a new leader that waits for all that its predecessor had read.
    """
    await settled(world)
    first, second = leader(world)
    await world.users.edit("p0", status="paused")
    await when(world, lambda: not runs(world, "h0"), "it is paused")
    await world.clock.sleep(2.0)  # everybody knows it
    async with suffering(world, "late records", f"{second}.main", amount=20.0):
        await world.users.edit("p0", status="published")
        await when(world, lambda: runs(world, "h0"), "it runs again")
        async with suffering(world, "scheduler crash", first):
            await when(world, lambda: leader(world)[0] == second, "the other one leads")
            await world.clock.sleep(5.0)
            assert runs(world, "h0"), "nothing is decided by an older record"
            await world.clock.sleep(20.0)


async def computing(world: World) -> None:
    """The planner of the leader is busy for three seconds.

    For renewals and pulses in a thread of their own.
    """
    await settled(world)
    first, _ = leader(world)
    async with suffering(world, "scheduler frozen", first, how="main"):
        await world.clock.sleep(4.0)
        assert leader(world)[0] == first, "a leader that computes is not deposed"
    await world.clock.sleep(2.0)


async def _resumed_or_not(world: World) -> None:
    """Long enough that an agent that is back would have started what it had."""
    await world.clock.sleep(2.5)


def leader(world: World) -> tuple[str, str]:
    """Who leads and who does not, of two schedulers: by the lease, which is what counts for others."""
    data = world.server.value(world.keys.control, LEASE)
    assert data is not None
    name = decode(Lease, data).name
    return name, "s1" if name == "s0" else "s0"
