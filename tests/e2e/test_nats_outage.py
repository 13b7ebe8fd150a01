"""NATS that restarts, is away for a minute, loses a server, or a record without a word: nothing is lost or moved."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.components import require
from tests.support.nats_servers import NatsCluster, NatsServer
from tests.support.real import SHARED, TICK, RealCluster, Running, real_cluster, until

AWAY_S = 60.0
PIPELINES = ("shared", "alone", "resting")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    with NatsServer(tmp_path_factory.mktemp("nats"), binary=require("nats-server")) as running:
        yield running


@pytest.fixture(scope="module")
def cluster(server: NatsServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealCluster]:
    with real_cluster(tmp_path_factory.mktemp("cluster"), schedulers=2, servers=server) as running:
        publish_all(running)
        yield running


def publish_all(cluster: RealCluster) -> None:
    cluster.publish("shared", SHARED, replicas=3)
    cluster.publish("alone", TICK)
    cluster.publish("resting", TICK)
    cluster.until_running_and_paused(("shared", "alone", "resting"), paused="resting")


def everything(cluster: RealCluster) -> list[Running]:
    return [one for pipeline in PIPELINES for one in cluster.found(pipeline)]


def assert_it_works(cluster: RealCluster, name: str) -> None:
    """A pipeline is published, paused and removed: all parts are connected again."""
    cluster.publish(name, TICK)
    cluster.until_state(name, "running")
    cluster.put_record(name, status="paused")
    cluster.until_state(name, "paused")
    cluster.delete_record(name)
    cluster.wait_no_trace(name)
    cluster.assert_all_alive()


def assert_nothing_moved(cluster: RealCluster, before: list[Running]) -> None:
    for pipeline, state in (("shared", "running"), ("alone", "running"), ("resting", "paused")):
        cluster.until_state(pipeline, state)
    assert everything(cluster) == before
    rows = cluster.json("executions")
    assert {row["restarts"] for row in rows} == {0}
    assert len(rows) == len(before), "and nothing is being stopped"


@pytest.mark.timeout(180)
@pytest.mark.parametrize("crash", [False, True], ids=["restarted", "crashed"])
def test_a_restart_of_nats_changes_nothing(cluster: RealCluster, server: NatsServer, crash: bool) -> None:
    before = everything(cluster)
    server.restart(crash=crash)
    assert_it_works(cluster, f"after-{crash}".lower())
    assert_nothing_moved(cluster, before)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_nats_is_away_for_a_minute(cluster: RealCluster, server: NatsServer) -> None:
    """What may overlap goes on. What must not stops itself when its host's lease is over, and resumes in place."""
    alone = cluster.the("alone")
    others = [one for one in everything(cluster) if one != alone]
    server.kill()
    over = time.monotonic() + AWAY_S
    while time.monotonic() < over:
        assert [one for one in everything(cluster) if one.pipeline != "alone"] == others, "they go on meanwhile"
        time.sleep(1.0)
    assert [one.alive for one in cluster.found("alone")] == [False], "its host could not know that it is alone"
    cluster.assert_all_alive()
    server.start()
    assert_it_works(cluster, "afterwards")
    resumed = until(lambda: (found := cluster.the("alone")).alive and found, "it resumes")
    assert (resumed.execution, resumed.host) == (alone.execution, alone.host)
    assert_nothing_moved(cluster, sorted([*others, resumed], key=lambda one: PIPELINES.index(one.pipeline)))


@pytest.mark.timeout(180)
def test_a_record_that_is_purged_behind_our_back_is_held_and_then_removed(
    cluster: RealCluster, server: NatsServer
) -> None:
    """A purge through the API leaves no marker: no watch can tell of it, only lists can, and one is not enough.

    Lists are made anew every minute and after every loss of the connection; here a restart of NATS stands for both.
    """
    cluster.publish("vanishing", TICK)
    cluster.until_state("vanishing", "running")
    others, itself = everything(cluster), cluster.the("vanishing")
    cluster.nats("request", "$JS.API.STREAM.PURGE.KV_shoal_pipelines", '{"filter": "$KV.shoal_pipelines.vanishing"}')
    server.restart()
    status = until(lambda: (found := cluster.status("vanishing")).get("notes") and found, "it is held", 120)
    assert "gone without having been deleted" in status["notes"][0]
    assert "second list" in status["notes"][0]
    assert cluster.the("vanishing") == itself
    server.restart()
    until(lambda: not cluster.status("vanishing"), "a second list agrees", 120)
    cluster.written.pop("vanishing")
    cluster.wait_no_trace("vanishing")
    assert everything(cluster) == others


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_three_servers_of_which_one_dies(nats_cluster: NatsCluster, tmp_path: Path) -> None:
    with real_cluster(tmp_path / "cluster", schedulers=2, servers=nats_cluster) as cluster:
        publish_all(cluster)
        before = everything(cluster)
        leader = until(lambda: nats_cluster.stream_leader("KV_shoal_control"), "a leader of the control stream")
        leader.kill()
        assert_it_works(cluster, "without-it")
        assert_nothing_moved(cluster, before)
        leader.start()
        other = until(lambda: nats_cluster.stream_leader("KV_shoal_hosts"), "a leader of the hosts stream")
        other.restart(crash=True)
        assert_it_works(cluster, "without-another")
        assert_nothing_moved(cluster, before)
        cluster.remove_all()
