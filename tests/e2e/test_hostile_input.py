"""Strangers write into every bucket, key and subject of a running cluster; what is good goes on, and what comes runs.

After each flood: no process has ended, what ran is untouched, a pipeline that is published afterwards runs, and the
cluster comes to rest again: no busy loop, no log that repeats itself, no memory that only grows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.support.aftermath import SETTLE_S, Watch, steady_cluster, variants
from tests.support.hostile import BYTES, HEADERS
from tests.support.intruder import Intruder, strange_keys
from tests.support.real import RealCluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealCluster]:
    with steady_cluster(tmp_path_factory.mktemp("cluster")) as running:
        yield running


@pytest.fixture
def intruder(cluster: RealCluster) -> Iterator[Intruder]:
    with Intruder(cluster.url) as found:
        yield found


@pytest.mark.timeout(400)
def test_records(cluster: RealCluster, intruder: Intruder) -> None:
    watch = Watch(cluster)
    strange_keys(intruder, "shoal_pipelines")
    good = {"id": "evil", "status": "published", "version": "1", "env": {"A": "b"}, "placement": {}, "replicas": 1}
    good |= {"resources": {}, "restart": {}, "volumes": [], "image": "", "name": "n"}
    for number, data in enumerate(variants(good)):
        intruder.put("shoal_pipelines", f"evil-{number % 50}", data)
        intruder.put("shoal_pipelines", "evil", data)
    for data in BYTES:
        intruder.put("shoal_pipelines", "evil", data)
    watch.over("after-records")
    status = cluster.status("evil")
    assert status["problems"], "and the owner is told"


@pytest.mark.timeout(400)
def test_reports(cluster: RealCluster, intruder: Intruder) -> None:
    watch = Watch(cluster)
    good = cluster.document("reports", "host-1")
    assert good is not None
    strange_keys(intruder, "shoal_reports")
    for data in variants({**good, "host": "host-9"}):
        intruder.put("shoal_reports", "host-9", data)
    for data in (*BYTES, json.dumps(good).encode()):  # the last one: the report of host-1 in the place of host-2
        intruder.put("shoal_reports", "host-2", data)
    watch.over("after-reports")


@pytest.mark.timeout(400)
def test_what_the_leader_owns(cluster: RealCluster, intruder: Intruder) -> None:
    """Lease and journal have tests of their own."""
    watch = Watch(cluster)
    for prefix in ("", "assign.", "version.", "version.evil.", "status."):
        if prefix:
            strange_keys(intruder, "shoal_control", prefix)
    assignment, status = cluster.document("control", "assign.host-1"), cluster.status("steady")
    pin = cluster.document("control", "version.steady.1")
    assert assignment is not None
    assert pin is not None
    for data in variants({**assignment, "host": "host-9", "executions": [], "stopping": []}):
        intruder.put("shoal_control", "assign.host-9", data)
    for data in variants({**status, "pipeline": "nobody"}):
        intruder.put("shoal_control", "status.nobody", data)
    for data in variants({**pin, "pipeline": "nobody"}):
        intruder.put("shoal_control", "version.nobody.1", data)
    for data in (*BYTES, json.dumps({**assignment, "host": "host-2"}).encode(), json.dumps(assignment).encode()):
        intruder.put("shoal_control", "assign.host-2", data)
        intruder.put("shoal_control", "status.shared", data)
        intruder.put("shoal_control", "version.shared.1", data)
    watch.over("after-control", kept=False)
    for pipeline in ("steady", "shared"):
        cluster.until_state(pipeline, "running", SETTLE_S)


@pytest.mark.timeout(400)
def test_objects(cluster: RealCluster, intruder: Intruder) -> None:
    watch = Watch(cluster)
    good = {"name": "evil/1", "bucket": "shoal_configs", "nuid": "NUID", "size": 10, "chunks": 1, "digest": "x"}
    good |= {"options": {"max_chunk_size": 131072}, "mtime": ""}
    number = 0
    for bucket in ("shoal_configs", "shoal_bundles"):
        for data in (*variants(good), *BYTES):
            number += 1
            intruder.describe(bucket, f"evil-{number % 20}/1" if bucket == "shoal_configs" else "f" * 64, data)
        for nuid in (">", "*", "a.b", "a b", "a\r\nPUB $KV.shoal_pipelines.injected 2\r\n{}", "\0", "é"):
            intruder.describe(bucket, f"evil-nuid-{number}/1", json.dumps({**good, "nuid": nuid}).encode())
            number += 1
        for token in ("", "=", "*", "!!!", "a.b", "x" * 3000, "w7\xff", "AA==", "AAAA"):
            intruder.publish(f"$O.{bucket}.M.{token}", json.dumps(good).encode(), headers={"Nats-Rollup": "sub"})
        for headers in HEADERS:
            intruder.publish(f"$O.{bucket}.M.ZXZpbC8x", b"", headers=headers)
            intruder.publish(f"$O.{bucket}.C.NUID", b"x" * 10, headers=headers)
    names = [f"evil-{n}" for n in range(20)] + [f"evil-nuid-{n}" for n in range(number)][-30:]
    for name in names:  # and somebody wants all of it
        record = {"id": name, "status": "published", "version": "1"}
        intruder.put("shoal_pipelines", name, json.dumps(record).encode())
    watch.over("after-objects")
    assert cluster.document("pipelines", "injected") is None, "no command of a stranger was passed on"
    assert cluster.status("evil-0")["problems"]
