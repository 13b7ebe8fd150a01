"""Strangers write into every bucket, key and subject of a running cluster; what is good goes on, and what comes runs.

After each flood: no process has ended, what ran is untouched, a pipeline that is published afterwards runs, and the
cluster comes to rest again: no busy loop, no log that repeats itself, no memory that only grows.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.aftermath import SETTLE_S, Watch, steady_cluster, variants
from tests.support.hostile import BYTES, HEADERS
from tests.support.intruder import Intruder, strange_keys
from tests.support.real import RealCluster, until


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealCluster]:
    with steady_cluster(tmp_path_factory.mktemp("cluster")) as running:
        yield running


@pytest.fixture
def intruder(cluster: RealCluster) -> Iterator[Intruder]:
    with Intruder(cluster.url) as found:
        yield found


@pytest.mark.timeout(400)
def test_intents_of_operators(cluster: RealCluster, intruder: Intruder) -> None:
    watch = Watch(cluster)
    for prefix in ("", "host.", "restart.", "store.", "unknown.", "store"):
        strange_keys(intruder, "shoal_operator", prefix)
    for data in variants({"cordon": False, "drain": False, "forget": False, "confirm_dead": False, "reason": ""}):
        intruder.put("shoal_operator", "host.host-9", data)
        intruder.put("shoal_operator", "restart.nobody", data)
    for data in variants({"accept": "x", "replaces": "y", "reason": ""}):
        intruder.put("shoal_operator", "store", data)
    for data in BYTES:
        if not data.startswith(b'{"0') and data != b"{}":  # those are intents without a known word, and mean something
            for key in ("host.host-1", "restart.steady", "store"):
                intruder.put("shoal_operator", key, data)
    watch.over("after-intents")


@pytest.mark.timeout(400)
def test_heartbeats_pulses_and_tombstones(cluster: RealCluster, intruder: Intruder) -> None:
    watch = Watch(cluster)
    good = cluster.document("hosts", "host-1")
    assert good is not None
    strange_keys(intruder, "shoal_hosts")
    good |= {"drivers": {}}  # such a host is believed, and then it would get its share of the work
    for data in variants({**good, "host": "host-9"}):
        intruder.put("shoal_hosts", "host-9", data)
    for data in variants({**good, "host": "host-8", "dead": good["session"]}):
        intruder.put("shoal_hosts", "host-8", data)
    for data in (*variants({"store_id": good["store_id"], "term": 1, "number": 1}), *BYTES):
        intruder.put("shoal_hosts", "_pulse", data)
    for data in BYTES:  # over a host that lives: its agent loses its session and comes back in a new one
        intruder.put("shoal_hosts", "host-2", data)
    watch.over("after-heartbeats", kept=False)
    for pipeline in ("steady", "shared"):
        cluster.until_state(pipeline, "running", SETTLE_S)
    rows = {row["host"]: row for row in cluster.json("hosts")}
    assert rows["host-1"]["state"].startswith("alive")
    assert rows["host-2"]["state"].startswith("alive")


@pytest.mark.timeout(400)
def test_requests_and_hints(cluster: RealCluster, intruder: Intruder) -> None:
    watch = Watch(cluster)
    for host in ("host-1", "host-2"):
        for data in (*variants({"execution": "steady-0-1", "tail": 5, "follow": True, "stream": "s"}), *BYTES):
            intruder.publish(f"shoal.agent.{host}.logs", data, reply="intruder.answers")
            intruder.publish(f"shoal.agent.{host}.logs", data)
        for headers in (*HEADERS, {"Nats-Sequence": "\u00b2"}, {"Nats-Sequence": "-1"}, {"Nats-Sequence": str(2**63)}):
            for data in (b"", b"{}"):
                intruder.publish(f"shoal.live.assign.{host}", data, headers=headers)
        for data in BYTES:
            intruder.publish(f"shoal.live.assign.{host}", data)
            intruder.publish(f"shoal.event.state.{host}", data)
    for token in (b"\xff", b"a b", b"*", b">", b"x" * 3000):
        intruder.publish(b"shoal.event.state." + token, b"\xff")
    watch.over("after-requests")
    assert cluster.run("events").returncode == 0
    assert "tick" not in cluster.shoal("logs", "steady"), "it drops what it makes"


@pytest.mark.timeout(400)
def test_lease_and_journal(cluster: RealCluster, intruder: Intruder) -> None:
    """The lease heals by itself. A journal that cannot be read stops planning, and nothing else: it is said once, with
    the one command that goes on from there."""
    watch = Watch(cluster)
    lease = cluster.document("control", "lease")
    assert lease is not None
    for data in (*variants(lease), *BYTES):
        intruder.put("shoal_control", "lease", data)
    watch.over("after-lease")
    until(cluster.leader, "somebody leads")

    assert "is whole" in cluster.shoal("store", "repair", code=1)
    for data in BYTES:
        intruder.put("shoal_control", "journal", data)
    cluster.put_raw("nudge", b"{}")  # something to tell its owner: the leader's next commit
    said = "Nobody can lead: the journal cannot be read."

    def logs() -> str:
        return "".join(cluster.local.log(f"scheduler-{n}").read_text() for n in (1, 2))

    until(lambda: said in logs(), "it is said")
    for line in ("doctor", "leader", "store status"):
        told = cluster.run(*line.split())
        assert told.returncode == 1
        assert "shoal store repair" in " ".join((told.stdout + told.stderr).split()), line
    until(watch.rests, "nobody turns in circles", SETTLE_S)
    assert logs().count(said) <= 10, "once for each instance and each journal it met"
    cluster.assert_all_alive()
    cluster.shoal("store", "repair")
    until(cluster.leader, "somebody leads again", SETTLE_S)
    watch.over("after-journal")
