"""The public contract: a pipeline is published, paused, moved and removed with nothing but a NATS client.

Once with the real `nats` CLI and once with raw nats-py calls, none of our code; on real processes and real containers.
"""

import asyncio
import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nats
import pytest

from tests.support.components import require
from tests.support.real import SHARED, TICK, RealCluster, real_cluster, until

OTHER_TICK = TICK.replace(b"1s", b"2s")


class NatsCli:
    """Publishing with the `nats` CLI."""

    def __init__(self, cluster: RealCluster, directory: Path) -> None:
        self._cluster, self._directory = cluster, directory

    def put_config(self, pipeline: str, version: str, data: bytes) -> str:
        return self._cluster.put_config(pipeline, version, data, self._directory)

    def put_record(self, pipeline: str, **fields: Any) -> None:
        self._cluster.put_record(pipeline, **fields)

    def delete(self, pipeline: str) -> None:
        self._cluster.delete_record(pipeline)

    def purge(self, pipeline: str) -> None:
        self._cluster.purge_record(pipeline)


class NatsPy:
    """Publishing with nats-py's own KV and object store."""

    def __init__(self, cluster: RealCluster, _: Path) -> None:
        self._url = cluster.url

    def put_config(self, pipeline: str, version: str, data: bytes) -> str:
        async def put(js: Any) -> None:
            await (await js.object_store("shoal_configs")).put(f"{pipeline}/{version}", data)

        self._run(put)
        return hashlib.sha256(data).hexdigest()

    def put_record(self, pipeline: str, **fields: Any) -> None:
        record = {"id": pipeline, "name": pipeline, "status": "published", "version": "1", **fields}

        async def put(js: Any) -> None:
            await (await js.key_value("shoal_pipelines")).put(pipeline, json.dumps(record).encode())

        self._run(put)

    def delete(self, pipeline: str) -> None:
        async def delete(js: Any) -> None:
            await (await js.key_value("shoal_pipelines")).delete(pipeline)

        self._run(delete)

    def purge(self, pipeline: str) -> None:
        async def purge(js: Any) -> None:
            await (await js.key_value("shoal_pipelines")).purge(pipeline)

        self._run(purge)

    def _run(self, action: Any) -> None:
        async def body() -> None:
            client = await nats.connect(self._url)
            try:
                await action(client.jetstream())
            finally:
                await client.close()

        asyncio.run(body())


CLIENTS = {"nats-cli": NatsCli, "nats-py": NatsPy}


@pytest.fixture(scope="module", params=["process", pytest.param("docker", marks=pytest.mark.docker)])
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealCluster]:
    engines = request.getfixturevalue("engines_session") if request.param == "docker" else ()
    with real_cluster(tmp_path_factory.mktemp("cluster"), driver=request.param, engines=engines) as running:
        yield running


@pytest.fixture(params=sorted(CLIENTS))
def client(request: pytest.FixtureRequest, cluster: RealCluster, tmp_path: Path) -> Any:
    if request.param == "nats-cli":
        require("nats")
    return CLIENTS[request.param](cluster, tmp_path)


def only(cluster: RealCluster, pipeline: str) -> Any:
    found = cluster.found(pipeline)
    assert len(found) == 1, f"expected one execution of {pipeline}, found {found}"
    return found[0]


@pytest.mark.timeout(240)
def test_a_whole_life(cluster: RealCluster, client: Any, request: pytest.FixtureRequest) -> None:
    name = f"life-{request.node.callspec.params['client']}"
    digest = client.put_config(name, "1", TICK)
    client.put_record(name)
    cluster.wait(name)
    first = only(cluster, name)
    assert first.alive
    assert first.config_digest == digest

    client.put_record(name, status="paused")
    cluster.wait(name, "paused")
    paused = only(cluster, name)
    assert not paused.alive
    assert (paused.execution, paused.host) == (first.execution, first.host)

    client.put_record(name)
    cluster.wait(name)
    again = only(cluster, name)
    assert again.alive
    assert (again.execution, again.host) == (first.execution, first.host)
    if cluster.driver == "docker":
        assert first.runtime == paused.runtime == again.runtime, "pausing keeps the very container"

    digest = client.put_config(name, "2", OTHER_TICK)
    client.put_record(name, version="2")
    until(lambda: [r for r in cluster.found(name) if r.alive and r.config_digest == digest], "version 2 runs")
    cluster.wait(name)
    assert only(cluster, name).execution != first.execution

    client.put_record(name, status="draft", version="2")
    cluster.wait_no_trace(name)

    client.put_record(name, version="2")
    cluster.wait(name)
    client.delete(name)
    cluster.wait_no_trace(name)

    client.put_record(name, version="2")
    cluster.wait(name)
    client.purge(name)
    cluster.wait_no_trace(name)


@pytest.mark.timeout(180)
def test_replicas_go_up_and_down_and_survivors_stay(cluster: RealCluster, tmp_path: Path) -> None:
    client = NatsCli(cluster, tmp_path)
    client.put_config("replicas", "1", SHARED)
    client.put_record("replicas", replicas=2)
    cluster.wait("replicas")
    two = cluster.found("replicas")
    assert [r.slot for r in two] == [0, 1]
    assert len({r.host for r in two}) == 2
    client.put_record("replicas", replicas=3)
    until(lambda: len([r for r in cluster.found("replicas") if r.alive]) == 3, "three replicas")
    assert cluster.found("replicas")[:2] == two, "slots that were there stay as they are"
    client.put_record("replicas", replicas=1)
    until(lambda: [r.slot for r in cluster.found("replicas")] == [0], "one replica")
    assert cluster.found("replicas") == two[:1]
    client.delete("replicas")
    cluster.wait_no_trace("replicas")


@pytest.mark.timeout(180)
def test_a_shareable_update_starts_the_new_before_it_stops_the_old(cluster: RealCluster, tmp_path: Path) -> None:
    client = NatsCli(cluster, tmp_path)
    client.put_config("roll", "1", SHARED)
    client.put_record("roll")
    cluster.wait("roll")
    digest = client.put_config("roll", "2", SHARED.replace(b"drop: {}", b"drop: {}\n# second"))
    client.put_record("roll", version="2")
    gaps = []

    def updated() -> bool:
        alive = [r for r in cluster.found("roll") if r.alive]
        gaps.append(not alive)
        return [r.config_digest for r in alive] == [digest]

    until(updated, "version 2 alone")
    assert not any(gaps), "at every look something ran"
    client.delete("roll")
    cluster.wait_no_trace("roll")


@pytest.mark.timeout(120)
def test_a_tar_with_files_that_the_configuration_refers_to(cluster: RealCluster, tmp_path: Path) -> None:
    config = b"""input:
  generate:
    interval: 1s
    mapping: root.name = "fish"
pipeline:
  processors:
    - json_schema:
        schema_path: "file://./schemas/thing.json"
output:
  drop: {}
"""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for path, content in (("pipeline.yaml", config), ("schemas/thing.json", b'{"type": "object"}')):
            entry = tarfile.TarInfo(path)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    client = NatsCli(cluster, tmp_path)
    client.put_config("tarred", "1", data.getvalue())
    client.put_record("tarred")
    cluster.wait("tarred")
    assert only(cluster, "tarred").config_digest == hashlib.sha256(config).hexdigest()
    client.delete("tarred")
    cluster.wait_no_trace("tarred")


@pytest.mark.timeout(180)
def test_overwriting_the_object_of_a_published_version_changes_nothing(cluster: RealCluster, tmp_path: Path) -> None:
    client = NatsCli(cluster, tmp_path)
    digest = client.put_config("pinned", "1", TICK)
    client.put_record("pinned")
    cluster.wait("pinned")
    before = only(cluster, "pinned")
    client.put_config("pinned", "1", OTHER_TICK)
    note = until(lambda: cluster.status("pinned").get("notes"), "the overwritten object is reported")
    assert "object" in note[0] or "configuration" in note[0]

    # Also after everything has been started anew.
    cluster.local.kill("scheduler-1")
    cluster.local.start_scheduler("scheduler-1")
    for host in cluster.hosts:
        cluster.local.kill(host)
        cluster.start_agent(host)
    until(cluster.leader, "a leader")
    cluster.wait("pinned")
    after = only(cluster, "pinned")
    assert (after.execution, after.runtime, after.started) == (before.execution, before.runtime, before.started)
    cluster.shoal("restart", "pinned", "--wait")
    assert only(cluster, "pinned").config_digest == digest, "a new execution still has the pinned bytes"
    client.delete("pinned")
    cluster.wait_no_trace("pinned")


@pytest.mark.timeout(120)
def test_an_edit_of_a_captured_field_is_reported_and_changes_nothing(cluster: RealCluster, tmp_path: Path) -> None:
    client = NatsCli(cluster, tmp_path)
    client.put_config("captured", "1", TICK)
    client.put_record("captured", env={"A": "1"})
    cluster.wait("captured")
    before = only(cluster, "captured")
    client.put_record("captured", env={"A": "2"})
    notes = until(lambda: cluster.status("captured").get("notes"), "the edit is reported")
    assert "env" in notes[0]
    assert "next version" in notes[0]
    assert only(cluster, "captured") == before
    client.delete("captured")
    cluster.wait_no_trace("captured")
