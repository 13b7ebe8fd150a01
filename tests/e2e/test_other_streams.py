"""A commit lands in the very stream whose history its leader has read, in no other of its name: on real servers.

A stream that is made anew, or restored from an older backup, gives out the same revisions again. Here each journal is
made to stand at the very revision that a leader of the former stream expects.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import subprocess
from pathlib import Path
from typing import Any

import pytest

from scheduler.journal import Deposed, Journal, Landed
from scheduler.takeover import draft, former_term
from shared.connection import ConnectionSettings
from shared.errors import Conflict
from shared.keys import JOURNAL, LEASE, Keys
from shared.nats_store import NatsStore, connect
from shared.nats_streams import ensure_streams
from tests.support.components import require
from tests.support.nats_servers import NatsCluster, NatsServer
from tests.support.patience import patiently
from tests.support.stopping_leader import assignments, batch, take_over


async def _api(store: NatsStore, subject: str, body: Any = None) -> dict[str, Any]:
    payload = b"" if body is None else json.dumps(body).encode()
    message = await store.link.request(f"$JS.API.{subject}", payload, timeout=10, effect=False)
    answer: dict[str, Any] = json.loads(message.data)
    assert "error" not in answer, answer
    return answer


async def _make_anew(store: NatsStore, stream: str, first: int) -> None:
    """Delete a stream and make it again; its revisions begin at `first`, as if so much had been written since."""
    config = (await _api(store, f"STREAM.INFO.{stream}"))["config"]
    await _api(store, f"STREAM.DELETE.{stream}")
    await _api(store, f"STREAM.CREATE.{stream}", config | {"first_seq": first})


async def _anew(url: str, keys: Keys, replicas: int, *, fenced: bool) -> bool:
    """Whether the commit of a leader that knows nothing of it lands in a stream that was made anew."""
    store = await connect(ConnectionSettings(servers=tuple(url.split(","))), name="test")
    await ensure_streams(store, keys, replicas=replicas)
    leader = await take_over(store, keys, "leader")
    assert isinstance(await leader.commit(batch(2, "leader")), Landed)
    expected = leader.chain.revision
    await _make_anew(store, f"KV_{keys.control}", expected - 1)  # the lease's
    successor = await take_over(store, keys, "successor")
    assert successor.chain.revision == expected, "the new journal stands where the old one stood"
    landed = await _lands(store, keys, leader, fenced)
    if fenced:
        assert {entry.revision for entry in await assignments(store, keys)} == {0}
        assert isinstance(await successor.commit(batch(3, "successor")), Landed), "and nobody was disturbed"
    await store.close()
    return landed


async def _lands(store: NatsStore, keys: Keys, leader: Journal, fenced: bool) -> bool:
    """Whether the next commit of `leader` lands. Not `fenced`: without the key of its term."""
    if fenced:
        outcome = await leader.commit(batch(9, "leader"))
        assert isinstance(outcome, Landed | Deposed)
        return isinstance(outcome, Landed)
    _, writes = leader.chain.send(batch(9, "leader"), secrets.token_hex(8))
    unfenced = [write for write in writes if not write.key.startswith("term.")]
    try:
        await patiently(lambda: store.commit(keys.control, unfenced), "a commit without its fence")
    except Conflict:
        return False
    return True


@pytest.mark.parametrize("fenced", [True, False], ids=["fenced", "by revisions alone"])
def test_a_commit_of_a_stream_that_was_made_anew(fenced: bool, nats_session: NatsServer, cluster_name: str) -> None:
    assert asyncio.run(_anew(nats_session.url, Keys(cluster_name), 1, fenced=fenced)) is not fenced


@pytest.mark.cluster
@pytest.mark.parametrize("fenced", [True, False], ids=["fenced", "by revisions alone"])
def test_a_commit_of_a_stream_that_was_made_anew_on_three_servers(
    fenced: bool, nats_cluster_session: NatsCluster, cluster_name: str
) -> None:
    assert asyncio.run(_anew(nats_cluster_session.url, Keys(cluster_name), 3, fenced=fenced)) is not fenced


async def _restored(url: str, keys: Keys, directory: Path, *, fenced: bool) -> bool:
    """The same of one that was restored from a backup that was made in the term of this leader."""
    store = await connect(ConnectionSettings(servers=(url,)), name="test")
    await ensure_streams(store, keys, replicas=1)
    leader = await take_over(store, keys, "leader")
    assert isinstance(await leader.commit(batch(2, "leader")), Landed)
    stream = f"KV_{keys.control}"
    await asyncio.to_thread(_nats, url, "stream", "backup", stream, str(directory))
    before = await assignments(store, keys)
    await store.write(keys.control, LEASE, b"")  # as renewals do
    assert isinstance(await leader.commit(batch(3, "leader")), Landed)
    await _api(store, f"STREAM.DELETE.{stream}")
    await asyncio.to_thread(_nats, url, "stream", "restore", str(directory))
    assert await assignments(store, keys) == before
    successor = await take_over(store, keys, "successor")
    assert successor.chain.revision == leader.chain.revision
    landed = await _lands(store, keys, leader, fenced)
    if fenced:
        assert await assignments(store, keys) == before
    await store.close()
    return landed


def _nats(url: str, *arguments: str) -> None:
    command = [str(require("nats")), "--server", url, *arguments]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, f"nats {arguments}: {done.stdout!r} {done.stderr!r}"


@pytest.mark.parametrize("fenced", [True, False], ids=["fenced", "by revisions alone"])
def test_a_commit_of_a_stream_that_was_restored(
    fenced: bool, nats_session: NatsServer, cluster_name: str, tmp_path: Path
) -> None:
    found = asyncio.run(_restored(nats_session.url, Keys(cluster_name), tmp_path / "backup", fenced=fenced))
    assert found is not fenced


def test_a_takeover_of_a_stream_that_was_made_anew_is_refused(nats_session: NatsServer, cluster_name: str) -> None:
    """Of an instance that was held up just before it: lease and journal stand where it had read them."""

    async def scenario() -> None:
        keys = Keys(cluster_name)
        store = await connect(ConnectionSettings(servers=(nats_session.url,)), name="test")
        await ensure_streams(store, keys, replicas=1)
        await take_over(store, keys, "leader")
        lease, journal = await store.read(keys.control, LEASE), await store.read(keys.control, JOURNAL)
        former = await store.read(keys.control, former_term(journal))
        late = draft(lease, journal, former, holder="late", name="late")
        await _make_anew(store, f"KV_{keys.control}", 1)
        successor = await take_over(store, keys, "successor")
        assert await store.read(keys.control, JOURNAL) != journal
        assert (await store.read(keys.control, JOURNAL)).revision == journal.revision
        with pytest.raises(Conflict):
            await store.commit(keys.control, late.writes("late"))
        assert isinstance(await successor.commit(batch(3, "successor")), Landed)
        await store.close()

    asyncio.run(scenario())


def test_a_term_whose_key_somebody_has_written_ends_and_the_next_one_goes_on(
    nats_session: NatsServer, cluster_name: str
) -> None:
    async def scenario() -> None:
        keys = Keys(cluster_name)
        store = await connect(ConnectionSettings(servers=(nats_session.url,)), name="test")
        await ensure_streams(store, keys, replicas=1)
        leader = await take_over(store, keys, "leader")
        key = former_term(await store.read(keys.control, JOURNAL))
        await store.write(keys.control, key, b"somebody")
        assert isinstance(await leader.commit(batch(2, "leader")), Deposed)
        successor = await take_over(store, keys, "successor")
        assert isinstance(await successor.commit(batch(3, "successor")), Landed)
        assert (await store.read(keys.control, key)).value is None
        await store.close()

    asyncio.run(scenario())
