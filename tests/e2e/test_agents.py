"""Agents and engines that die, hang and come back, and executions that crash: what runs goes on, the rest is said."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.components import require
from tests.support.engines import Engine
from tests.support.nats_servers import NatsServer
from tests.support.real import SHARED, TICK, RealCluster, real_cluster, until

# Lint has nothing against it; Bento ends as soon as it starts, and says why.
CRASHING = b"""input:
  generate:
    interval: 1s
    mapping: root = "tick"
pipeline:
  processors:
    - json_schema:
        schema_path: "file:///nonexistent/schema.json"
output:
  drop: {}
"""
LAST_WORDS = "/nonexistent/schema.json: no such file"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    with NatsServer(tmp_path_factory.mktemp("nats"), binary=require("nats-server")) as running:
        yield running


@pytest.fixture(scope="module")
def whole(server: NatsServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealCluster]:
    with real_cluster(tmp_path_factory.mktemp("cluster"), hosts=2, servers=server) as running:
        yield running


@pytest.fixture
def cluster(whole: RealCluster) -> Iterator[RealCluster]:
    """The cluster with nothing in it, also afterwards."""
    yield whole
    whole.remove_all()


def sequence(cluster: RealCluster, host: str) -> int:
    """Number of the host's last heartbeat."""
    return int((cluster.document("hosts", host) or {"sequence": 0})["sequence"])


@pytest.mark.timeout(180)
def test_an_agent_that_is_killed_and_restarted_adopts_what_runs(cluster: RealCluster) -> None:
    cluster.publish("shared", SHARED, replicas=2)
    cluster.publish("alone", TICK, placement={"required": {"host": "host-1"}})
    cluster.publish("resting", TICK, placement={"required": {"host": "host-1"}})
    cluster.until_state("resting", "running")
    cluster.put_record("resting", status="paused", placement={"required": {"host": "host-1"}})
    cluster.until_state("resting", "paused")
    for pipeline in ("shared", "alone"):
        cluster.until_state(pipeline, "running")
    before = {p: cluster.found(p) for p in ("shared", "alone", "resting")}
    session = (cluster.document("hosts", "host-1") or {})["session"]

    cluster.kill_agent("host-1")
    assert {p: cluster.found(p) for p in before} == before, "executions do not need their agent"
    last = sequence(cluster, "host-1")
    cluster.start_agent("host-1")
    until(lambda: (cluster.document("reports", "host-1") or {}).get("session") == session, "the same session", 30)
    until(lambda: sequence(cluster, "host-1") > last, "it beats again, and goes on counting")
    for pipeline, state in (("shared", "running"), ("alone", "running"), ("resting", "paused")):
        cluster.until_state(pipeline, state)
    assert {p: cluster.found(p) for p in before} == before
    assert {r["restarts"] for r in cluster.json("executions")} == {0}
    # What it adopted it also obeys for.
    cluster.put_record("resting", placement={"required": {"host": "host-1"}})
    cluster.until_state("resting", "running")
    assert cluster.the("resting").execution == before["resting"][0].execution


@pytest.mark.timeout(180)
def test_an_agent_that_starts_while_nats_is_away_waits_and_keeps_what_runs(
    cluster: RealCluster, server: NatsServer
) -> None:
    cluster.publish("alone", TICK, placement={"required": {"host": "host-2"}})
    cluster.until_state("alone", "running")
    before = cluster.the("alone")
    log = cluster.local.log("host-2")
    cluster.kill_agent("host-2")
    last = sequence(cluster, "host-2")
    server.stop()
    said = log.stat().st_size
    cluster.start_agent("host-2")
    until(lambda: "NATS cannot be reached" in log.read_text()[said:], "it says what it waits for")
    assert cluster.the("alone") == before
    cluster.assert_all_alive()
    server.start()
    until(lambda: sequence(cluster, "host-2") > last, "it beats again, and goes on counting")
    cluster.until_state("alone", "running")
    assert cluster.the("alone").config_digest == before.config_digest
    cluster.publish("next", TICK, placement={"required": {"host": "host-2"}})
    cluster.until_state("next", "running")
    assert cluster.the("alone") == before


@pytest.mark.timeout(240)
def test_a_crash_loop_backs_off_and_is_never_shown_as_running(cluster: RealCluster) -> None:
    cluster.publish("crashing", CRASHING, restart={"delay_s": 0.5, "delay_max_s": 4})
    states: set[str] = set()
    phases: set[str] = set()

    def restarted(times: int) -> bool:
        status = cluster.status("crashing")
        states.add(status.get("state", ""))
        phases.update(slot["phase"] for slot in status.get("slots", ()))
        report = cluster.document("reports", status["slots"][0]["host"]) if status.get("slots") else None
        return any(seen["restarts"] >= times for seen in (report or {"executions": ()})["executions"])

    until(lambda: restarted(1), "it was restarted")
    began = time.monotonic()
    until(lambda: restarted(4), "again and again")
    took = time.monotonic() - began
    assert took > 1 + 2 + 4 - 1, "each time after a longer pause"
    assert not states & {"running", "updating"}
    assert "failing" in states
    assert "ready" not in phases
    status = until(lambda: (found := cluster.status("crashing"))["state"] == "failing" and found, "it fails")
    assert "slot 0 on host-" in status["reason"]

    (row,) = cluster.json("executions", "crashing")
    assert row["restarts"] >= 4
    assert row["exit_code"] == 1
    assert row["state"] in ("backoff", "starting", "running", "failed")
    assert any(LAST_WORDS in line for line in row["last_words"])
    shown = cluster.shoal("describe", "crashing")
    assert LAST_WORDS in shown
    assert "restarts" in shown
    # Between two ends it is starting, for longer on a slow machine; waiting may end just then.
    until(
        lambda: "is failing" in cluster.shoal("wait", "crashing", "--timeout", "2s", code=3),
        "waiting for it says that it fails",
    )
    # A version that works ends it.
    cluster.publish("crashing", TICK, version="2")
    cluster.until_state("crashing", "running")
    until(lambda: len(cluster.found("crashing")) == 1, "the broken one is gone")
    assert cluster.json("executions", "crashing")[0]["restarts"] == 0


@pytest.mark.timeout(180)
def test_a_runner_that_is_killed_is_started_again_and_counted(cluster: RealCluster) -> None:
    cluster.publish("victim", TICK, restart={"delay_s": 0.5})
    cluster.until_state("victim", "running")
    before = cluster.the("victim")
    os.kill(int(before.runtime), signal.SIGKILL)
    until(lambda: [r for r in cluster.found("victim") if r.alive and r.started != before.started], "it runs again")
    cluster.until_state("victim", "running")
    after = cluster.the("victim")
    assert (after.execution, after.host) == (before.execution, before.host)
    until(lambda: cluster.json("executions", "victim")[0]["restarts"] == 1, "it is counted")


@pytest.mark.docker
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_an_engine_whose_daemon_restarts_recovers(live_engine: Engine, tmp_path: Path) -> None:
    with real_cluster(tmp_path / "cluster", driver="docker", engines=[live_engine], hosts=1) as cluster:
        cluster.publish("alone", TICK)
        cluster.until_state("alone", "running")
        before = cluster.the("alone")
        live_engine.kill()
        until(lambda: not cluster.usable("host-1"), "its driver is said to fail")
        shown = {r["host"]: r["drivers"] for r in cluster.json("hosts")}["host-1"]
        assert shown[0].startswith("docker (bad: ")
        cluster.publish("next", TICK)
        status = until(lambda: (found := cluster.status("next")).get("refusals") and found, "it is refused")
        assert status["refusals"][0]["reasons"][0].startswith("docker fails: ")
        live_engine.launch()
        live_engine.wait_ready()
        cluster.until_state("next", "running")
        cluster.until_state("alone", "running")
        assert cluster.the("alone") == before, "the very same container, never restarted"
        for pipeline in ("alone", "next"):
            cluster.delete_record(pipeline)
            cluster.wait_no_trace(pipeline)
