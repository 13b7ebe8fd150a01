"""Nothing of a deposed leader lands, and nothing of the same leader that arrives late: on real servers."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client

from scheduler.journal import Batch, Deposed, Landed
from shared import documents
from shared.connection import ConnectionSettings
from shared.documents import decode
from shared.keys import JOURNAL, Keys, assign_key
from shared.nats_store import NatsStore, connect
from shared.nats_streams import ensure_streams
from shared.store import Entry, Write
from tests.support import processes
from tests.support.nats_servers import NatsCluster, NatsServer
from tests.support.patience import patiently
from tests.support.stopping_leader import MESSAGES, assignments, batch, take_over

STEPS = range(MESSAGES + 2)


def _stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


async def _until_stopped(pid: int, log: Path) -> None:
    deadline = time.monotonic() + 60
    while not _stopped(pid):
        assert time.monotonic() < deadline, processes.log_tail(log)
        await asyncio.sleep(0.02)


async def _paused_at(step: int, url: str, cluster: str, replicas: int, directory: Path) -> None:
    keys = Keys(cluster)
    store = await connect(ConnectionSettings(servers=tuple(url.split(","))), name="successor")
    await ensure_streams(store, keys, replicas=replicas)
    log = directory / "stopping.log"
    command = [sys.executable, "-m", "tests.support.stopping_leader", url, cluster, str(step)]
    child = processes.spawn([str(part) for part in command], log, cwd=Path(__file__).parents[2])
    try:
        await _until_stopped(child.pid, log)
        successor = await take_over(store, keys, "successor")
        term = successor.chain.term
        before = await assignments(store, keys)
        # Only one of the documents, so that the others would show what the deposed leader still got in.
        value = json.dumps({"who": "successor"}).encode()
        landed = await successor.commit(Batch(99, (Write(assign_key("h0"), value),)))
        assert isinstance(landed, Landed)

        processes.send(child, signal.SIGCONT)
        deadline = time.monotonic() + 60
        while child.poll() is None:
            assert time.monotonic() < deadline, processes.log_tail(log)
            await asyncio.sleep(0.02)
        outcomes = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
        assert child.returncode == 0, processes.log_tail(log)
        assert outcomes[-1]["deposed"], "it must learn that it was deposed"
        assert all(outcome["revision"] < term for outcome in outcomes), "nothing lands after the takeover"

        after = await assignments(store, keys)
        assert after[0].value == value
        assert after[1:] == before[1:]
        plans = {json.loads(entry.value or b"{}").get("plan") for entry in after[1:]}
        assert len(plans) == 1, "a batch lands whole or not at all"
        # All messages were on their way when it stopped: whether it had landed by the takeover is the server's affair.
        assert plans <= ({3} if step > MESSAGES else {2, 3} if step == MESSAGES else {2})
        again = await successor.commit(batch(100, "successor"))
        assert isinstance(again, Landed), "and it has not disturbed its successor's chain"
    finally:
        processes.kill(child)
        await store.close()


@pytest.mark.parametrize("step", STEPS)
def test_a_leader_paused_at_every_step_of_a_commit(
    step: int, nats_session: NatsServer, cluster_name: str, tmp_path: Path
) -> None:
    asyncio.run(_paused_at(step, nats_session.url, cluster_name, 1, tmp_path))


@pytest.mark.cluster
@pytest.mark.parametrize("step", STEPS)
def test_a_leader_paused_at_every_step_of_a_commit_on_three_servers(
    step: int, nats_cluster_session: NatsCluster, cluster_name: str, tmp_path: Path
) -> None:
    asyncio.run(_paused_at(step, nats_cluster_session.url, cluster_name, 3, tmp_path))


class _TwoRoads:
    """A store that uses one connection until it is told to use the other, as a client that changes its server.

    With `fenced` False the first attempt goes without expectations: what a journal without compare-and-set would send.
    """

    def __init__(self, first: NatsStore, second: NatsStore, fenced: bool) -> None:
        self._stores = (first, second)
        self._fenced = fenced
        self.turned = False

    @property
    def _store(self) -> NatsStore:
        return self._stores[self.turned]

    async def commit(self, bucket: str, writes: Sequence[Write], *, timeout: float = 2.0) -> int:
        if not (self._fenced or self.turned):
            writes = [replace(write, expected=None) for write in writes]
        return await self._store.commit(bucket, writes, timeout=timeout)

    async def read(self, bucket: str, key: str, *, timeout: float = 2.0) -> Entry:
        return await self._store.read(bucket, key, timeout=timeout)


async def _thawed(nats_cluster: NatsCluster, keys: Keys, fenced: bool, monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """The plans that the documents are of, after a server thawed that was frozen with a whole batch inside.

    The leader knows only that the outcome is unknown, commits again by another way, and once more; then the server
    thaws and forwards the old batch.
    """
    setup = await connect(ConnectionSettings(servers=tuple(nats_cluster.urls)), name="setup")
    await ensure_streams(setup, keys, replicas=3)
    leader = nats_cluster.stream_leader(f"KV_{keys.control}")
    assert leader is not None
    slow = next(server for server in nats_cluster.servers if server is not leader)
    by_slow = await connect(ConnectionSettings(servers=(slow.url,)), name="by-the-slow-server")
    by_leader = await connect(ConnectionSettings(servers=(leader.url,)), name="by-the-leader")
    roads = _TwoRoads(by_slow, by_leader, fenced)
    journal = await take_over(by_leader, keys, "leader")
    journal._store = roads  # type: ignore[assignment]

    publish = Client.publish

    async def freezing(self: Client, subject: str, payload: bytes = b"", reply: str = "", headers: Any = None) -> None:
        if headers and "Nats-Batch-Commit" in headers and not roads.turned:
            slow.pause()
            roads.turned = True  # the next attempt goes to the other server
        await publish(self, subject, payload, reply, headers)

    monkeypatch.setattr(Client, "publish", freezing)
    try:
        first = await journal.commit(batch(2, "first"))
        assert roads.turned, "the server was frozen in the middle of the first attempt"
        assert isinstance(first, Landed)
        second = await journal.commit(batch(3, "second"))
        assert isinstance(second, Landed)
    finally:
        slow.resume()
    await _drained(slow, "by-the-slow-server")
    # By the same way as the straggler, and behind it: when this is answered, the straggler was judged.
    await patiently(lambda: by_slow.write(keys.control, "status.marker", b"{}", timeout=5), "a write after the thaw")
    plans = {json.loads(entry.value or b"")["plan"] for entry in await assignments(by_leader, keys)}
    third = await journal.commit(batch(4, "third"))
    if fenced:
        assert isinstance(third, Landed), "the straggler has not landed, or this would be refused"
        found = decode(documents.Journal, (await by_leader.read(keys.control, JOURNAL)).value or b"")
        assert found.plan == 4
    for store in (setup, by_slow, by_leader):
        await store.close()
    return plans


async def _drained(server: NatsServer, name: str) -> None:
    """Until the server has read everything that connection `name` had sent before, or has closed it."""
    deadline = time.monotonic() + 30
    while True:
        connections = await asyncio.to_thread(server.monitor, "/connz?state=open")
        mine = [found for found in connections["connections"] if found.get("name") == name]
        if not mine or any(found["in_msgs"] >= MESSAGES for found in mine):
            return
        assert time.monotonic() < deadline, mine
        await asyncio.sleep(0.05)


@pytest.mark.cluster
def test_a_batch_that_a_thawed_server_delivers_late_is_refused(
    nats_cluster: NatsCluster, cluster_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert asyncio.run(_thawed(nats_cluster, Keys(cluster_name), True, monkeypatch)) == {3}


@pytest.mark.cluster
def test_without_the_fence_that_batch_lands(
    nats_cluster: NatsCluster, cluster_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control of the test above: the straggler does arrive, and only the expectation keeps it out.

    A thawed server may close the connection before it has read it; then nothing arrives, and it is tried again.
    """
    for attempt in range(5):
        with monkeypatch.context() as patch:
            plans = asyncio.run(_thawed(nats_cluster, Keys(f"{cluster_name}-{attempt}"), False, patch))
        if plans == {2}:
            return
        assert plans == {3}, "a batch lands whole or not at all"
    pytest.fail("no straggler ever arrived: the test above proves nothing")


def test_two_leaders_at_once_do_no_harm(nats_session: NatsServer, cluster_name: str) -> None:
    """Both believe; every plan number lands once, and the documents are always those of one plan."""

    async def scenario() -> None:
        keys = Keys(cluster_name)
        stores = [await connect(ConnectionSettings(servers=(nats_session.url,)), name=f"l{n}") for n in range(3)]
        await ensure_streams(stores[0], keys, replicas=1)
        journals = [await take_over(store, keys, f"l{n}") for n, store in enumerate(stores)]
        outcomes = await asyncio.gather(*(journal.commit(batch(10 + n, f"l{n}")) for n, journal in enumerate(journals)))
        assert [type(outcome) for outcome in outcomes] == [Deposed, Deposed, Landed]
        assert {json.loads(entry.value or b"")["who"] for entry in await assignments(stores[0], keys)} == {"l2"}
        for store in stores:
            await store.close()

    asyncio.run(scenario())
