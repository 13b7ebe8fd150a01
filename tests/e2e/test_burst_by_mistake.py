"""Five thousand pipelines, published by a script that went wrong: the cluster stays at its users' service, and is quiet
again when they are gone."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from tests.support.intruder import Intruder
from tests.support.real import TICK, RealCluster, real_cluster, until


@pytest.mark.slow
@pytest.mark.timeout(420)
def test_five_thousand_pipelines_by_mistake(tmp_path: Path) -> None:
    """All of them wait for a host that nobody has, which costs a planner more than any that run."""
    count = 5000
    with real_cluster(tmp_path, hosts=2) as cluster, Intruder(cluster.url) as intruder:
        cluster.publish("steady", TICK)
        cluster.until_state("steady", "running")
        before = cluster.the("steady")
        publish_many(cluster, intruder, count)
        cluster.publish("steady", TICK + b"# changed\n", version="2")
        cluster.until_state("steady", "running", 120)
        until(lambda: cluster.the("steady") != before, "the change has acted", 120)
        until(lambda: waiting(cluster) == count, "all of them say that they wait", 180)
        cluster.publish("good", TICK)
        cluster.until_state("good", "running", 60)
        for number in range(count):
            intruder.publish(f"$KV.shoal_pipelines.mistake-{number}", b"", headers={"KV-Operation": "DEL"})
        until(lambda: waiting(cluster) == 0, "nothing is left of them", 120)
        assert cluster.the("good").alive
        cluster.assert_all_alive()


def publish_many(cluster: RealCluster, intruder: Intruder, count: int) -> None:
    """Records and objects, all of one small configuration: metadata that name the same chunks."""
    cluster.put_config("mistake", "1", TICK)
    subject = f"$O.shoal_configs.M.{base64.urlsafe_b64encode(b'mistake/1').decode()}"
    stored = json.loads(cluster.nats("stream", "get", "OBJ_shoal_configs", "--last-for", subject, "--json"))
    data = json.loads(base64.b64decode(stored["data"]))
    for number in range(count):
        name = f"mistake-{number}/1"
        intruder.describe("shoal_configs", name, json.dumps({**data, "name": name}).encode())
        record = {"id": f"mistake-{number}", "status": "published", "version": "1"}
        record |= {"placement": {"required": {"zone": "nowhere"}}}  # type: ignore[dict-item]
        intruder.put("shoal_pipelines", f"mistake-{number}", json.dumps(record).encode())


def waiting(cluster: RealCluster) -> int:
    """How many mistakes have a status."""
    listed = cluster.nats("kv", "ls", "shoal_control")
    return sum(line.startswith("status.mistake-") for line in listed.split())
