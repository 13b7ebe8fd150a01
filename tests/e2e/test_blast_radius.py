"""Accidents to the store, on a real server, while pipelines run: nothing that runs is touched, and one command goes on.

Streams are deleted, purged and restored with the JetStream API, as somebody would who knows nothing of Shoal.
"""

from __future__ import annotations

import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.nats_servers import NatsServer
from tests.support.real import SHARED, TICK, RealCluster, Running, real_cluster, until

PIPELINES = ("orders", "invoices", "resting")


@pytest.fixture
def cluster(nats_server: NatsServer, tmp_path: Path) -> Iterator[RealCluster]:
    """Two schedulers, two hosts, and three pipelines on them, one of them paused."""
    with real_cluster(tmp_path / "cluster", hosts=2, schedulers=2, servers=nats_server) as running:
        for pipeline in PIPELINES:
            running.publish(pipeline, TICK)
        running.until_running_and_paused(PIPELINES, paused="resting")
        yield running
        running.assert_all_alive()


def everything(cluster: RealCluster) -> list[Running]:
    """All that exists: ids, pids, start times and what is inside."""
    return [one for pipeline in PIPELINES for one in cluster.found(pipeline)]


def schedulers(cluster: RealCluster) -> list[str]:
    return [name for name in cluster.local.children if name.startswith("scheduler")]


def notes(cluster: RealCluster, pipeline: str) -> str:
    return " ".join(cluster.status(pipeline).get("notes", ()))


def until_held(cluster: RealCluster, *pipelines: str) -> str:
    """Wait until the leader says that it keeps these; what doctor says."""
    for pipeline in pipelines:
        until(lambda: "kept as it was" in notes(cluster, pipeline), f"{pipeline} is kept", 120)  # noqa: B023
    until(lambda: cluster.run("store", "status").returncode == 1, "the store is not as it was")
    told = cluster.run("doctor")
    assert told.returncode == 1
    said = re.sub(r"\s+", " ", told.stdout)
    assert "shoal store confirm pipelines" in said
    return said


def assert_it_works(cluster: RealCluster, pipeline: str) -> None:
    """Publishing and removing go on as ever."""
    cluster.publish(pipeline, TICK)
    cluster.until_state(pipeline, "running")
    cluster.delete_record(pipeline)
    cluster.wait_no_trace(pipeline)


@pytest.mark.timeout(300)
def test_the_pipelines_stream_is_deleted_and_made_anew(cluster: RealCluster) -> None:
    before = everything(cluster)
    cluster.nats("stream", "rm", "KV_shoal_pipelines", "--force")
    assert "shoal store create" in cluster.run("store", "status").stdout
    cluster.shoal("store", "create")
    until_held(cluster, *PIPELINES)
    assert everything(cluster) == before
    # Another leader holds it as well, one that saw it happen and one that did not.
    for name in schedulers(cluster):
        cluster.local.kill(name)
        cluster.local.start_scheduler(name)
    until(cluster.leader, "somebody leads")
    assert_it_works(cluster, "new")
    until_held(cluster, *PIPELINES)
    assert everything(cluster) == before
    # A record that is written again is followed, the others are kept.
    cluster.put_record("orders")
    until(lambda: not notes(cluster, "orders"), "orders is known again")
    cluster.put_record("resting", status="paused")
    until(lambda: not notes(cluster, "resting"), "resting is known again")
    until_held(cluster, "invoices")
    assert everything(cluster) == before
    cluster.shoal("store", "confirm", "pipelines")
    cluster.written.pop("invoices")
    cluster.wait_no_trace("invoices")
    assert [one.pipeline for one in everything(cluster)] == ["orders", "resting"]
    cluster.shoal("store", "status")
    assert "nothing of 'pipelines' is held" in cluster.shoal("store", "confirm", "pipelines", code=1)
    assert_it_works(cluster, "after")
    # The word was said of one accident, not of the next one.
    cluster.nats("stream", "rm", "KV_shoal_pipelines", "--force")
    cluster.shoal("store", "create")
    until_held(cluster, "orders")
    assert cluster.the("orders") == before[0]


@pytest.mark.timeout(300)
def test_the_pipelines_stream_is_purged(cluster: RealCluster, nats_server: NatsServer) -> None:
    before = everything(cluster)
    cluster.nats("request", "$JS.API.STREAM.PURGE.KV_shoal_pipelines", "{}")
    nats_server.restart()  # a purge leaves no trace in a watch: only lists tell, made each minute and after a loss
    until_held(cluster, *PIPELINES)
    nats_server.restart()
    for name in schedulers(cluster):
        cluster.local.kill(name)
    cluster.local.start_scheduler("scheduler-1")
    assert_it_works(cluster, "new")
    said = until_held(cluster, *PIPELINES)
    assert "gone without having been deleted" in said
    assert everything(cluster) == before
    cluster.put_record("orders")
    until(lambda: not notes(cluster, "orders"), "orders is known again")
    cluster.shoal("store", "confirm", "pipelines")
    for pipeline in ("invoices", "resting"):
        cluster.written.pop(pipeline)
        cluster.wait_no_trace(pipeline)
    assert everything(cluster) == [one for one in before if one.pipeline == "orders"]


@pytest.mark.timeout(300)
def test_the_pipelines_stream_is_purged_while_no_scheduler_runs(cluster: RealCluster) -> None:
    before = everything(cluster)
    for name in schedulers(cluster):
        cluster.local.kill(name)
    cluster.nats("request", "$JS.API.STREAM.PURGE.KV_shoal_pipelines", "{}")
    cluster.local.start_scheduler("scheduler-1")
    until_held(cluster, *PIPELINES)
    assert everything(cluster) == before
    for pipeline in ("orders", "invoices"):
        cluster.put_record(pipeline)
    cluster.put_record("resting", status="paused")
    until(lambda: cluster.run("store", "status").returncode == 0, "nothing is missing any more")
    assert everything(cluster) == before


@pytest.mark.timeout(300)
def test_the_pipelines_stream_is_restored_from_an_older_backup(cluster: RealCluster, tmp_path: Path) -> None:
    cluster.nats("stream", "backup", "KV_shoal_pipelines", str(tmp_path / "backup"))
    cluster.publish("orders", TICK + b"# 2", version="2")
    cluster.until_state("orders", "running")
    cluster.publish("later", TICK)
    cluster.until_state("later", "running")
    before = [*everything(cluster), cluster.the("later")]
    cluster.nats("stream", "rm", "KV_shoal_pipelines", "--force")
    cluster.nats("stream", "restore", str(tmp_path / "backup"))
    until_held(cluster, "orders", "later")
    assert [*everything(cluster), cluster.the("later")] == before
    assert not notes(cluster, "invoices"), "what is there as it was is followed"
    cluster.put_record("orders", version="2")
    until(lambda: not notes(cluster, "orders"), "orders is known again")
    cluster.shoal("store", "confirm", "pipelines")
    cluster.written.pop("later")
    cluster.wait_no_trace("later")
    assert everything(cluster) == before[:-1]


def store_id(cluster: RealCluster) -> str:
    return str((cluster.document("control", "journal") or {}).get("store_id", ""))


def until_another_store(cluster: RealCluster, old: str) -> str:
    """Wait until another store than `old` is led; its id."""

    def led() -> str:
        found = store_id(cluster)
        return found if found not in ("", old) and cluster.leader() else ""

    return str(until(led, "another store", 120))


def take_over(cluster: RealCluster, old: str) -> None:
    """Wait until there is another store that says what to do, and do it."""
    new = until_another_store(cluster, old)
    command = f"shoal store accept {new}"
    until(lambda: command in re.sub(r"\s+", " ", cluster.run("doctor").stdout), "doctor says what to do")
    until(lambda: command in cluster.status("orders").get("reason", ""), "so does the status")
    cluster.shoal("store", "accept", new)
    for pipeline, state in (("orders", "running"), ("invoices", "running"), ("resting", "paused")):
        cluster.until_state(pipeline, state)


def assert_all_as_ever(cluster: RealCluster, before: list[Running]) -> None:
    """Everything runs as before; a version is replaced, a paused pipeline resumes, agents restart, all as ever."""
    assert everything(cluster) == before
    for name in list(cluster.hosts):
        cluster.kill_agent(name)
        cluster.start_agent(name)
    assert_it_works(cluster, "new")
    for name in schedulers(cluster):
        cluster.local.kill(name)
        cluster.local.start_scheduler(name)
    assert_it_works(cluster, "newer")
    assert everything(cluster) == before
    cluster.publish("orders", TICK + b"# next", version="next")
    until(lambda: cluster.status("orders").get("version") == "next", "orders is replaced")
    cluster.until_state("orders", "running")
    ids = {one.execution for one in before}
    assert {one.execution for one in cluster.found("orders")}.isdisjoint(ids)
    cluster.put_record("resting", status="published")
    cluster.until_state("resting", "running")
    cluster.delete_record("invoices")
    cluster.wait_no_trace("invoices")


@pytest.mark.timeout(300)
def test_the_control_stream_is_deleted_and_made_anew(cluster: RealCluster) -> None:
    before, old = everything(cluster), store_id(cluster)
    cluster.nats("stream", "rm", "KV_shoal_control", "--force")
    cluster.shoal("store", "create")
    take_over(cluster, old)
    assert_all_as_ever(cluster, before)


@pytest.mark.timeout(300)
def test_the_control_stream_is_purged(cluster: RealCluster) -> None:
    before, old = everything(cluster), store_id(cluster)
    cluster.nats("request", "$JS.API.STREAM.PURGE.KV_shoal_control", "{}")
    take_over(cluster, old)
    assert_all_as_ever(cluster, before)


@pytest.mark.timeout(300)
def test_the_control_stream_is_restored_from_an_older_backup(cluster: RealCluster, tmp_path: Path) -> None:
    cluster.nats("stream", "backup", "KV_shoal_control", str(tmp_path / "backup"))
    cluster.publish("orders", TICK + b"# 2", version="2")
    until(lambda: cluster.status("orders").get("version") == "2", "orders is replaced")
    cluster.until_state("orders", "running")
    before, old = everything(cluster), store_id(cluster)
    cluster.nats("stream", "rm", "KV_shoal_control", "--force")
    cluster.nats("stream", "restore", str(tmp_path / "backup"))
    take_over(cluster, old)
    assert_all_as_ever(cluster, before)


@pytest.mark.timeout(240)
def test_an_agent_that_lost_its_state_with_the_store_tells_what_runs(nats_server: NatsServer, tmp_path: Path) -> None:
    """It obeys no store when it is back. What may overlap runs on there, and the next version must not."""
    with real_cluster(tmp_path / "cluster", hosts=1, servers=nats_server) as cluster:
        cluster.publish("shared", SHARED)
        cluster.until_state("shared", "running")
        before, old = cluster.the("shared"), store_id(cluster)
        (host,) = cluster.hosts
        cluster.kill_agent(host)
        cluster.nats("stream", "rm", "KV_shoal_control", "--force")
        shutil.rmtree(cluster.local.data / "hosts" / host)
        cluster.shoal("store", "create")
        new = until(
            lambda: (found := store_id(cluster)) not in ("", old) and cluster.leader() and found, "another", 120
        )
        cluster.start_agent(host)

        def strays() -> list[str]:
            beat = cluster.document("hosts", host) or {}
            return [stray["execution"] for stray in beat.get("strays", ())]

        until(lambda: strays() == [before.execution], "its agent tells of it")
        cluster.publish("shared", SHARED, version="2", overlap="forbid")
        command = f"shoal store accept {new} --replaces {old}"
        until(lambda: command in cluster.status("shared").get("reason", ""), "the status says what to do")
        until(lambda: command in re.sub(r"\s+", " ", cluster.run("doctor").stdout), "so does doctor")
        assert_it_works(cluster, "other")
        assert cluster.the("shared") == before, "nobody touches it, and nothing runs beside it"
        cluster.shoal("store", "accept", new)
        cluster.until_state("shared", "running")
        assert cluster.the("shared").execution != before.execution
        cluster.assert_all_alive()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("bucket", ["hosts", "reports", "bundles"])
def test_what_is_said_again_by_itself_is_deleted(cluster: RealCluster, bucket: str) -> None:
    before = everything(cluster)
    stream = f"{'OBJ' if bucket == 'bundles' else 'KV'}_shoal_{bucket}"
    cluster.nats("stream", "rm", stream, "--force")
    if bucket != "bundles":
        until(lambda: all(cluster.document(bucket, host) for host in cluster.hosts), f"{bucket} are said again", 120)
    assert_it_works(cluster, "new")
    assert_it_works(cluster, "newer")
    assert everything(cluster) == before
    cluster.shoal("doctor")


@pytest.mark.timeout(240)
def test_an_operators_word_on_hosts_outlives_the_leader_that_it_was_said_to(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    """The next one counts every silence from zero, so it sees the same hosts fall silent at once again."""
    with real_cluster(tmp_path / "cluster", hosts=5, schedulers=2, servers=nats_server) as cluster:
        cluster.publish("shared", SHARED, replicas=5)
        cluster.until_state("shared", "running")
        for host in ("host-1", "host-2", "host-3"):
            cluster.kill_agent(host)
        until(lambda: "fell silent at once" in cluster.run("store", "status").stdout, "nothing is moved off them")
        leader = cluster.leader()
        cluster.shoal("store", "confirm", "hosts")
        cluster.local.signal(leader, signal.SIGKILL)
        until(
            lambda: {slot["host"] for slot in cluster.status("shared")["slots"]} == {"host-4", "host-5"},
            "what they had is placed elsewhere",
        )
        cluster.until_state("shared", "running")
        assert "host" not in cluster.run("store", "status").stdout


@pytest.mark.timeout(300)
def test_what_operators_said_and_the_configurations_are_lost_at_once(cluster: RealCluster) -> None:
    """A cordon stays, and so does the version that runs without its configuration."""
    cluster.shoal("hosts", "cordon", "host-2", "--reason", "a new disk")
    host = {"required": {"host": "host-2"}}
    cluster.publish("waits", TICK, placement=host)
    until(lambda: "is cordoned" in cluster.status("waits").get("reason", ""), "the cordon counts")
    before = everything(cluster)
    for stream in ("KV_shoal_operator", "OBJ_shoal_configs"):
        cluster.nats("stream", "rm", stream, "--force")
    assert "shoal store create" in cluster.run("store", "status").stdout
    cluster.shoal("store", "create")

    def held() -> bool:
        return "shoal store confirm operator" in re.sub(r"\s+", " ", cluster.run("store", "status").stdout)

    until(held, "what operators had said is held", 120)
    assert cluster.run("doctor").returncode == 1
    # The next leader, which saw it happen, holds it too, and nothing needs the configurations that are gone.
    leader = until(cluster.leader, "somebody leads")
    cluster.local.kill(leader)
    until(lambda: cluster.leader() not in ("", leader), "the other one leads")
    cluster.local.start_scheduler(leader)
    assert_it_works(cluster, "new")
    assert held()
    assert "is cordoned" in cluster.status("waits")["reason"]
    assert everything(cluster) == before
    for name in list(cluster.hosts):
        cluster.kill_agent(name)
        cluster.start_agent(name)
    cluster.put_record("resting")
    cluster.until_state("resting", "running")
    assert cluster.the("resting").runtime, "its bundle is all that it takes"
    # One word, and what is said from then on counts.
    cluster.shoal("store", "confirm", "operator")
    cluster.until_state("waits", "running")
    until(lambda: cluster.run("store", "status").returncode == 0, "nothing is held")
    cluster.publish("orders", TICK + b"# 2", version="2")
    until(lambda: cluster.status("orders").get("version") == "2", "orders is replaced")
    cluster.until_state("orders", "running")
    assert cluster.the("invoices") == before[1]
