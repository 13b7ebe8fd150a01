"""Docker engines that hang, are slow, or fail half of their calls, under a whole cluster: what runs goes on and obeys
its lease, nobody else waits, people are told which engine it is, and all is made good when it is well.

The engines themselves are healthy, so what really runs can be looked at all the time.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest

from tests.support.components import require
from tests.support.engines import Engine
from tests.support.nats_servers import NatsServer
from tests.support.real import TICK, RealCluster, real_cluster, until
from tests.support.relay import Way, way_to
from tests.support.sick_engine import SickEngine

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(600)]

SLOW_S = 4.0  # a call; within the time-outs of the agent, so that all gets done
PATIENCE_S = 180.0  # for what an engine that fails or is slow gets done in the end
CALLS_PER_S_MAX = 10.0  # of an agent to an engine that does not do its work


@dataclass
class Ward:
    """Three hosts behind sick engines, the first one's agent behind a way to NATS that can be cut, and a healthy host
    that shares the third one's engine."""

    cluster: RealCluster
    engines: dict[str, SickEngine]
    way: Way

    def get_well(self) -> None:
        for engine in self.engines.values():
            engine.get_well()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, engines_session: list[Engine]) -> Iterator[Ward]:
    directory = tmp_path_factory.mktemp("ward")
    with ExitStack() as stack:
        server = stack.enter_context(NatsServer(directory / "nats", binary=require("nats-server")))
        way = stack.enter_context(way_to(server.url))
        sick = {f"host-{n}": stack.enter_context(SickEngine(one.socket)) for n, one in enumerate(engines_session, 1)}
        running = real_cluster(
            directory / "cluster",
            driver="docker",
            hosts=4,
            engines=[*engines_session, engines_session[2]],
            servers=server,
            options={host: ("--docker-host", one.url) for host, one in sick.items()},
            ways={"host-1": way.url},
        )
        yield Ward(stack.enter_context(running), sick, way)


@pytest.fixture
def ward(whole: Ward) -> Iterator[Ward]:
    """All are well and nothing is published, also afterwards."""
    yield whole
    whole.get_well()
    whole.cluster.remove_all()


def on(host: str) -> dict[str, Any]:
    return {"placement": {"required": {"host": host}}}


def preferring(host: str) -> dict[str, Any]:
    return {"placement": {"preferred": {"host": host}}}


def publish(cluster: RealCluster, pipelines: dict[str, dict[str, Any]]) -> None:
    """Publish them and wait until all run."""
    for pipeline, fields in pipelines.items():
        cluster.publish(pipeline, TICK, **fields)
    for pipeline in pipelines:
        cluster.until_state(pipeline, "running")


def driver(cluster: RealCluster, host: str) -> str:
    """What `shoal hosts` says of a host's engine."""
    (row,) = [row for row in cluster.json("hosts") if row["host"] == host]
    return str(row["drivers"][0])


def doctor(cluster: RealCluster, host: str) -> str:
    """What `shoal doctor`, which is not content, says of a host."""
    done = cluster.run("doctor", "-o", "json")
    assert done.returncode == 1, done.stdout
    (row,) = [row for row in json.loads(done.stdout) if row["check"] == f"host {host}"]
    assert row["state"] == "bad"
    return str(row["what"])


def updated(cluster: RealCluster, pipeline: str) -> bool:
    status = cluster.status(pipeline)
    return (status["state"], status["version"]) == ("running", "2")


def test_what_engines_do_late_or_badly_is_done_in_the_end(ward: Ward) -> None:
    """The first one hangs, the second is slow, the third fails half of its calls."""
    cluster, hosts = ward.cluster, list(ward.engines)
    kinds = ("stays", "leaves", "changes")
    publish(cluster, {f"{kind}-{host}": on(host) for host in hosts for kind in kinds})
    publish(cluster, {"rests": on("host-1")})
    stays = {host: cluster.the(f"stays-{host}") for host in hosts}
    resting = cluster.the("rests")
    began = time.monotonic()
    for engine in ward.engines.values():
        engine.calls.clear()
    hanging, slow, failing = ward.engines.values()
    hanging.hang()
    slow.slow_down(SLOW_S)
    failing.fail_half()
    cluster.put_record("rests", status="paused", **on("host-1"))
    for host in hosts:
        cluster.publish(f"comes-{host}", TICK, **on(host))
        cluster.delete_record(f"leaves-{host}")
        cluster.publish(f"changes-{host}", TICK + b"# 2", version="2", **on(host))

    # Nobody else waits.
    publish(cluster, {"aside": on("host-4")})
    # The one that hangs is named, by all who are asked.
    until(lambda: "docker (bad: " in driver(cluster, "host-1"), "the hosts say so", PATIENCE_S)
    assert "docker (bad:" in doctor(cluster, "host-1")
    for kind in ("comes", "leaves", "changes"):
        until(
            lambda: "host-1" in (why := cluster.status(f"{kind}-host-1")["reason"]) and "Docker engine" in why,  # noqa: B023
            f"the status of {kind} says so",
        )
    assert cluster.status("rests")["state"] == "pausing", "wanted stopped is not stopped"
    # The others get everything done, late.
    for host in hosts[1:]:
        cluster.until_state(f"comes-{host}", "running", PATIENCE_S)
        until(lambda: updated(cluster, f"changes-{host}"), f"the change on {host}", PATIENCE_S)  # noqa: B023
        until(lambda: not cluster.status(f"leaves-{host}"), f"the removal on {host}", PATIENCE_S)  # noqa: B023
    assert {host: cluster.the(f"stays-{host}") for host in hosts} == stays, "what runs is not touched"
    for engine in ward.engines.values():
        assert engine.calls.total() < CALLS_PER_S_MAX * (time.monotonic() - began), engine.calls

    # What the first one took in while it hung happens now. Whatever that is, nobody has to come.
    ward.get_well()
    cluster.until_state("comes-host-1", "running", PATIENCE_S)
    until(lambda: updated(cluster, "changes-host-1"), "the change", PATIENCE_S)
    cluster.until_state("rests", "paused", PATIENCE_S)
    rested = cluster.the("rests")
    assert (rested.runtime, rested.alive) == (resting.runtime, False)
    for host in hosts:
        cluster.wait_no_trace(f"leaves-{host}")
        for kind in ("comes", "changes"):
            assert cluster.the(f"{kind}-{host}").alive, "one, and no second one"
    assert {host: cluster.the(f"stays-{host}") for host in hosts} == stays
    assert {row["pipeline"]: row["restarts"] for row in cluster.json("executions") if row["restarts"]} == {}
    until(lambda: cluster.run("doctor").returncode == 0, "all is well")


def test_a_lease_that_ends_while_the_engine_hangs(ward: Ward) -> None:
    """The runner needs neither agent nor engine to stop. Beside it an agent that is frozen, whose engine is well."""
    cluster = ward.cluster
    publish(
        cluster,
        {
            "bound": on("host-1"),
            "free": {**on("host-1"), "overlap": "allow"},
            "moves": preferring("host-1"),
            "frozen": preferring("host-3"),
        },
    )
    before = {pipeline: cluster.the(pipeline) for pipeline in ("bound", "free", "moves", "frozen")}
    assert [one.host for one in before.values()] == ["host-1", "host-1", "host-1", "host-3"]

    def alive(pipeline: str) -> list[str]:
        found = [one.host for one in cluster.found(pipeline) if one.alive]
        assert len(found) <= 1, f"two copies of {pipeline}: {found}"
        return found

    ward.engines["host-1"].hang()
    ward.way.cut()
    cluster.local.signal("host-3", signal.SIGSTOP)
    try:
        until(lambda: not alive("bound"), "its runner stops it")
        for pipeline in ("moves", "frozen"):
            until(lambda: alive(pipeline) not in ([], [before[pipeline].host]), f"{pipeline} runs elsewhere")  # noqa: B023
    finally:
        cluster.local.signal("host-3", signal.SIGCONT)
        ward.way.mend()
    # It is back, and knows what to do; only its engine does not let it.
    until(lambda: "Docker engine" in cluster.status("bound")["reason"], "its status says why it does not run")
    assert cluster.the("free") == before["free"], "it needs no engine to go on"
    moved = alive("moves")
    assert (alive("bound"), len(moved)) == ([], 1)

    ward.get_well()
    for pipeline in before:
        cluster.until_state(pipeline, "running", PATIENCE_S)
        until(lambda: len(cluster.found(pipeline)) == 1, f"there is one {pipeline}", PATIENCE_S)  # noqa: B023
    assert cluster.the("bound").runtime == before["bound"].runtime, "it resumes in place"
    assert cluster.the("free") == before["free"]
    assert alive("moves") == moved, "it stays where it is"
    assert {row["pipeline"]: row["restarts"] for row in cluster.json("executions") if row["restarts"]} == {}
