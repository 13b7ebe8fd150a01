"""What every store must do, run against the fake and against NATS: newest, oldest accepted, and three replicas.

The fake runs on virtual time, so its waits cost nothing; on NATS every bound is generous, because machines are slow.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest

from shared.connection import ConnectionSettings
from shared.documents import decode
from shared.errors import BadInput, Conflict, Missing, StoreUnavailable
from shared.keys import Keys
from shared.nats_codec import chunk_subject, key_subject
from shared.nats_store import NatsStore, connect
from shared.nats_stream_table import rows
from shared.nats_streams import ensure_streams
from shared.store import Change, Entry, Listing, ObjectInfo, Stalled, Store, WatchItem, Write
from tests.sim.virtual_time import VirtualLoop
from tests.support.fake_store import FakeStoreServer
from tests.support.patience import patiently

T = TypeVar("T")
BOUND_S = 60.0  # only ends a hang


@dataclass
class Backend:
    """A store with the streams of one cluster, and the ways to tamper with it behind its clients."""

    keys: Keys
    url: str = ""  # "" = the fake
    fake: FakeStoreServer | None = None

    def run(self, test: Callable[[Backend], Awaitable[T]]) -> T:
        async def body() -> T:
            async with asyncio.timeout(BOUND_S if self.fake is None else 3600):
                await self._prepare()
                try:
                    return await test(self)
                finally:
                    await self._clean_up()

        if self.fake is None:
            return asyncio.run(body())
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            return runner.run(body())

    async def _prepare(self) -> None:
        if self.fake is not None:
            self.fake.create_streams(self.keys)
            return
        async with aclosing_store(await self.connect()) as store:
            await ensure_streams(store, self.keys)

    async def _clean_up(self) -> None:
        """Events reserve 1 GiB per cluster name: without this, a shared server is full after sixteen tests."""
        if self.fake is None:
            async with aclosing_store(await self.connect()) as store:
                assert isinstance(store, NatsStore)
                for row in rows(self.keys):
                    await store.link.request(f"$JS.API.STREAM.DELETE.{row.stream}", timeout=10, effect=False)

    async def connect(self, name: str = "test") -> Store:
        if self.fake is not None:
            return self.fake.connect(name)
        return await connect(ConnectionSettings(servers=tuple(self.url.split(","))), name=name)

    async def await_leaders(self, store: Store) -> None:
        """Wait until what is written through this connection reaches the streams' leaders. The server that it is
        connected to may not have heard of a new stream yet, and says so truthfully: nobody took it."""
        keys = self.keys
        if self.fake is not None:
            return
        for bucket in (keys.pipelines, keys.operator, keys.hosts, keys.reports, keys.control):
            with contextlib.suppress(Conflict):  # the leader's answer; nothing is written
                await patiently(functools.partial(store.write, bucket, "nothing", b"", expected=2**40), bucket)

    async def purge(self, store: Store, bucket: str, key: str) -> None:
        """Remove a key without a marker, as `nats stream purge` does."""
        if self.fake is not None:
            self.fake.purge(bucket, key)
        else:
            await api(store, f"STREAM.PURGE.KV_{bucket}", {"filter": key_subject(bucket, key)})

    async def recreate(self, store: Store, bucket: str) -> None:
        """Delete the stream and make it anew."""
        if self.fake is not None:
            self.fake.recreate(bucket)
        else:
            config = (await api(store, f"STREAM.INFO.KV_{bucket}", None))["config"]
            await api(store, f"STREAM.DELETE.KV_{bucket}", None)
            await api(store, f"STREAM.CREATE.KV_{bucket}", config)

    async def lose_chunks(self, store: Store, info: ObjectInfo) -> None:
        if self.fake is not None:
            self.fake.lose_chunks(self.keys.configs, info.name)
        else:
            subject = chunk_subject(self.keys.configs, info.nuid)
            await api(store, f"STREAM.PURGE.OBJ_{self.keys.configs}", {"filter": subject, "keep": 1})


async def api(store: Store, subject: str, body: Any) -> dict[str, Any]:
    assert isinstance(store, NatsStore)
    payload = b"" if body is None else json.dumps(body).encode()
    msg = await store.link.request(f"$JS.API.{subject}", payload, timeout=10, effect=False)
    answer: dict[str, Any] = json.loads(msg.data)
    assert "error" not in answer, answer
    return answer


class aclosing_store:  # noqa: N801 - reads like contextlib.aclosing
    def __init__(self, store: Store) -> None:
        self.store = store

    async def __aenter__(self) -> Store:
        return self.store

    async def __aexit__(self, *_: object) -> None:
        await self.store.close()


@pytest.fixture(
    params=[
        "fake",
        "newest",
        "oldest",
        pytest.param("cluster", marks=pytest.mark.cluster),
    ]
)
def backend(request: pytest.FixtureRequest, cluster_name: str) -> Backend:
    keys = Keys(cluster_name)
    if request.param == "fake":
        return Backend(keys, fake=FakeStoreServer(seed=1))
    fixture = {"newest": "nats_session", "oldest": "nats_session_oldest", "cluster": "nats_cluster_session"}
    return Backend(keys, request.getfixturevalue(fixture[request.param]).url)


def contract(test: Callable[[Backend, Store], Awaitable[None]]) -> Callable[[Backend], None]:
    """Makes an ordinary test of a coroutine function that wants a backend and a connection."""

    def wrapped(backend: Backend) -> None:
        async def body(backend: Backend) -> None:
            async with aclosing_store(await backend.connect()) as store:
                await backend.await_leaders(store)
                await test(backend, store)

        backend.run(body)

    wrapped.__name__, wrapped.__doc__ = test.__name__, test.__doc__
    return wrapped


# --- compare-and-set


@contract
async def test_a_write_with_an_expectation_succeeds_only_on_exactly_that_revision(b: Backend, store: Store) -> None:
    bucket = b.keys.hosts
    assert await store.read(bucket, "h1") == Entry("h1", None, 0)
    first = await store.write(bucket, "h1", b"a", expected=0)
    with pytest.raises(Conflict) as lost:
        await store.write(bucket, "h1", b"b", expected=0)
    assert lost.value.actual == first
    second = await store.write(bucket, "h1", b"b", expected=first)
    assert second > first
    with pytest.raises(Conflict) as lost:
        await store.write(bucket, "h1", b"c", expected=first)
    assert lost.value.actual == second
    assert await store.read(bucket, "h1") == Entry("h1", b"b", second)


@contract
async def test_a_delete_marker_counts_as_a_revision(b: Backend, store: Store) -> None:
    bucket = b.keys.operator
    first = await store.write(bucket, "host.h1", b"a")
    marker = await store.write(bucket, "host.h1", None, expected=first)
    assert await store.read(bucket, "host.h1") == Entry("host.h1", None, marker)
    with pytest.raises(Conflict) as lost:
        await store.write(bucket, "host.h1", b"b", expected=0)
    assert lost.value.actual == marker
    assert await store.write(bucket, "host.h1", b"b", expected=marker) > marker


@contract
async def test_an_empty_value_is_not_a_deletion(b: Backend, store: Store) -> None:
    revision = await store.write(b.keys.operator, "store", b"")
    assert await store.read(b.keys.operator, "store") == Entry("store", b"", revision)


@contract
async def test_a_write_without_expectation_overwrites_whatever_is_there(b: Backend, store: Store) -> None:
    revisions = [await store.write(b.keys.reports, "h1", f"{n}".encode()) for n in range(3)]
    assert revisions == sorted(revisions)
    assert (await store.read(b.keys.reports, "h1")).value == b"2"


@contract
async def test_only_one_of_many_that_race_for_a_revision_wins(b: Backend, store: Store) -> None:
    outcomes = await asyncio.gather(
        *(store.write(b.keys.hosts, "h1", f"{n}".encode(), expected=0) for n in range(20)), return_exceptions=True
    )
    won = [n for n, outcome in enumerate(outcomes) if isinstance(outcome, int)]
    assert len(won) == 1
    assert (await store.read(b.keys.hosts, "h1")).value == f"{won[0]}".encode()


@contract
async def test_a_bucket_that_does_not_exist_is_said_to_be_missing(b: Backend, store: Store) -> None:
    nowhere = f"{b.keys.cluster}_nowhere"
    for call in (
        store.read(nowhere, "k"),
        store.write(nowhere, "k", b"v"),
        store.commit(nowhere, [Write("k", b"v"), Write("l", b"v")]),
        store.mark(nowhere),
        store.get_object(nowhere, "o", bytes_max=10),
    ):
        with pytest.raises(Missing):
            await call


# --- commits


@contract
async def test_a_commit_writes_everything_with_consecutive_revisions(b: Backend, store: Store) -> None:
    bucket = b.keys.control
    await store.write(bucket, "status.old", b"x")
    journal = await store.write(bucket, "journal", b"0", expected=0)
    writes = [
        Write("journal", b"1", journal),
        Write("assign.h1", b"a"),
        Write("status.old", None),
        Write("version.p.1", b"v", 0),
    ]
    first = await store.commit(bucket, writes)
    for revision, write in enumerate(writes, first):
        assert await store.read(bucket, write.key) == Entry(write.key, write.value, revision)


@pytest.mark.parametrize("stale", range(3))
def test_a_commit_with_one_stale_expectation_writes_nothing(backend: Backend, stale: int) -> None:
    async def body(b: Backend) -> None:
        async with aclosing_store(await b.connect()) as store:
            bucket = b.keys.control
            revisions = [await store.write(bucket, key, b"old") for key in ("journal", "assign.h1", "assign.h2")]
            expected = [revision - (number == stale) for number, revision in enumerate(revisions)]
            keys = ("journal", "assign.h1", "assign.h2")
            with pytest.raises(Conflict):
                await store.commit(bucket, [Write(k, b"new", e) for k, e in zip(keys, expected, strict=True)])
            for key, revision in zip(keys, revisions, strict=True):
                assert await store.read(bucket, key) == Entry(key, b"old", revision)

    backend.run(body)


@contract
async def test_a_commit_of_one_write_is_a_compare_and_set(b: Backend, store: Store) -> None:
    first = await store.commit(b.keys.control, [Write("journal", b"1", 0)])
    with pytest.raises(Conflict):
        await store.commit(b.keys.control, [Write("journal", b"2", 0)])
    assert await store.commit(b.keys.control, [Write("journal", b"2", first)]) > first


@contract
async def test_a_commit_succeeds_exactly_one_commit(b: Backend, store: Store) -> None:
    """Two leaders, or two attempts of one, that continue the same journal revision: one lands."""
    bucket = b.keys.control
    journal = await store.write(bucket, "journal", b"0", expected=0)
    other = await b.connect("other")
    outcomes = await asyncio.gather(
        *(
            s.commit(bucket, [Write("journal", name, journal), Write("assign.h1", name), Write(f"status.{n}", name)])
            for n, (s, name) in enumerate(((store, b"mine"), (other, b"theirs")) * 3)
        ),
        return_exceptions=True,
    )
    assert sum(isinstance(outcome, int) for outcome in outcomes) == 1
    assert (await store.read(bucket, "journal")).value == (await store.read(bucket, "assign.h1")).value
    await other.close()


@contract
async def test_a_bucket_made_anew_gives_the_same_revisions_to_other_keys(b: Backend, store: Store) -> None:
    """What one revision cannot tell, another does: that of a key which the new stream does not have."""
    bucket = b.keys.control
    first = await store.commit(bucket, [Write("journal", b"1", 0), Write("term.a", b"", 0)])
    await b.recreate(store, bucket)
    anew = [Write("journal", b"2", 0), Write("term.b", b"", 0)]
    assert await patiently(lambda: store.commit(bucket, anew), "a commit to the new stream") == first
    with pytest.raises(Conflict):
        await store.commit(bucket, [Write("journal", b"3", first), Write("term.a", b"", first + 1)])
    assert await store.read(bucket, "journal") == Entry("journal", b"2", first)
    assert await store.read(bucket, "term.a") == Entry("term.a", None, 0)


@contract
async def test_a_commit_may_be_as_large_as_the_contract_says(b: Backend, store: Store) -> None:
    writes = [Write("journal", b"1", 0), *(Write(f"status.p{n}", b"x" * 1000) for n in range(999))]
    first = await store.commit(b.keys.control, writes, timeout=30)
    assert (await store.read(b.keys.control, "status.p998")).revision == first + 999


# --- reads


@contract
async def test_read_at_least_gives_the_asked_revision_or_a_newer_one(b: Backend, store: Store) -> None:
    reader = await b.connect("reader")
    for n in range(20):
        revision = await store.write(b.keys.control, "assign.h1", f"{n}".encode())
        entry = await reader.read_at_least(b.keys.control, "assign.h1", revision)
        assert entry == Entry("assign.h1", f"{n}".encode(), revision)
    await reader.close()


@contract
async def test_read_at_least_waits_for_a_write_that_is_yet_to_come(b: Backend, store: Store) -> None:
    revision = await store.write(b.keys.control, "assign.h1", b"old")
    reading = asyncio.create_task(store.read_at_least(b.keys.control, "assign.h1", revision + 1, timeout=20))
    await asyncio.sleep(0.05)
    await store.write(b.keys.control, "assign.h1", b"new")
    assert (await reading).value == b"new"


@contract
async def test_read_at_least_ends_when_nobody_has_got_that_far(b: Backend, store: Store) -> None:
    revision = await store.write(b.keys.control, "assign.h1", b"old")
    with pytest.raises(StoreUnavailable):
        await store.read_at_least(b.keys.control, "assign.h1", revision + 1, timeout=0.5)


# --- watches


async def listing(items: AsyncIterator[WatchItem]) -> Listing:
    """The next listing; changes and stalls before it are passed over."""
    async for item in items:
        if isinstance(item, Listing):
            return item
    raise AssertionError("a watch never ends")


async def change(items: AsyncIterator[WatchItem]) -> Entry:
    """The next change; nothing else may come."""
    item = await anext(items)
    assert isinstance(item, Change), item
    return item.entry


@contract
async def test_a_watch_begins_with_everything_and_continues_with_every_change_in_order(
    b: Backend, store: Store
) -> None:
    bucket = b.keys.pipelines
    one = await store.write(bucket, "one", b"1")
    two = await store.write(bucket, "two", b"2")
    marker = await store.write(bucket, "two", None)
    async with aclosing(store.watch(bucket)) as items:  # type: ignore[type-var]
        found = await anext(items)
        assert isinstance(found, Listing)
        assert dict(found.entries) == {"one": Entry("one", b"1", one)}
        assert dict(found.deleted) == {"two": marker}
        assert found.mark == await store.mark(bucket)
        assert two < marker == found.mark.sequence
        wanted = []
        for n in range(50):
            value = None if n % 7 == 0 else f"{n}".encode()
            wanted.append(Entry(f"k{n % 5}", value, await store.write(bucket, f"k{n % 5}", value)))
        assert [await change(items) for _ in wanted] == wanted


@contract
async def test_the_list_of_an_empty_bucket_is_empty(b: Backend, store: Store) -> None:
    async with aclosing(store.watch(b.keys.operator)) as items:  # type: ignore[type-var]
        found = await anext(items)
        assert isinstance(found, Listing)
        assert (dict(found.entries), dict(found.deleted), found.mark.sequence) == ({}, {}, 0)


@contract
async def test_a_commit_is_seen_whole_and_in_order(b: Backend, store: Store) -> None:
    async with aclosing(store.watch(b.keys.control)) as items:  # type: ignore[type-var]
        await listing(items)
        first = await store.commit(
            b.keys.control, [Write("journal", b"1", 0), Write("assign.h1", b"a"), Write("assign.h2", b"b")]
        )
        assert [(await change(items)).revision for _ in range(3)] == [first, first + 1, first + 2]


@contract
async def test_what_was_purged_without_a_marker_is_gone_from_the_next_list(b: Backend, store: Store) -> None:
    bucket = b.keys.pipelines
    for key in ("kept", "purged", "last"):
        await store.write(bucket, key, b"x")
    async with aclosing(store.watch(bucket, relist_s=1.0)) as items:  # type: ignore[type-var]
        assert set((await listing(items)).entries) == {"kept", "purged", "last"}
        await b.purge(store, bucket, "purged")
        while "purged" in (found := await listing(items)).entries:
            pass
        assert (set(found.entries), dict(found.deleted)) == ({"kept", "last"}, {})
        await b.purge(store, bucket, "last")  # now the leader's last sequence is below what was seen
        while "last" in (found := await listing(items)).entries:
            pass
        assert set(found.entries) == {"kept"}


@contract
async def test_a_bucket_made_anew_is_listed_with_another_mark(b: Backend, store: Store) -> None:
    bucket = b.keys.pipelines
    for n in range(5):
        await store.write(bucket, f"k{n}", b"x")
    async with aclosing(store.watch(bucket, relist_s=1.0)) as items:  # type: ignore[type-var]
        before = await listing(items)
        await b.recreate(store, bucket)
        while (after := await listing(items)).mark.created == before.mark.created:
            pass
        assert (dict(after.entries), after.mark.sequence) == ({}, 0)
        revision = await store.write(bucket, "new", b"y")
        while True:
            item = await anext(items)
            if isinstance(item, Change):
                assert item.entry == Entry("new", b"y", revision)
                break
            if isinstance(item, Listing) and item.entries:
                assert dict(item.entries) == {"new": Entry("new", b"y", revision)}
                break


@contract
async def test_a_watch_that_is_cut_off_says_so_and_then_lists_everything(b: Backend, store: Store) -> None:
    writer = await b.connect("writer")
    await writer.write(b.keys.hosts, "h1", b"1")
    async with aclosing(store.watch(b.keys.hosts)) as items:  # type: ignore[type-var]
        await listing(items)
        await store.change_server()
        assert isinstance(await anext(items), Stalled)
        await writer.write(b.keys.hosts, "h2", b"2")
        found = await anext(items)
        assert isinstance(found, Listing)
        seen = dict(found.entries)
        while "h2" not in seen:
            seen["h2"] = await change(items)
        assert {key: entry.value for key, entry in seen.items()} == {"h1": b"1", "h2": b"2"}
    await writer.close()


@contract
async def test_a_slow_reader_misses_nothing(b: Backend, store: Store) -> None:
    async with aclosing(store.watch(b.keys.control)) as items:  # type: ignore[type-var]
        await listing(items)
        revisions: list[int] = []
        for batch in range(5):
            writes = [Write(f"status.p{batch}.{n}", b"x" * 500) for n in range(1000)]
            first = await store.commit(b.keys.control, writes, timeout=30)
            revisions += range(first, first + 1000)
        assert [(await change(items)).revision for _ in revisions] == revisions


# --- objects


@pytest.mark.parametrize("size", [0, 1, 128 * 1024, 128 * 1024 + 1, 3 * 1024 * 1024])
def test_an_object_comes_back_as_it_was_stored(backend: Backend, size: int) -> None:
    async def body(b: Backend) -> None:
        async with aclosing_store(await b.connect()) as store:
            data = bytes(n % 251 for n in range(1000)) * (size // 1000 + 1)
            data = data[:size]
            info = await store.put_object(b.keys.configs, "orders/1", data)
            assert (info.name, info.size) == ("orders/1", size)
            assert await store.get_object(b.keys.configs, "orders/1", bytes_max=size) == data

    backend.run(body)


@contract
async def test_an_object_is_replaced_and_deleted_whole(b: Backend, store: Store) -> None:
    bucket = b.keys.configs
    with pytest.raises(Missing):
        await store.get_object(bucket, "a/1", bytes_max=100)
    old = await store.put_object(bucket, "a/1", b"old" * 10)
    new = await store.put_object(bucket, "a/1", b"new" * 20)
    assert new.revision > old.revision
    assert await store.get_object(bucket, "a/1", bytes_max=100) == b"new" * 20
    await store.delete_object(bucket, "a/1")
    await store.delete_object(bucket, "a/1")
    with pytest.raises(Missing):
        await store.get_object(bucket, "a/1", bytes_max=100)
    await store.put_object(bucket, "a/1", b"again")
    assert await store.get_object(bucket, "a/1", bytes_max=100) == b"again"


@contract
async def test_an_object_that_is_too_large_is_refused_unread(b: Backend, store: Store) -> None:
    await store.put_object(b.keys.configs, "a/1", b"x" * 1001)
    with pytest.raises(BadInput, match="1001 bytes"):
        await store.get_object(b.keys.configs, "a/1", bytes_max=1000)


@contract
async def test_missing_chunks_are_said_within_the_time_out(b: Backend, store: Store) -> None:
    info = await store.put_object(b.keys.configs, "a/1", b"x" * 500_000)
    await b.lose_chunks(store, info)
    with pytest.raises(BadInput, match="chunks are missing"):
        await store.get_object(b.keys.configs, "a/1", bytes_max=10**6, timeout=20)


@contract
async def test_reading_while_it_is_overwritten_gives_the_old_or_the_new_bytes(b: Backend, store: Store) -> None:
    bucket = b.keys.configs
    versions = [bytes([65 + n]) * 300_000 for n in range(6)]
    await store.put_object(bucket, "a/1", versions[0])
    reader = await b.connect("reader")

    async def read() -> None:
        for _ in range(10):
            assert await reader.get_object(bucket, "a/1", bytes_max=10**6, timeout=30) in versions

    reading = asyncio.create_task(read())
    for version in versions[1:]:
        await store.put_object(bucket, "a/1", version, timeout=30)
    await reading
    await reader.close()


@contract
async def test_objects_are_watched_by_name(b: Backend, store: Store) -> None:
    bucket = b.keys.configs
    first = await store.put_object(bucket, "a/1", b"one")
    async with aclosing(store.watch_objects(bucket)) as items:  # type: ignore[type-var]
        found = await listing(items)
        assert {key: decode(ObjectInfo, entry.value or b"") for key, entry in found.entries.items()} == {"a/1": first}
        second = await store.put_object(bucket, "ä b/2.0", b"two")
        entry = await change(items)
        assert (entry.key, decode(ObjectInfo, entry.value or b"")) == ("ä b/2.0", second)
        await store.delete_object(bucket, "a/1")
        entry = await change(items)
        assert (entry.key, entry.value) == ("a/1", None)


# --- messages


@contract
async def test_an_assignment_wakes_who_subscribed_with_its_revision(b: Backend, store: Store) -> None:
    agent = await b.connect("agent")
    wake_ups = await agent.subscribe(b.keys.live_assign("h1"))
    await flushed(agent)
    first = await store.commit(
        b.keys.control, [Write("journal", b"1"), Write("assign.h1", b"a"), Write("assign.h2", b"b")]
    )
    message = await wake_ups.next()
    assert (message.subject, message.data, message.sequence) == (b.keys.live_assign("h1"), b"a", first + 1)
    await agent.close()


async def flushed(store: Store) -> None:
    """What was sent on this connection has reached the server, and its cluster."""
    if isinstance(store, NatsStore):
        connection = await store.link.usable()
        await connection.client.flush()
        await asyncio.sleep(0.1)  # interest travels between servers; there is nothing to ask


@contract
async def test_a_closed_subscription_ends_its_reader(b: Backend, store: Store) -> None:
    subscription = await store.subscribe(f"{b.keys.cluster}.x")
    reading = asyncio.create_task(subscription.next())
    await asyncio.sleep(0)
    await subscription.close()
    with pytest.raises(StoreUnavailable):
        await reading


@contract
async def test_events_are_stored_once_per_id_and_shown_oldest_first(b: Backend, store: Store) -> None:
    for n in range(5):
        for _ in range(2):
            await store.append(b.keys.event("moved", f"p{n % 2}"), f"{n}".encode(), message_id=f"id{n}")
    events = f"{b.keys.cluster}.event.>"
    shown = [m.data async for m in store.history(b.keys.events, events, last=3, follow=False)]
    assert shown == [b"2", b"3", b"4"]
    one = b.keys.event("moved", "p1")
    assert [m.data async for m in store.history(b.keys.events, one, last=10, follow=False)] == [b"1", b"3"]
    async with aclosing(store.history(b.keys.events, events, last=1, follow=True)) as following:  # type: ignore[type-var]
        assert (await anext(following)).data == b"4"
        await store.append(b.keys.event("moved", "p9"), b"new", message_id="id9")
        message = await anext(following)
        assert (message.subject, message.data) == (b.keys.event("moved", "p9"), b"new")


@contract
async def test_a_request_is_answered_by_many_messages_until_an_empty_one(b: Backend, store: Store) -> None:
    agent = await b.connect("agent")
    requests = await agent.subscribe(b.keys.logs("h1"))
    await flushed(agent)

    async def answer() -> None:
        request = await requests.next()
        for part in (request.data, *more, b""):
            await agent.publish(request.reply, part)

    more = [f"line {number}".encode() for number in range(2, 50)]

    answering = asyncio.create_task(answer())
    lines = [line async for line in await store.request_many(b.keys.logs("h1"), b"line 1")]
    assert lines == [b"line 1", *more]
    await answering
    await agent.close()


@contract
async def test_a_request_that_nobody_answers_says_so(b: Backend, store: Store) -> None:
    with pytest.raises(StoreUnavailable):
        async for _ in await store.request_many(b.keys.logs("nobody"), b"?", idle_timeout=10):
            pass


# --- the connection


@contract
async def test_after_closing_nothing_is_sent(b: Backend, store: Store) -> None:
    store = await b.connect("short")
    assert store.connected
    await store.close()
    assert not store.connected
    with pytest.raises(StoreUnavailable):
        await store.write(b.keys.hosts, "h1", b"x", timeout=0.5)
    with pytest.raises(StoreUnavailable):
        await store.read(b.keys.hosts, "h1", timeout=0.5)


@contract
async def test_writing_goes_on_after_a_change_of_server(b: Backend, store: Store) -> None:
    first = await store.write(b.keys.hosts, "h1", b"1")
    for _ in range(3):
        await store.change_server()
        first = await store.write(b.keys.hosts, "h1", b"2", expected=first)
