"""The faults of the fake store: what a simulation relies on beyond the contract."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing

import pytest

from shared.errors import Conflict, OutcomeUnknown, StoreUnavailable
from shared.keys import Keys
from shared.store import Entry, Listing, Stalled
from tests.sim.virtual_time import VirtualLoop
from tests.support.fake_store import FakeStoreServer

KEYS = Keys("c")
B = KEYS.hosts


def virtual(test: Callable[[FakeStoreServer], Awaitable[None]]) -> Callable[[], None]:
    def wrapped() -> None:
        async def body() -> None:
            server = FakeStoreServer(seed=3)
            server.create_streams(KEYS)
            await test(server)

        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(body())

    wrapped.__name__ = test.__name__
    return wrapped


@virtual
async def test_a_lost_acknowledgement_is_a_write_that_happened(server: FakeStoreServer) -> None:
    store = server.connect("a")
    store.faults.lose_replies = 1.0
    with pytest.raises(OutcomeUnknown):
        await store.write(B, "h1", b"x", expected=0)
    store.faults.lose_replies = 0.0
    assert await store.read(B, "h1") == Entry("h1", b"x", 1)


@virtual
async def test_a_lost_request_never_happens(server: FakeStoreServer) -> None:
    store = server.connect("a")
    store.faults.lose_requests = 1.0
    with pytest.raises(OutcomeUnknown):
        await store.write(B, "h1", b"x")
    with pytest.raises(StoreUnavailable):
        await store.read(B, "h1")
    await server.settle()
    assert server.stream(B).sequence == 0


@virtual
async def test_a_straggler_arrives_after_its_caller_gave_up_and_loses_to_who_was_faster(
    server: FakeStoreServer,
) -> None:
    store, other = server.connect("a"), server.connect("b")
    store.faults.straggle, store.faults.straggle_s = 1.0, 1000.0
    late = 0
    for n in range(20):
        key = f"h{n}"
        with pytest.raises(OutcomeUnknown):
            await store.write(B, key, b"late", expected=0, timeout=0.1)
        if n % 2 and server.stream(B).last.get(key) is None:
            await other.write(B, key, b"faster", expected=0)
    await server.settle()
    for n in range(20):
        entry = server.stream(B).last[f"h{n}"]
        late += entry.value == b"late"
        assert [e.key for _, e, _ in server.writes].count(f"h{n}") == 1, "one of the two landed"
    assert 0 < late < 20


@virtual
async def test_what_a_frozen_server_holds_arrives_at_the_thaw(server: FakeStoreServer) -> None:
    store, other = server.connect("a"), server.connect("b")
    store.faults.held = True
    with pytest.raises(OutcomeUnknown):
        await store.write(B, "h1", b"held", expected=0)
    taken = await other.write(B, "h1", b"other", expected=0)
    store.faults.held = False
    await server.settle()
    assert server.stream(B).last["h1"] == Entry("h1", b"other", taken)
    with pytest.raises(Conflict):
        await store.write(B, "h1", b"again", expected=0)


@virtual
async def test_a_connection_that_is_down_sends_nothing(server: FakeStoreServer) -> None:
    store = server.connect("a")
    store.faults.down = True
    assert not store.connected
    with pytest.raises(StoreUnavailable):
        await store.write(B, "h1", b"x")
    store.faults.down = False
    assert await store.write(B, "h1", b"x") == 1


@virtual
async def test_a_watch_that_is_cut_off_stalls_after_its_silence_and_lists_when_it_is_back(
    server: FakeStoreServer,
) -> None:
    store, other = server.connect("a"), server.connect("b")
    loop = asyncio.get_running_loop()
    async with aclosing(store.watch(B)) as items:  # type: ignore[type-var]
        await anext(items)
        store.faults.held = True
        began = loop.time()
        await other.write(B, "h1", b"x")
        assert isinstance(await anext(items), Stalled)
        assert 2.0 < loop.time() - began < 4.0
        listed = asyncio.ensure_future(anext(items))
        await asyncio.sleep(30)
        assert not listed.done()
        store.faults.held = False
        found = await listed
        assert isinstance(found, Listing)
        assert set(found.entries) == {"h1"}


@virtual
async def test_a_lagging_replica_is_asked_until_it_has_what_the_hint_said(server: FakeStoreServer) -> None:
    store = server.connect("a")
    store.faults.direct_lag_s = 1.0
    revision = await store.write(B, "h1", b"x")
    began = asyncio.get_running_loop().time()
    assert (await store.read_at_least(B, "h1", revision)).value == b"x"
    assert asyncio.get_running_loop().time() - began >= 0.9
    assert (await store.read(B, "h1")).value == b"x"


def test_the_same_seed_gives_the_same_run() -> None:
    def once() -> list[tuple[str, Entry, str]]:
        async def body() -> list[tuple[str, Entry, str]]:
            server = FakeStoreServer(seed=9)
            server.create_streams(KEYS)

            async def work(name: str) -> None:
                store = server.connect(name)
                store.faults.lose_replies = store.faults.straggle = 0.2
                for n in range(30):
                    try:
                        await store.write(B, f"h{n % 3}", f"{name}{n}".encode(), timeout=0.5)
                    except OutcomeUnknown:
                        continue

            await asyncio.gather(*(work(f"w{n}") for n in range(4)))
            await server.settle()
            return server.writes

        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            return runner.run(body())

    assert once() == once()
