"""What `shoal hosts forget` believes before it deletes anything, over the fake store."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from cli.cluster import Cluster, TimedOut
from cli.forgetting import delete, look, objection, until_let_go
from cli.hosts import going_on
from shared.documents import Assignment, Driver, Heartbeat, Observed, Report, Session, Stray, decode, encode
from shared.errors import Refused
from shared.keys import Keys, assign_key
from shared.states import Phase
from tests.support.fake_store import FakeStoreServer

KEYS = Keys()
SESSION = Session("a", "b", 1)


def run(test: Callable[[Cluster], Awaitable[None]]) -> None:
    async def body() -> None:
        server = FakeStoreServer()
        server.create_streams(KEYS)
        await test(Cluster(server.connect("cli"), KEYS))

    asyncio.run(body())


def beat(sequence: int, dead: Session | None = None) -> bytes:
    return encode(
        Heartbeat(
            store_id="s",
            host="h",
            session=SESSION,
            sequence=sequence,
            lease_s=8,
            fence_kill_s=2,
            poll_s=0.25,
            cpu=4,
            memory_bytes=1,
            drivers={"process": Driver(True)},
            dead=dead,
        )
    )


def test_a_host_is_let_go_when_the_leader_has_deleted_its_document() -> None:
    async def test(cluster: Cluster) -> None:
        await cluster.store.write(KEYS.control, assign_key("h"), b"{}")
        known = await look(cluster.read, KEYS, "h")
        with pytest.raises(TimedOut):
            await until_let_go(cluster.read, KEYS, known, 0.0)
        await cluster.store.write(KEYS.control, assign_key("h"), None)
        await until_let_go(cluster.read, KEYS, known, 0.0)

    run(test)


def test_a_document_that_is_gone_with_its_stream_was_let_go_by_nobody() -> None:
    async def test(cluster: Cluster) -> None:
        await cluster.store.write(KEYS.control, assign_key("h"), b"{}")
        known = await look(cluster.read, KEYS, "h")
        server = FakeStoreServer()
        server.create_streams(KEYS)
        with pytest.raises(Refused, match="the control stream is another one now"):
            await until_let_go(server.connect("cli").read, KEYS, known, 60.0)

    run(test)


def test_a_host_that_nobody_commands_is_asked_about() -> None:
    async def test(cluster: Cluster) -> None:
        assert not objection(await look(cluster.read, KEYS, "h"))
        report = Report(store_id="s", host="h", session=SESSION, term=1, plan=1)
        await cluster.store.write(KEYS.reports, "h", encode(report))
        assert not objection(await look(cluster.read, KEYS, "h")), "it has nothing"
        await cluster.store.write(KEYS.reports, "h", b"what is this?")
        assert "may run there" in objection(await look(cluster.read, KEYS, "h"))
        await cluster.store.write(KEYS.control, assign_key("h"), b"{}")
        assert not objection(await look(cluster.read, KEYS, "h")), "the leader decides"

    run(test)


@pytest.mark.parametrize(
    ("told", "commanded", "names"),
    [(True, True, ["p-0-1"]), (True, False, ["p-0-1"]), (False, True, []), (False, False, ["q-0-2"])],
)
def test_an_operator_may_say_that_a_host_with_what_nobody_commands_is_dead(
    told: bool, commanded: bool, names: list[str]
) -> None:
    async def test(cluster: Cluster) -> None:
        last = replace(decode(Heartbeat, beat(1)), store_id="", strays_unknown="" if told else "the engine hangs")
        stray = Stray(store_id="lost", execution="p-0-1", pipeline="p", slot=0, version="1", digest="d")
        seen = Observed(execution="q-0-2", pipeline="q", slot=0, version="1", digest="d", phase=Phase.READY)
        report = Report(store_id="lost", host="h", session=SESSION, term=1, plan=1, executions=(seen,))
        document = Assignment(store_id="s", term=1, plan=1, host="h", session=SESSION)
        await cluster.store.write(KEYS.hosts, "h", encode(replace(last, strays=(stray,) if told else ())))
        await cluster.store.write(KEYS.reports, "h", encode(report))
        if commanded:
            await cluster.store.write(KEYS.control, assign_key("h"), encode(document))
        assert await going_on(cluster, "h") == names

    run(test)


@pytest.mark.parametrize("commanded", [False, True])
def test_a_host_with_what_no_store_commands_is_asked_about(commanded: bool) -> None:
    async def test(cluster: Cluster) -> None:
        stray = Stray(store_id="lost", execution="p-0-1", pipeline="p", slot=0, version="1", digest="d")
        await cluster.store.write(KEYS.hosts, "h", encode(replace(decode(Heartbeat, beat(1)), strays=(stray,))))
        if commanded:
            await cluster.store.write(KEYS.control, assign_key("h"), b"{}")
        assert "p-0-1 may run on h" in objection(await look(cluster.read, KEYS, "h"))
        await cluster.store.write(KEYS.hosts, "h", b"what is this?")
        assert not objection(await look(cluster.read, KEYS, "h")), "nothing is known of strays"

    run(test)


@pytest.mark.parametrize(
    ("last", "kept"), [(beat(1), False), (beat(1, dead=SESSION), False), (beat(2), True)], ids=["same", "dead", "heard"]
)
def test_what_a_host_said_is_deleted_unless_it_was_heard_again(last: bytes, kept: bool) -> None:
    async def test(cluster: Cluster) -> None:
        await cluster.store.write(KEYS.hosts, "h", beat(1))
        await cluster.store.write(KEYS.reports, "h", b"{}")
        known = await look(cluster.read, KEYS, "h")
        if last != beat(1):
            await cluster.store.write(KEYS.hosts, "h", last)
        if kept:
            with pytest.raises(Refused, match="heard again"):
                await delete(cluster.read, cluster.store, KEYS, known)
        else:
            await delete(cluster.read, cluster.store, KEYS, known)
        for bucket in (KEYS.hosts, KEYS.reports):
            assert ((await cluster.read(bucket, "h")).value is not None) is kept

    run(test)
