"""Three of four hosts vanish at once, their keys with them or not: nothing is moved or destroyed, people are told, and
the hosts' return or one command goes on. Real agents, real Bento, the process driver."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest

from tests.support.components import require
from tests.support.nats_servers import NatsServer
from tests.support.real import TICK, RealCluster, Running, real_cluster, until
from tests.support.relay import Way, way_to

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

PATIENCE_S = 120.0
SILENT_S = 20.0  # longer than anything would be moved after
PIPELINES = ("alone", "shared", "resting", "goes-on")


@dataclass
class Site:
    """Four hosts, of which the first three reach NATS by one way."""

    cluster: RealCluster
    way: Way

    def everything(self) -> list[Running]:
        return [one for pipeline in PIPELINES for one in self.cluster.found(pipeline)]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("mass")
    with ExitStack() as stack:
        server = stack.enter_context(NatsServer(directory / "nats", binary=require("nats-server")))
        way = stack.enter_context(way_to(server.url))
        ways = {f"host-{number}": way.url for number in (1, 2, 3)}
        running = real_cluster(directory / "cluster", hosts=4, schedulers=2, servers=server, ways=ways)
        cluster = stack.enter_context(running)
        first: dict[str, Any] = {"placement": {"preferred": {"host": "host-1"}}}
        second: dict[str, Any] = {"placement": {"preferred": {"host": "host-2"}}}
        cluster.publish("alone", TICK, **first)
        cluster.publish("shared", TICK, overlap="allow", replicas=4)
        cluster.publish("resting", TICK, **second)
        cluster.publish("goes-on", TICK, **second, on_partition="continue")
        cluster.until_running_and_paused(PIPELINES, paused="resting")
        assert sorted(one.host for one in cluster.found("shared")) == sorted(cluster.hosts)
        yield Site(cluster, way)
        cluster.assert_all_alive()


def complains(cluster: RealCluster) -> bool:
    """Whether the doctor is not content, and names the command."""
    told = cluster.run("doctor")
    return told.returncode == 1 and "shoal store confirm hosts" in re.sub(r"\s+", " ", told.stdout)


def held(cluster: RealCluster) -> list[str]:
    """What the store's status says of what is held."""
    done = cluster.run("store", "status", "-o", "json")
    return [row["what"] for row in json.loads(done.stdout or "[]") if row["state"] == "held"]


def until_held(site: Site) -> None:
    """Wait until it is shown plainly, by all who are asked."""
    cluster = site.cluster
    reason = "more than half of the hosts"
    (what,) = until(lambda: held(cluster), "the store's status shows it", PATIENCE_S)
    assert reason in what
    assert "shoal store confirm hosts" in what
    # A leader that takes over meanwhile counts every silence from zero, and says nothing for two seconds.
    until(lambda: complains(cluster), "the doctor says so", PATIENCE_S)
    until(lambda: reason in cluster.status("shared").get("reason", ""), "the status shows it")
    assert [one for one in cluster.json("events", "hosts") if one["kind"] == "outage" and reason in one["message"]]


def until_over(site: Site) -> None:
    until(lambda: site.cluster.run("store", "status").returncode == 0, "nothing is held", PATIENCE_S)
    for pipeline in PIPELINES:
        site.cluster.until_state(pipeline, "paused" if pipeline == "resting" else "running", PATIENCE_S)


def identity(one: Running) -> tuple[str, str]:
    return one.execution, one.host


def assert_nothing_moved(site: Site, before: list[Running]) -> None:
    """What may go on has; what must not has stopped itself meanwhile, and is where it was."""
    now = site.everything()
    assert [identity(one) for one in now] == [identity(one) for one in before]
    assert [one for one in now if one.pipeline != "alone"] == [one for one in before if one.pipeline != "alone"]


def cut(site: Site) -> None:
    site.way.cut()


def cut_and_lose_the_bucket(site: Site) -> None:
    """A new leader then knows of three hosts nothing but what it has on them."""
    cluster = site.cluster
    site.way.cut()
    cluster.local.kill(until(cluster.leader, "somebody leads"))
    cluster.nats("stream", "rm", "KV_shoal_hosts", "--force")


@pytest.mark.parametrize("vanish", [cut, cut_and_lose_the_bucket])
def test_nothing_moves_until_they_are_back(site: Site, vanish: Callable[[Site], None]) -> None:
    cluster, before = site.cluster, site.everything()
    vanish(site)
    for name in ("scheduler-1", "scheduler-2"):
        if name not in cluster.local.children:
            cluster.local.start_scheduler(name)
    over = time.monotonic() + SILENT_S
    try:
        until_held(site)
        until(lambda: not cluster.the("alone").alive, "it has stopped itself")
        while time.monotonic() < over:
            assert_nothing_moved(site, before)
            time.sleep(0.5)
    finally:
        site.way.mend()
    until_over(site)
    assert_nothing_moved(site, before)
    assert cluster.the("alone").alive
    assert {row["pipeline"]: row["restarts"] for row in cluster.json("executions") if row["restarts"]} == {}
    until(lambda: cluster.run("doctor").returncode == 0, "the doctor is content", PATIENCE_S)


def test_one_command_goes_on_without_them(site: Site) -> None:
    cluster = site.cluster
    site.way.cut()
    try:
        until_held(site)
        cluster.shoal("store", "confirm", "hosts")
        for pipeline in ("alone", "shared"):
            status = cluster.until_state(pipeline, "running", PATIENCE_S)
            assert {slot["host"] for slot in status["slots"]} == {"host-4"}
        assert "`shoal hosts confirm-dead host-2`" in cluster.status("goes-on")["reason"], "this takes another word"
    finally:
        site.way.mend()
    until_over(site)
    for pipeline, count in (("alone", 1), ("shared", 4)):
        until(lambda: len(cluster.found(pipeline)) == count, f"what is too many of {pipeline} is removed", PATIENCE_S)  # noqa: B023
        assert {one.host for one in cluster.found(pipeline) if one.alive} == {"host-4"}
    assert cluster.the("goes-on").host == "host-2"
