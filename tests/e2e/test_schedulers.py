"""Schedulers that die, leave and stand by, above hosts that really run something: nobody below notices."""

import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.support.engines import Engine
from tests.support.nats_servers import NatsServer
from tests.support.real import SHARED, TICK, RealCluster, Running, real_cluster, until

BOUND_S = 10.0  # the bench holds the real bars, 3.5 s and 0.2 s; a loaded machine must not fail the tests


@pytest.fixture(scope="module", params=["process", pytest.param("docker", marks=pytest.mark.docker)])
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealCluster]:
    """Three schedulers, three hosts, and pipelines of every sort on them."""
    engines: Sequence[Engine] = request.getfixturevalue("engines_session") if request.param == "docker" else ()
    directory = tmp_path_factory.mktemp("cluster")
    with real_cluster(directory, driver=request.param, engines=engines, schedulers=3) as running:
        running.publish("shared", SHARED, replicas=3)
        running.publish("alone", TICK)
        running.publish("resting", TICK)
        running.until_state("resting", "running")
        running.put_record("resting", status="paused")
        running.until_state("resting", "paused")
        for pipeline in ("shared", "alone"):
            running.until_state(pipeline, "running")
        yield running
        running.remove_all()


def everything(cluster: RealCluster) -> list[Running]:
    """All that exists on all hosts: ids, start times and what is inside."""
    return [one for pipeline in ("shared", "alone", "resting") for one in cluster.found(pipeline)]


def holder(cluster: RealCluster) -> str:
    """Who wrote the journal last: a takeover writes it."""
    return str((cluster.document("control", "journal") or {}).get("holder", ""))


def next_leader(cluster: RealCluster, before: str) -> float:
    """Until another instance has written the journal; how long it took."""
    began = time.monotonic()
    until(lambda: holder(cluster) not in ("", before), "another scheduler leads", BOUND_S)
    return time.monotonic() - began


@pytest.mark.timeout(180)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "told-to-end"])
def test_another_leads_and_what_runs_is_not_touched(cluster: RealCluster, number: signal.Signals) -> None:
    before = everything(cluster)
    assert [r.alive for r in before] == [True] * 4 + [False]
    name, instance = cluster.leader(), holder(cluster)
    cluster.local.signal(name, number)
    took = next_leader(cluster, instance)
    print(f"{number.name}: another leader after {took:.2f} s")
    assert took <= BOUND_S
    assert cluster.local.ends(name) == (-signal.SIGKILL if number is signal.SIGKILL else 0)
    until(lambda: cluster.leader() not in ("", name), "it renews the lease")
    assert everything(cluster) == before

    # The new one decides: a pipeline is published, and everything else stays as it was.
    cluster.publish("after", TICK)
    cluster.until_state("after", "running")
    cluster.delete_record("after")
    cluster.wait_no_trace("after")
    assert everything(cluster) == before
    cluster.local.start_scheduler(name)
    cluster.assert_all_alive()


@pytest.mark.timeout(180)
def test_a_leader_that_starts_alone_after_all_were_killed_changes_nothing(cluster: RealCluster) -> None:
    before = everything(cluster)
    names = [name for name in cluster.local.children if name.startswith("scheduler")]
    statuses = {p: cluster.status(p) for p in ("shared", "alone", "resting")}
    for name in names:
        cluster.local.kill(name)
    assert cluster.leader() == ""
    # Whoever publishes now waits until somebody decides.
    cluster.publish("early", TICK)
    late = cluster.shoal("wait", "early", "--timeout", "1s", code=3)
    assert "is a scheduler running? `shoal leader` tells" in late
    cluster.local.start_scheduler(names[0])
    cluster.until_state("early", "running")
    assert everything(cluster) == before
    assert {p: cluster.status(p) for p in statuses} == statuses, "a quiet cluster is not written to"
    cluster.delete_record("early")
    cluster.wait_no_trace("early")
    for name in names[1:]:
        cluster.local.start_scheduler(name)


@pytest.mark.timeout(180)
def test_a_standby_that_dies_changes_nothing_at_all(cluster: RealCluster) -> None:
    before, leader, instance = everything(cluster), cluster.leader(), holder(cluster)
    standby = next(n for n in cluster.local.children if n.startswith("scheduler") and n != leader)
    cluster.local.kill(standby)
    cluster.publish("beside", TICK)
    cluster.until_state("beside", "running")
    assert (cluster.leader(), holder(cluster)) == (leader, instance)
    assert everything(cluster) == before
    cluster.delete_record("beside")
    cluster.wait_no_trace("beside")
    cluster.local.start_scheduler(standby)


@pytest.mark.timeout(180)
def test_two_clusters_in_one_nats_know_nothing_of_each_other(nats_session: NatsServer, tmp_path: Path) -> None:
    with (
        real_cluster(tmp_path / "one", name="one", servers=nats_session, hosts=1) as one,
        real_cluster(tmp_path / "two", name="two", servers=nats_session, hosts=1) as two,
    ):
        digests = {}
        for cluster, data in ((one, TICK), (two, TICK + b"# of the other cluster\n")):
            digests[cluster.local.cluster] = cluster.put_config("orders", "1", data)
            cluster.put_record("orders")
        for cluster in (one, two):
            cluster.until_state("orders", "running")
            assert cluster.the("orders").config_digest == digests[cluster.local.cluster]
            assert [r["host"] for r in cluster.json("hosts")] == ["host-1"]
        other = two.the("orders")
        one.delete_record("orders")
        one.wait_no_trace("orders")
        assert two.the("orders") == other
        one.local.kill("scheduler-1")
        two.put_record("orders", status="paused")
        two.until_state("orders", "paused")
        two.delete_record("orders")
        two.wait_no_trace("orders")
