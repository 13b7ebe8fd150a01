"""A stranger's messages in the streams of the store: every reader reads on, and what is good arrives."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from shared.connection import ConnectionSettings
from shared.errors import ShoalError
from shared.keys import Keys
from shared.nats_store import NatsStore, connect
from shared.nats_streams import ensure_streams
from shared.store import Change, Listing, Stalled, WatchItem
from tests.support.hostile import HEADERS, KEYS, VALUES, written
from tests.support.intruder import Intruder, strange_keys
from tests.support.nats_servers import NatsServer

BOUND_S = 90.0
META = {"name": "evil/1", "bucket": "b", "nuid": "NUID", "size": 10, "chunks": 1, "digest": "x", "options": {}}


async def opened(server: NatsServer, cluster: str) -> NatsStore:
    store = await connect(ConnectionSettings(servers=(server.url,)), name="test")
    await ensure_streams(store, Keys(cluster))
    return store


async def until_key(items: AsyncIterator[WatchItem], key: str) -> int:
    """Read on until `key` comes; how often the watch had to begin anew."""
    stalls = 0
    async for item in items:
        match item:
            case Listing(entries=entries) if key in entries:
                return stalls
            case Change(entry) if entry.key == key:
                return stalls
            case Stalled():
                stalls += 1
            case _:
                pass
    raise AssertionError("a watch never ends")


@pytest.mark.parametrize("bucket", ["pipelines", "hosts", "reports", "control", "operator"])
def test_a_watch_reads_over_everything(nats_session: NatsServer, cluster_name: str, bucket: str) -> None:
    async def body() -> None:
        keys = Keys(cluster_name)
        name: str = getattr(keys, bucket)
        store = await opened(nats_session, cluster_name)
        try:
            async with (
                asyncio.timeout(BOUND_S),
                aclosing(store.watch(name)) as live,  # type: ignore[type-var]
            ):
                assert isinstance(await anext(live), Listing)
                await asyncio.to_thread(flood, name)
                await store.write(name, "good", b"{}")
                assert await until_key(live, "good") == 0, "live"
                async with aclosing(store.watch(name)) as fresh:  # type: ignore[type-var]
                    assert await until_key(fresh, "good") == 0, "listed"
                for key in (*KEYS, *(f"headers-{number}" for number in range(len(HEADERS)))):
                    for read in (store.read(name, key), store.read_at_least(name, key, 1, timeout=1.0)):
                        try:
                            await read
                        except ShoalError:
                            continue
                assert store.connected
        finally:
            await store.close()

    def flood(name: str) -> None:
        with Intruder(nats_session.url) as intruder:
            strange_keys(intruder, name)

    asyncio.run(body())


def test_a_watch_of_objects_reads_over_everything(nats_session: NatsServer, cluster_name: str) -> None:
    def flood(bucket: str) -> None:
        with Intruder(nats_session.url) as intruder:
            for number, value in enumerate(VALUES):
                for field in META:
                    intruder.describe(bucket, f"evil-{number}/1", written({**META, field: value}))
            for number, nuid in enumerate((">", "*", "a.b", "a b", f"a\r\nPUB {cluster_name}.injected 2\r\n{{}}", "é")):
                intruder.describe(bucket, f"nuid-{number}/1", written({**META, "nuid": nuid}))
            for token in ("=", "!!!", "a.b", "x" * 3000, "AA==", "AAAA"):
                intruder.publish(f"$O.{bucket}.M.{token}", written(META), headers={"Nats-Rollup": "sub"})
            for headers in HEADERS:
                intruder.publish(f"$O.{bucket}.M.ZXZpbC8x", b"", headers=headers)

    async def body() -> None:
        bucket = Keys(cluster_name).configs
        store = await opened(nats_session, cluster_name)
        try:
            injected = await store.subscribe(f"{cluster_name}.injected")
            async with (
                asyncio.timeout(BOUND_S),
                aclosing(store.watch_objects(bucket)) as live,  # type: ignore[type-var]
            ):
                assert isinstance(await anext(live), Listing)
                await asyncio.to_thread(flood, bucket)
                await store.put_object(bucket, "good/1", b"x" * 300_000)
                assert await until_key(live, "good/1") == 0
                for name in (*(f"evil-{n}/1" for n in range(0, len(VALUES), 12)), *(f"nuid-{n}/1" for n in range(6))):
                    with pytest.raises(ShoalError):
                        await store.get_object(bucket, name, bytes_max=1000, timeout=2.0)
                    await store.put_object(bucket, name, b"y")  # purges what the stranger's metadata names
                assert await store.get_object(bucket, "good/1", bytes_max=400_000) == b"x" * 300_000
            waiting = asyncio.create_task(injected.next())
            await store.publish(f"{cluster_name}.injected", b"own")
            assert (await waiting).data == b"own", "no command of a stranger was passed on"
        finally:
            await store.close()

    asyncio.run(body())


def test_hints_of_strangers_are_read_or_ignored(nats_session: NatsServer, cluster_name: str) -> None:
    async def body() -> None:
        subject = Keys(cluster_name).live_assign("h1")
        store = await connect(ConnectionSettings(servers=(nats_session.url,)), name="test")
        try:
            hints = await store.subscribe(subject)
            await store.publish(subject, b"first")
            assert (await hints.next()).data == b"first", "the subscription stands"
            await asyncio.to_thread(flood, subject)
            async with asyncio.timeout(BOUND_S):
                while (found := await hints.next()).data != b"last":
                    assert 0 <= found.sequence < 2**64
        finally:
            await store.close()

    def flood(subject: str) -> None:
        with Intruder(nats_session.url) as intruder:
            for headers in (*HEADERS, {"Nats-Sequence": "²"}, {"Nats-Sequence": "-1"}, {"Nats-Sequence": str(2**63)}):
                intruder.publish(subject, b"x", headers=headers)
            intruder.publish(subject, b"last")

    asyncio.run(body())
