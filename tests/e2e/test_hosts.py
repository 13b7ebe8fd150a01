"""Hosts that are lost, that return, that are forgotten, and two agents that want one name."""

import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.engines import Engine
from tests.support.intruder import Intruder
from tests.support.processes import free_port
from tests.support.real import SHARED, TICK, RealCluster, healthz, real_cluster, until

PREFERRED: dict[str, Any] = {"placement": {"preferred": {"host": "host-1"}}}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealCluster]:
    with real_cluster(tmp_path_factory.mktemp("cluster")) as running:
        yield running


@pytest.fixture
def cluster(whole: RealCluster) -> Iterator[RealCluster]:
    """All three hosts alive and nothing published, also afterwards."""
    yield whole
    for host in whole.hosts:
        if host not in whole.local.children:
            whole.start_agent(host)
    whole.remove_all()


def publish_both(cluster: RealCluster) -> dict[str, Any]:
    """One that may overlap and one that may not, both on host-1, and one that stays out of it on host-2."""
    cluster.publish("shared", SHARED, **PREFERRED)
    cluster.publish("alone", TICK, **PREFERRED)
    cluster.publish("aside", TICK, placement={"required": {"host": "host-2"}})
    for pipeline in ("shared", "alone", "aside"):
        cluster.until_state(pipeline, "running")
    found = {p: cluster.the(p) for p in ("shared", "alone", "aside")}
    assert [r.host for r in found.values()] == ["host-1", "host-1", "host-2"]
    return found


def watch_the_move(cluster: RealCluster, before: dict[str, Any]) -> dict[str, float]:
    """Wait until both run elsewhere; after how long. From silence to the new execution nobody is told that it runs."""
    began = time.monotonic()
    lost: set[str] = set()
    took: dict[str, float] = {}
    while len(took) < 2:
        assert time.monotonic() < began + 90, f"lost was {lost}, moved {took}"
        for pipeline in {"shared", "alone"} - set(took):
            status = cluster.status(pipeline)
            (slot,) = status["slots"]
            if slot["execution"] == before[pipeline].execution:
                if slot["phase"] == "lost":
                    lost.add(pipeline)
                    assert "host-1 is silent" in slot["reason"]
                if pipeline in lost:
                    assert (status["state"], slot["phase"]) == ("waiting", "lost"), "lost is not taken back"
            elif slot["phase"] == "ready":
                assert slot["host"] != "host-1"
                assert [r for r in cluster.found(pipeline) if r.alive and r.execution == slot["execution"]]
                if pipeline == "alone":
                    key = cluster.document("hosts", "host-1")
                    assert key is not None
                    assert key["dead"] == key["session"], "its session was ended first"
                took[pipeline] = time.monotonic() - began
        time.sleep(0.05)
    assert "alone" in lost, "it was said for some seconds that the host is lost"
    print({pipeline: f"{seconds:.1f} s" for pipeline, seconds in took.items()})
    return took


@pytest.mark.timeout(240)
def test_what_a_lost_host_ran_is_placed_elsewhere(cluster: RealCluster) -> None:
    before = publish_both(cluster)
    cluster.lose_host("host-1")
    took = watch_the_move(cluster, before)
    assert took["alone"] > 10, "not before the host must have stopped it by itself"
    assert {r["host"]: r["state"] for r in cluster.json("hosts")}["host-1"] == "dead"
    assert cluster.the("aside") == before["aside"]
    events = cluster.json("events", "host-1")
    kinds = [event["kind"] for event in events]
    assert {"host-lost", "host-dead"} <= set(kinds)

    after = {p: [r for r in cluster.found(p) if r.alive] for p in before}
    cluster.start_agent("host-1")
    for pipeline in ("shared", "alone"):
        cluster.until_found(pipeline, after[pipeline], "no trace of it is left on host-1")
    until(lambda: "alive" in {r["host"]: r["state"] for r in cluster.json("hosts")}["host-1"], "it is alive again")
    assert [event["kind"] for event in cluster.json("events", "host-1")][-1] == "host-answered"


@pytest.mark.timeout(240)
def test_a_lost_host_whose_last_heartbeat_somebody_has_overwritten(cluster: RealCluster) -> None:
    """What it had moves as from any other. Nothing can be told of the host meanwhile, and that is shown."""
    before = publish_both(cluster)
    cluster.lose_host("host-1")
    with Intruder(cluster.url) as intruder:
        intruder.put("shoal_hosts", "host-1", b"not a heartbeat")
    row = {r["host"]: r for r in cluster.json("hosts")}["host-1"]
    assert (row["state"], row["executions"]) == ("unreadable", 2)
    assert "overwritten its heartbeat" in cluster.shoal("doctor", code=1)
    watch_the_move(cluster, before)
    assert {r["host"]: r["state"] for r in cluster.json("hosts")}["host-1"] == "dead"


@pytest.mark.timeout(240)
def test_a_host_that_returns_removes_what_it_must_no_longer_run(cluster: RealCluster) -> None:
    """Its agent was away for long; what may overlap went on meanwhile, what must not has stopped by itself."""
    before = publish_both(cluster)
    cluster.kill_agent("host-1")
    watch_the_move(cluster, before)
    assert before["shared"] in cluster.found("shared"), "nobody has told it yet"
    assert before["alone"] not in [r for r in cluster.found("alone") if r.alive]
    moved: dict[str, Any] = {p: [r for r in cluster.found(p) if r.host != "host-1"] for p in before}
    cluster.start_agent("host-1")
    for pipeline, found in moved.items():
        cluster.until_found(pipeline, found, "it runs where it was moved, only")
        cluster.until_state(pipeline, "running")


@pytest.mark.timeout(240)
def test_a_host_is_forgotten_only_when_it_is_gone(cluster: RealCluster) -> None:
    bound: dict[str, Any] = {"placement": {"required": {"host": "host-3"}}, "on_partition": "continue"}
    cluster.publish("bound", TICK, **bound)
    cluster.until_state("bound", "running")
    before = cluster.the("bound")
    refused = cluster.shoal("hosts", "forget", "host-3", code=1)
    assert "host-3 is alive" in refused
    assert "shoal hosts drain host-3 --wait" in refused
    assert "no host 'nobody'" in cluster.shoal("hosts", "forget", "nobody", code=1)

    cluster.lose_host("host-3")
    until(lambda: cluster.status("bound")["state"] == "waiting", "it is noticed")
    refused = cluster.shoal("hosts", "forget", "host-3", code=1)
    assert f"{before.execution} may still run on host-3" in refused
    assert "`shoal hosts forget host-3 --confirm-dead`" in refused
    cluster.shoal("hosts", "forget", "host-3", "--confirm-dead", "--timeout", "60s")
    assert "host-3" not in {r["host"] for r in cluster.json("hosts")}
    assert cluster.json("executions", "bound") == []
    status = cluster.status("bound")
    assert {r["host"] for r in status["refusals"]} == {"host-1", "host-2"}
    # The name is free: whoever comes with it is a host like any other.
    cluster.start_agent("host-3")
    cluster.until_state("bound", "running")
    assert [r.host for r in cluster.found("bound")] == ["host-3"]


@pytest.mark.timeout(240)
def test_what_continues_cut_off_waits_for_an_operators_word(cluster: RealCluster) -> None:
    cluster.publish("goes-on", TICK, on_partition="continue", placement={"preferred": {"host": "host-1"}})
    cluster.until_state("goes-on", "running")
    assert cluster.the("goes-on").host == "host-1"
    assert "host-1 is alive" in cluster.shoal("hosts", "confirm-dead", "host-1", "--yes", code=1)
    cluster.lose_host("host-1")
    status = cluster.until_state("goes-on", "waiting")
    assert "`shoal hosts confirm-dead host-1`" in status["reason"]
    time.sleep(15)  # longer than any other would be moved after
    assert cluster.status("goes-on") == status
    assert "would then run twice" in cluster.shoal("hosts", "confirm-dead", "host-1", code=1)
    assert cluster.status("goes-on") == status
    cluster.shoal("hosts", "confirm-dead", "host-1", "--yes")
    cluster.until_state("goes-on", "running")
    assert [r.host for r in cluster.found("goes-on") if r.alive] != ["host-1"]


@pytest.mark.timeout(240)
@pytest.mark.parametrize("silent_s", [7.0, 11.3, 11.9, 12.5])
def test_an_agent_that_was_frozen_returns_around_the_moment_of_the_move(cluster: RealCluster, silent_s: float) -> None:
    """Before, in between or after: at no time there are two, and in the end there is one."""
    cluster.publish("alone", TICK, **PREFERRED)
    cluster.until_state("alone", "running")
    assert cluster.the("alone").host == "host-1"
    cluster.local.signal("host-1", signal.SIGSTOP)
    thaw = time.monotonic() + silent_s
    try:
        while time.monotonic() < thaw:
            assert len([r for r in cluster.found("alone") if r.alive]) <= 1
            time.sleep(0.05)
    finally:
        cluster.local.signal("host-1", signal.SIGCONT)
    calm = time.monotonic() + 10
    while time.monotonic() < calm:
        assert len([r for r in cluster.found("alone") if r.alive]) <= 1
        time.sleep(0.05)
    cluster.until_state("alone", "running")
    until(lambda: len(cluster.found("alone")) == 1, "there is one, and no trace of another")


@pytest.mark.timeout(240)
def test_a_second_agent_of_the_same_name_waits_and_says_why(cluster: RealCluster, tmp_path: Path) -> None:
    cluster.publish("named", TICK, placement={"required": {"host": "host-2"}})
    cluster.until_state("named", "running")
    before = cluster.the("named")
    address = f"127.0.0.1:{free_port()}"
    state, run = tmp_path / "state", cluster.local.run_dir / "second"
    command = cluster.command("agent", "--host", "host-2", "--executor", "process", "--stop-on-exit")
    command += ["--state-dir", str(state), "--run-dir", str(run), "--metrics", address]
    with (tmp_path / "second.log").open("wb") as log:
        second = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        until(lambda: "give one of the two hosts another name" in healthz(address).get("waiting", ""), "it says why")
        session = {r["host"]: r["session"] for r in cluster.json("hosts")}["host-2"]
        assert second.poll() is None
        assert cluster.the("named") == before
        assert not list(run.glob("executions/*"))
        # Now the first one dies with all it ran. The second one takes the name, in a session of its own.
        cluster.lose_host("host-2")
        until(lambda: healthz(address).get("ok"), "the name is free")
        until(lambda: list(run.glob("executions/*-named-*")), "and what belongs there runs there")
        cluster.until_state("named", "running")
        assert {r["host"]: r["session"] for r in cluster.json("hosts")}["host-2"] != session
        (directory,) = run.glob("executions/*-named-*")
        assert before.execution not in directory.name, "an id is never used for two executions"
    finally:
        second.terminate()
        second.wait(60)


@pytest.mark.docker
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_an_engine_that_lost_power(three_engines: list[Engine], tmp_path: Path) -> None:
    with real_cluster(tmp_path / "cluster", driver="docker", engines=three_engines) as cluster:
        before = publish_both(cluster)
        cluster.lose_host("host-1")
        watch_the_move(cluster, before)
        after = {p: [r for r in cluster.found(p) if r.alive] for p in before}
        assert after["aside"] == [before["aside"]], "not touched"
        three_engines[0].restart()
        assert len(cluster.found("alone")) == 2, "the container is still there, exited"
        cluster.start_agent("host-1")
        for pipeline in ("shared", "alone"):
            cluster.until_found(pipeline, after[pipeline], "no trace of it is left on host-1")
        cluster.assert_all_alive()
        for pipeline in after:
            cluster.delete_record(pipeline)
            cluster.wait_no_trace(pipeline)
