"""What only real servers show: crashes, freezes, restarts, large lists, leaks, old versions, foreign configurations.

Bounds are generous: they end a hang, they are not figures.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from shared.connection import ConnectionSettings
from shared.errors import BadInput, Conflict, Missing, StoreError, StoreUnavailable, Unfit
from shared.keys import Keys
from shared.nats_codec import Source, bucket_source
from shared.nats_store import NatsStore, connect
from shared.nats_streams import describe_streams, ensure_streams
from shared.nats_watch import watch
from shared.store import Change, Entry, Listing, Stalled, WatchItem, Write
from tests.support.components import require
from tests.support.nats_servers import NatsCluster, NatsServer
from tests.support.patience import patiently

KEYS = Keys("shoal")
BOUND_S = 90.0


def run(test: Awaitable[None]) -> None:
    async def body() -> None:
        async with asyncio.timeout(BOUND_S):
            await test

    asyncio.run(body())


@asynccontextmanager
async def connected(*urls: str, ready: bool = True, **settings: Any) -> AsyncIterator[NatsStore]:
    store = await connect(ConnectionSettings(servers=urls, **settings), name="test")
    try:
        if ready:
            await ensure_streams(store, KEYS)
        yield store
    finally:
        await store.close()


async def api(store: NatsStore, subject: str, body: Any = None) -> dict[str, Any]:
    payload = b"" if body is None else json.dumps(body).encode()
    msg = await store.link.request(f"$JS.API.{subject}", payload, timeout=10, effect=False)
    answer: dict[str, Any] = json.loads(msg.data)
    return answer


async def settled(check: Callable[[], Awaitable[bool]], what: str) -> None:
    """Wait until `check` holds; it may fail with a StoreError meanwhile."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(StoreError):
            if await check():
                return
        await asyncio.sleep(0.05)
    raise AssertionError(f"never: {what}")


async def until_listing(items: AsyncIterator[WatchItem], wanted: Callable[[Listing], bool]) -> Listing:
    async for item in items:
        if isinstance(item, Listing) and wanted(item):
            return item
    raise AssertionError("a watch never ends")


# --- watches


def test_a_list_of_a_hundred_thousand_keys_is_complete(nats_server: NatsServer) -> None:
    async def body() -> None:
        async with connected(nats_server.url) as store:
            for start in range(0, 100_000, 1000):
                await store.commit(
                    KEYS.control, [Write(f"status.p{n}", b"x" * 200) for n in range(start, start + 1000)], timeout=30
                )
            began = time.monotonic()
            async with aclosing(store.watch(KEYS.control)) as items:  # type: ignore[type-var]
                found = await anext(items)
                took = time.monotonic() - began
                assert isinstance(found, Listing)
                assert len(found.entries) == 100_000
                assert found.mark.sequence == 100_000
            print(f"listed 100,000 keys in {took:.2f} s")

    run(body())


@pytest.mark.slow
def test_a_list_that_takes_longer_than_any_silence_is_not_given_up(nats_server: NatsServer) -> None:
    """On a starved machine a list takes many seconds; pongs and the consumer's creation wait behind its messages."""

    async def body() -> None:
        async with connected(nats_server.url) as store:
            for start in range(0, 10_000, 1000):
                await store.commit(
                    KEYS.control, [Write(f"status.p{n}", b"x" * 500) for n in range(start, start + 1000)], timeout=30
                )
            plain = bucket_source(KEYS.control)

            def starved(subject: str, data: bytes, headers: Mapping[str, str] | None, sequence: int) -> Entry:
                end = time.perf_counter() + 0.0004
                while time.perf_counter() < end:
                    pass
                return plain.decode(subject, data, headers, sequence)

            before = store.link._connection
            attempts = []
            create = store.link.api

            async def counted(subject: str, body: Any = None, *, timeout: float) -> dict[str, Any]:
                attempts.append(subject)
                return await create(subject, body, timeout=timeout)

            store.link.api = counted  # type: ignore[method-assign]
            source = Source(plain.stream, plain.filter, starved)
            async with aclosing(watch(store.link, source, relist_s=60)) as items:  # type: ignore[type-var]
                found = await anext(items)
            assert isinstance(found, Listing)
            assert len(found.entries) == 10_000
            assert store.link._connection is before
            assert sum("CONSUMER.CREATE" in subject for subject in attempts) == 1

    run(body())


@pytest.mark.parametrize("crash", [False, True])
def test_a_watch_lists_anew_when_its_server_was_restarted(nats_server: NatsServer, crash: bool) -> None:
    async def body() -> None:
        async with connected(nats_server.url) as store:
            for n in range(20):
                await store.write(KEYS.pipelines, f"k{n}", b"x")
            async with aclosing(store.watch(KEYS.pipelines)) as items:  # type: ignore[type-var]
                assert isinstance(await anext(items), Listing)
                await asyncio.to_thread(nats_server.restart, crash=crash)
                assert isinstance(await anext(items), Stalled)
                found = await anext(items)
                assert isinstance(found, Listing)
                assert len(found.entries) == 20
                revision = await store.write(KEYS.pipelines, "after", b"y")
                change = await anext(items)
                assert isinstance(change, Change)
                assert (change.entry.key, change.entry.revision) == ("after", revision)

    run(body())


def test_keys_purged_while_the_server_was_away_are_gone_after_the_list(nats_server: NatsServer) -> None:
    async def body() -> None:
        async with connected(nats_server.url) as store:
            for n in range(20):
                await store.write(KEYS.pipelines, f"k{n}", b"x")
            async with aclosing(store.watch(KEYS.pipelines)) as items:  # type: ignore[type-var]
                assert isinstance(await anext(items), Listing)
                await asyncio.to_thread(nats_server.restart, crash=True)
                await api(store, f"STREAM.PURGE.KV_{KEYS.pipelines}", {"filter": f"$KV.{KEYS.pipelines}.k1"})
                found = await until_listing(items, lambda listing: "k1" not in listing.entries)
                assert len(found.entries) == 19

    run(body())


def test_ten_reconnections_leave_no_consumer_behind(nats_server: NatsServer) -> None:
    async def body() -> None:
        async with connected(nats_server.url) as store:
            await store.write(KEYS.hosts, "h1", b"x")
            async with aclosing(store.watch(KEYS.hosts)) as items:  # type: ignore[type-var]
                assert isinstance(await anext(items), Listing)
                for _ in range(10):
                    await store.change_server()
                    assert isinstance(await anext(items), Stalled)
                    assert isinstance(await anext(items), Listing)
                await settled(lambda: _consumers(store, 1), "one consumer while the watch lives")
            await settled(lambda: _consumers(store, 0), "no consumer after it was closed")

    run(body())


async def _consumers(store: NatsStore, wanted: int) -> bool:
    info = await api(store, f"STREAM.INFO.KV_{KEYS.hosts}")
    return bool(info["state"]["consumer_count"] == wanted)


def test_a_reader_that_sleeps_holds_the_server_back_and_misses_nothing(nats_server: NatsServer) -> None:
    """More than the backlog bound, so that flow control is withheld and answered later."""

    async def body() -> None:
        async with connected(nats_server.url) as store:
            async with aclosing(store.watch(KEYS.control)) as items:  # type: ignore[type-var]
                assert isinstance(await anext(items), Listing)
                total = 60_000
                for start in range(0, total, 1000):
                    await store.commit(
                        KEYS.control,
                        [Write(f"status.p{n}", b"x" * 500) for n in range(start, start + 1000)],
                        timeout=30,
                    )
                await asyncio.sleep(3.0)  # longer than the silence bound: heartbeats of a stalled consumer still count
                for wanted in range(1, total + 1):
                    item = await anext(items)
                    assert isinstance(item, Change), item
                    assert item.entry.revision == wanted

    run(body())


@pytest.mark.slow
@pytest.mark.cluster
def test_lists_stay_complete_while_a_follower_catches_up(nats_cluster: NatsCluster) -> None:
    """A consumer may be created on a replica that lags; its own count of what is pending is then too low."""

    async def body() -> None:
        async with connected(*nats_cluster.urls) as store:
            leader = await asyncio.to_thread(nats_cluster.stream_leader, f"KV_{KEYS.control}")
            follower = next(server for server in nats_cluster.servers if server is not leader)
            await asyncio.to_thread(follower.stop)
            for start in range(0, 20_000, 1000):
                writes = [Write(f"status.p{n}", b"x" * 500) for n in range(start, start + 1000)]
                await _until_committed(store, writes)
            await asyncio.to_thread(follower.start, wait=False)
            for _ in range(40):
                async with aclosing(store.watch(KEYS.control)) as items:  # type: ignore[type-var]
                    found = await until_listing(items, lambda _: True)
                    assert len(found.entries) == 20_000

    run(body())


async def _until_committed(store: NatsStore, writes: list[Write]) -> None:
    async def attempt() -> bool:
        await store.commit(KEYS.control, writes, timeout=5)
        return True

    await settled(attempt, "a commit")


# --- freezes and stragglers


@pytest.mark.cluster
def test_a_frozen_server_is_left_and_writing_goes_on(nats_cluster: NatsCluster) -> None:
    async def body() -> None:
        async with connected(*nats_cluster.urls) as store, connected(*nats_cluster.urls, ready=False) as other:
            revision = await patiently(lambda: store.write(KEYS.hosts, "h1", b"0", timeout=5), "a first write")
            async with aclosing(store.watch(KEYS.hosts)) as items:  # type: ignore[type-var]
                assert isinstance(await anext(items), Listing)
                frozen = next(s for s in nats_cluster.servers if s.port == _port(store))
                frozen.pause()
                began = time.monotonic()
                try:
                    with pytest.raises(StoreError):
                        await _write_until_it_fails(store)
                    await store.change_server()
                    moved = time.monotonic() - began
                    assert _port(store) != frozen.port
                    # The frozen server may lead the stream: another must be elected first.
                    await settled(lambda: _written(store, "h3"), "a write through another server")
                    print(f"left the frozen server after {moved:.2f} s, wrote after {time.monotonic() - began:.2f} s")
                    # What was waiting for the frozen server: the watch lists again by itself.
                    await until_listing(items, lambda listing: "h3" in listing.entries)
                finally:
                    frozen.resume()
            assert (await other.read(KEYS.hosts, "h1", timeout=20)).revision == revision

    run(body())


async def _write_until_it_fails(store: NatsStore) -> None:
    while True:  # a thread of the server may still answer one write while the signal spreads
        await store.write(KEYS.hosts, "h2", b"0", timeout=0.75)


async def _written(store: NatsStore, key: str) -> bool:
    await store.write(KEYS.hosts, key, b"x", timeout=2)
    return True


def _port(store: NatsStore) -> int:
    connection = store.link._connection
    assert connection is not None
    return int(connection.address.rpartition(":")[2])


@pytest.mark.cluster
def test_who_only_listens_leaves_a_frozen_server_too(nats_cluster: NatsCluster) -> None:
    async def body() -> None:
        async with connected(*nats_cluster.urls) as store:
            frozen = next(s for s in nats_cluster.servers if s.port == _port(store))
            frozen.pause()
            try:

                async def moved() -> bool:
                    return store.connected and _port(store) != frozen.port

                await settled(moved, "another server")
            finally:
                frozen.resume()

    run(body())


def test_a_frozen_server_with_unsent_bytes_does_not_hold_its_client(nats_server: NatsServer) -> None:
    """The case in which nats-py's own reconnection waits for ever: more was written than the socket takes."""

    async def body() -> None:
        async with connected(nats_server.url) as store:
            nats_server.pause()
            with pytest.raises(StoreError):
                await store.put_object(KEYS.configs, "a/1", b"x" * 8 * 1024 * 1024, timeout=1.0)
            await store.change_server()
            nats_server.resume()
            await settled(lambda: _written(store, "h1"), "a write after the thaw")

    run(body())


def test_a_straggler_of_the_same_chain_is_refused(nats_server: NatsServer) -> None:
    """A commit whose outcome is unknown is sent again with the same expectation: exactly one of the two lands."""

    async def body() -> None:
        async with connected(nats_server.url) as store:
            for round_ in range(5):
                journal = await store.read(KEYS.control, "journal")
                nats_server.pause()
                first = asyncio.create_task(_chain(store, b"first", journal.revision, 0.3))
                assert await first is None
                nats_server.resume()

                async def again(revision: int = journal.revision) -> bool:
                    await _chain(store, b"second", revision, 5)
                    return True

                await settled(again, "an answer")
                found = await store.read(KEYS.control, "journal")
                assert found.value in (b"first", b"second")
                assert (await store.read(KEYS.control, "assign.h1")).value == found.value
                assert (await store.mark(KEYS.control)).sequence == 2 * (round_ + 1), "one commit landed, not two"

    run(body())


async def _chain(store: NatsStore, name: bytes, journal: int, timeout: float) -> int | None:
    """The revision; None when the outcome is unknown or somebody else came first."""
    writes = [Write("journal", name, journal), Write("assign.h1", name)]
    try:
        return await store.commit(KEYS.control, writes, timeout=timeout)
    except (StoreError, Conflict):
        return None


async def _follow_until_it_fails(store: NatsStore, revision: int) -> None:
    while True:  # a thread of a server may still answer one write while the signal spreads
        revision = await store.write(KEYS.control, "journal", b"2", expected=revision, timeout=2)


@pytest.mark.cluster
def test_without_a_majority_nothing_is_claimed(nats_cluster: NatsCluster) -> None:
    async def body() -> None:
        async with connected(*nats_cluster.urls) as store:
            before = await patiently(lambda: store.write(KEYS.control, "journal", b"1", timeout=5), "a first write")
            for server in nats_cluster.servers[1:]:
                server.pause()
            try:
                with pytest.raises(StoreError) as refused:
                    await _follow_until_it_fails(store, before)
                assert not isinstance(refused.value, Conflict | Missing)
            finally:
                for server in nats_cluster.servers[1:]:
                    server.resume()

            async def healed() -> bool:
                found = await store.read(KEYS.control, "journal", timeout=2)
                await store.write(KEYS.control, "journal", b"3", expected=found.revision, timeout=2)
                return True

            await settled(healed, "a write after healing")

    run(body())


# --- connecting


def test_one_may_begin_before_the_server(tmp_path: Path) -> None:
    server = NatsServer(tmp_path / "nats", binary=require("nats-server"))

    async def body() -> None:
        settings = ConnectionSettings(servers=(server.url,))
        with pytest.raises(StoreUnavailable, match="cannot reach"):
            await connect(settings, name="test")
        told = asyncio.Event()
        waiting = asyncio.create_task(connect(settings, name="test", wait=True, waiting=lambda _: told.set()))
        await told.wait()
        await asyncio.to_thread(server.start)
        store = await waiting
        await ensure_streams(store, KEYS)
        await store.close()

    with contextlib.ExitStack() as stack:
        stack.callback(server.stop)
        run(body())


def test_wrong_credentials_are_said(tmp_path: Path) -> None:
    users = "authorization { user: shoal, password: secret }"
    with NatsServer(tmp_path / "nats", binary=require("nats-server"), config=users) as server:

        async def body() -> None:
            with pytest.raises(StoreUnavailable, match="refuses these credentials"):
                await connect(ConnectionSettings(servers=(server.url,), user="shoal", password="wrong"), name="test")
            async with connected(server.url, user="shoal", password="secret"):
                pass

        run(body())


@pytest.mark.parametrize("version", ["2.9.10", "2.11.9", "2.12.0", "nonsense"])
def test_an_old_server_is_refused_by_its_version(version: str) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        info = {"server_id": "x", "version": version, "max_payload": 1048576, "headers": True, "proto": 1}
        writer.write(f"INFO {json.dumps(info)}\r\n".encode())
        with contextlib.suppress(OSError):
            while line := await reader.readline():
                if line.startswith(b"PING"):
                    writer.write(b"PONG\r\n")
        writer.close()

    async def body() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            with pytest.raises(Unfit, match=rf"version {version}.*2\.12\.1"):
                await connect(ConnectionSettings(servers=(f"nats://127.0.0.1:{port}",)), name="test")

    run(body())


def test_a_server_without_jetstream_is_refused(tmp_path: Path) -> None:
    with NatsServer(tmp_path / "nats", binary=require("nats-server"), jetstream=False) as server:

        async def body() -> None:
            async with connected(server.url, ready=False) as store:
                with pytest.raises(StoreUnavailable, match="streams of shoal are not ready"):
                    await ensure_streams(store, KEYS, timeout=3)

        run(body())


def test_an_account_without_jetstream_is_refused(tmp_path: Path) -> None:
    accounts = (
        "accounts { A { jetstream: enabled, users: [{user: a, password: a}] }, B { users: [{user: b, password: b}] } }"
    )
    with NatsServer(tmp_path / "nats", binary=require("nats-server"), config=accounts) as server:

        async def body() -> None:
            async with connected(server.url, ready=False, user="b", password="b") as store:
                with pytest.raises(Unfit, match="not enabled for this account"):
                    await ensure_streams(store, KEYS, timeout=10)

        run(body())


# --- streams


def test_several_may_create_the_streams_at_once(nats_server: NatsServer) -> None:
    async def body() -> None:
        async with contextlib.AsyncExitStack() as stack:
            stores = [await stack.enter_async_context(connected(nats_server.url, ready=False)) for _ in range(5)]
            reports = await asyncio.gather(*(ensure_streams(store, KEYS) for store in stores))
            assert all(report.ok and report.replicas == 1 for reported in reports for report in reported)
            assert all(report.ok for report in await describe_streams(stores[0], KEYS))

    run(body())


@pytest.mark.slow
@pytest.mark.cluster
def test_a_cluster_gets_three_replicas_also_while_it_is_starting(tmp_path: Path) -> None:
    cluster = NatsCluster(tmp_path / "nats", binary=require("nats-server"))

    async def body() -> None:
        cluster[0].launch()
        store = await connect(ConnectionSettings(servers=tuple(cluster.urls)), name="test", wait=True)
        ensuring = asyncio.create_task(ensure_streams(store, KEYS))
        cluster[1].launch()
        cluster[2].launch()
        assert {report.replicas for report in await ensuring} == {3}
        await store.close()

    try:
        run(body())
    finally:
        cluster.kill()


def test_buckets_that_users_made_first_are_accepted_and_mended(nats_server: NatsServer) -> None:
    async def body() -> None:
        async with connected(nats_server.url, ready=False) as store:
            bucket = KEYS.pipelines
            made = {"name": f"KV_{bucket}", "subjects": [f"$KV.{bucket}.>"], "max_msgs_per_subject": 1}
            made |= {"discard": "new", "allow_rollup_hdrs": True, "deny_delete": True, "description": "mine"}
            await api(store, f"STREAM.CREATE.KV_{bucket}", made)
            objects = {"name": f"OBJ_{KEYS.configs}", "subjects": [f"$O.{KEYS.configs}.{k}.>" for k in "MC"]}
            await api(store, f"STREAM.CREATE.OBJ_{KEYS.configs}", objects | {"allow_rollup_hdrs": True})
            revision = await store.write(bucket, "orders", b"{}")
            await ensure_streams(store, KEYS)
            config = (await api(store, f"STREAM.INFO.KV_{bucket}"))["config"]
            assert (config["max_msgs_per_subject"], config["description"]) == (64, "mine")
            assert (await store.read(bucket, "orders")).revision == revision

    run(body())


@pytest.mark.parametrize(
    ("bucket", "change", "words"),
    [
        ("pipelines", {"max_age": 60_000_000_000}, "nats stream edit KV_shoal_pipelines --max-age 0"),
        ("pipelines", {"subjects": ["$KV.shoal_pipelines.*", "$KV.shoal_pipelines.*.>"]}, "subjects is .* must be"),
        ("control", {"storage": "memory"}, "nats stream rm KV_shoal_control"),
        ("hosts", {"max_consumers": 3}, "max_consumers is 3 and must be"),
        (
            "hosts",
            {"allow_msg_ttl": True, "allow_rollup_hdrs": True, "subject_delete_marker_ttl": 1_000_000_000},
            "marker",
        ),
    ],
    ids=["expiring", "subjects", "memory", "consumers", "markers"],
)
def test_a_configuration_that_correctness_forbids_is_refused_with_the_repair(
    nats_server: NatsServer, bucket: str, change: dict[str, Any], words: str
) -> None:
    async def body() -> None:
        async with connected(nats_server.url, ready=False) as store:
            name = f"KV_shoal_{bucket}"
            made = {"name": name, "subjects": [f"$KV.shoal_{bucket}.>"], "max_msgs_per_subject": 1, "discard": "new"}
            answer = await api(store, f"STREAM.CREATE.{name}", made | change)
            assert "error" not in answer, answer
            with pytest.raises(Unfit, match=words) as refused:
                await ensure_streams(store, KEYS)
            assert name in str(refused.value)
            assert any(name == report.stream and not report.ok for report in await describe_streams(store, KEYS))

    run(body())


@pytest.mark.parametrize(
    ("bucket", "change"),
    [
        ("control", {}),
        ("hosts", {"allow_rollup_hdrs": True}),
        ("reports", {"discard": "old", "max_msgs_per_subject": 5}),
    ],
    ids=["control-without-atomic-and-republish", "hosts-with-roll-up", "reports-that-evict"],
)
def test_what_is_harmless_to_mend_is_mended(nats_server: NatsServer, bucket: str, change: dict[str, Any]) -> None:
    async def body() -> None:
        async with connected(nats_server.url, ready=False) as store:
            name = f"KV_shoal_{bucket}"
            made = {"name": name, "subjects": [f"$KV.shoal_{bucket}.>"], "max_msgs_per_subject": 1, "discard": "new"}
            assert "error" not in await api(store, f"STREAM.CREATE.{name}", made | change)
            assert all(report.ok for report in await ensure_streams(store, KEYS))

    run(body())


def test_nobody_can_erase_what_agents_write(nats_server: NatsServer) -> None:
    async def body() -> None:
        async with connected(nats_server.url) as store:
            await store.write(KEYS.hosts, "h1", b"x")
            msg = await store.link.request(
                f"$KV.{KEYS.hosts}.h2", b"", headers={"Nats-Rollup": "all"}, timeout=10, effect=True
            )
            assert "error" in json.loads(msg.data)
            assert "error" in await api(store, f"STREAM.PURGE.KV_{KEYS.hosts}")
            assert (await store.read(KEYS.hosts, "h1")).value == b"x"

    run(body())


def test_doctor_names_what_is_missing(nats_server: NatsServer) -> None:
    async def body() -> None:
        async with connected(nats_server.url) as store:
            await api(store, f"STREAM.DELETE.KV_{KEYS.reports}")
            reports = {report.stream: report for report in await describe_streams(store, KEYS)}
            assert not reports[f"KV_{KEYS.reports}"].ok
            assert "does not exist" in reports[f"KV_{KEYS.reports}"].differs[0]
            assert sum(report.ok for report in reports.values()) == len(reports) - 1

    run(body())


# --- the nats command


def test_objects_and_records_are_shared_with_the_nats_command(nats_server: NatsServer, tmp_path: Path) -> None:
    nats = require("nats")
    ours, theirs, fetched = tmp_path / "ours.yaml", tmp_path / "theirs.yaml", tmp_path / "fetched.yaml"
    ours.write_bytes(b"input: {}\n" * 40_000)
    theirs.write_bytes(b"output: {}\n" * 30_000)

    def command(*arguments: str) -> str:
        result = subprocess.run(
            [nats, "--server", nats_server.url, *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    async def body() -> None:
        async with connected(nats_server.url) as store:
            await asyncio.to_thread(
                command, "object", "put", KEYS.configs, str(theirs), "--name", "orders/1", "--no-progress"
            )
            data = await store.get_object(KEYS.configs, "orders/1", bytes_max=10**6, timeout=20)
            assert data == theirs.read_bytes()

            await store.put_object(KEYS.configs, "orders/2", ours.read_bytes())
            await asyncio.to_thread(
                command, "object", "get", KEYS.configs, "orders/2", "--output", str(fetched), "--no-progress", "--force"
            )
            assert fetched.read_bytes() == ours.read_bytes()

            async with aclosing(store.watch(KEYS.pipelines)) as items:  # type: ignore[type-var]
                assert isinstance(await anext(items), Listing)
                for arguments, value in (
                    (("put", KEYS.pipelines, "orders", '{"id":"orders"}'), b'{"id":"orders"}'),
                    (("del", KEYS.pipelines, "orders", "--force"), None),
                    (("put", KEYS.pipelines, "orders", "{}"), b"{}"),
                    (("purge", KEYS.pipelines, "orders", "--force"), None),
                ):
                    await asyncio.to_thread(command, "kv", *arguments)
                    item = await anext(items)
                    assert isinstance(item, Change)
                    assert (item.entry.key, item.entry.value) == ("orders", value)

    run(body())


@pytest.mark.parametrize(
    ("meta", "words"),
    [
        (b"not json", "unreadable"),
        (b'{"name": "a/1", "options": {"link": {"bucket": "x", "name": "y"}}}', "links are not followed"),
        (
            b'{"name": "a/1", "nuid": "n", "size": 5, "chunks": 1, "digest": "SHA-256=' + 43 * b"A" + b'="}',
            "do not match its digest",
        ),
        (b'{"name": "a/1", "nuid": "n", "size": 2, "chunks": 1, "digest": ""}', "5 of 2 bytes"),
    ],
    ids=["no-json", "link", "digest", "size"],
)
def test_foreign_metadata_is_refused_in_words(nats_server: NatsServer, meta: bytes, words: str) -> None:
    async def body() -> None:
        async with connected(nats_server.url) as store:
            await store.link.request(f"$O.{KEYS.configs}.C.n", b"12345", timeout=10, effect=True)
            await store.link.request(f"$O.{KEYS.configs}.M.YS8x", meta, timeout=10, effect=True)
            with pytest.raises(BadInput, match=words):
                await store.get_object(KEYS.configs, "a/1", bytes_max=1000, timeout=20)
            async with aclosing(store.watch_objects(KEYS.configs)) as items:  # type: ignore[type-var]
                found = await anext(items)
                assert isinstance(found, Listing)
                assert set(found.entries) == {"a/1"}

    run(body())
