"""The wall clocks of machines jump by hours, forward and backward: nothing moves, restarts or is lost.

Schedulers and agents are real processes that are told a wrong wall time, each machine another one. Runners and Bento
are not: what a runner looks at is the boot clock.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.support.components import require_root
from tests.support.real import TICK, RealCluster, Running, real_cluster, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

LONGER_S = 13.5  # than anything is moved after
PIPELINES = ("alone", "shared", "resting")


@pytest.fixture(scope="module")
def clocks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By how much the clock of each machine is wrong."""
    directory = tmp_path_factory.mktemp("clocks")
    return {name: directory / name for name in ("scheduler-1", "scheduler-2", "host-1", "host-2")}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, clocks: dict[str, Path]) -> Iterator[RealCluster]:
    directory = tmp_path_factory.mktemp("cluster")
    with real_cluster(directory, hosts=2, schedulers=2, clocks=clocks) as running:
        running.publish("alone", TICK, placement={"preferred": {"host": "host-1"}})
        running.publish("shared", TICK, overlap="allow", replicas=2)
        running.publish("resting", TICK)
        running.until_running_and_paused(PIPELINES, paused="resting")
        yield running
        running.assert_all_alive()


def everything(cluster: RealCluster) -> list[Running]:
    return [one for pipeline in PIPELINES for one in cluster.found(pipeline)]


def jump(clocks: dict[str, Path], **hours: float) -> None:
    for name, path in clocks.items():
        path.write_text(str(hours.get(name.replace("-", "_"), 0.0) * 3600))


def told_at(cluster: RealCluster, subject: str) -> timedelta:
    """How far the newest event about something is from now, by this machine's clock."""
    event = until(lambda: cluster.json("events", subject), f"there is an event about {subject}")[-1]
    return datetime.fromisoformat(event["at"]) - datetime.now(UTC)


def test_clocks_jump_forward_and_backward(cluster: RealCluster, clocks: dict[str, Path]) -> None:
    before, leader = everything(cluster), until(cluster.leader, "somebody leads")
    (other,) = {"scheduler-1", "scheduler-2"} - {leader}
    term = cluster.json("leader")["term"]
    sessions = {row["host"]: row["session"] for row in cluster.json("hosts")}
    for number, sign in enumerate((1, -1)):  # the second time by twelve hours at once
        jump(clocks, **{leader.replace("-", "_"): sign * 6.0, "host_1": sign * -6.0, "host_2": sign * 5.0})
        over = time.monotonic() + LONGER_S
        cluster.publish(f"new-{number}", TICK)
        cluster.until_state(f"new-{number}", "running")
        assert abs(told_at(cluster, f"new-{number}") - timedelta(hours=6 * sign)) < timedelta(hours=1), "it is wrong"
        while time.monotonic() < over:
            assert everything(cluster) == before
            time.sleep(0.5)
        cluster.delete_record(f"new-{number}")
    assert cluster.json("leader")["term"] == term, "the same one leads"
    assert {row["host"]: row["session"] for row in cluster.json("hosts")} == sessions, "no session has ended"
    # Another one leads, whose clock is right; an agent starts again on a wrong one.
    cluster.local.kill(leader)
    cluster.kill_agent("host-1")
    cluster.start_agent("host-1")
    until(lambda: cluster.leader() == other, "the other one leads")
    for number in (0, 1):
        cluster.wait_no_trace(f"new-{number}")
    cluster.local.start_scheduler(leader)
    jump(clocks)
    cluster.publish("last", TICK)
    cluster.until_state("last", "running")
    for pipeline in PIPELINES:
        cluster.until_state(pipeline, "paused" if pipeline == "resting" else "running")
    assert everything(cluster) == before
    assert {row["restarts"] for row in cluster.json("executions")} == {0}
    assert {row["host"]: row["session"] for row in cluster.json("hosts")} == sessions
    until(lambda: cluster.run("doctor").returncode == 0, "all is well")


def test_an_agent_in_a_time_namespace_does_not_start(cluster: RealCluster, tmp_path: Path) -> None:
    require_root("a time namespace")
    command = cluster.command("agent", "--host", "host-9", "--executor", "process")
    command += ["--state-dir", str(tmp_path / "state"), "--run-dir", str(tmp_path / "run")]
    prefix = ["unshare", "--time", "--boottime", "-3600"]
    done = subprocess.run([*prefix, *command], capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 1, done.stderr
    assert "time namespace" in done.stderr
