"""deploy/compose-cluster.yaml, started, used and stopped."""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.components import ROOT, require
from tests.support.engines import Engine
from tests.support.images import RUNNER_TAG, load_base, load_daemon
from tests.support.processes import free_port
from tests.support.real import TICK, until

COMPOSE = ROOT / "deploy/compose-cluster.yaml"
NATS_IMAGE = "shoal-test-compose-nats:current"
HEALTHY_S = 120.0

pytestmark = [pytest.mark.docker, pytest.mark.cluster]


class Compose:
    """docker-compose on one engine, with the file's variables set for this machine."""

    def __init__(self, engine: Engine, directory: Path) -> None:
        self.engine = engine
        self.directory = directory
        ports = {
            f"NATS_{kind}_{n}": free_port() for kind in ("PORT", "CLUSTER_PORT", "MONITOR_PORT") for n in (1, 2, 3)
        }
        ports |= {f"SHOAL_METRICS_{n}": free_port() for n in range(1, 6)}
        daemon = load_daemon(engine)
        self._nats_image()
        self.environment = {
            **os.environ,
            **engine.environment,
            **{name: str(port) for name, port in ports.items()},
            "SHOAL_IMAGE": daemon,
            "SHOAL_RUNNER_IMAGE": RUNNER_TAG,
            "NATS_IMAGE": NATS_IMAGE,
            "NATS_HEALTHCHECK": "python3 -c 'import sys, urllib.request as u; u.urlopen(sys.argv[1])'",
            "DOCKER_SOCKET": engine.url.removeprefix("unix://"),
            "SHOAL_STATE": str(directory / "state"),
            "SHOAL_RUN": str(directory / "run"),
        }

    def _nats_image(self) -> None:
        """The server on a base with a Python, for the health check (the official image has wget)."""
        base = load_base(self.engine)
        with tempfile.TemporaryDirectory() as context:
            shutil.copy(require("nats-server"), Path(context) / "nats-server")
            lines = [f"FROM {base}", "COPY nats-server /nats-server", 'ENTRYPOINT ["/nats-server"]']
            (Path(context) / "Dockerfile").write_text("\n".join(lines) + "\n")
            self.engine.cli("build", "--tag", NATS_IMAGE, context, timeout_s=300.0)

    def __call__(self, *arguments: str, data: bytes | None = None, timeout_s: float = 180.0) -> str:
        command = [str(require("docker-compose")), "-f", str(COMPOSE), "-p", "shoaltest", *arguments]
        done = subprocess.run(
            command, input=data, capture_output=True, env=self.environment, timeout=timeout_s, check=False
        )
        assert done.returncode == 0, f"docker-compose {arguments}: {done.stdout.decode()}{done.stderr.decode()}"
        return done.stdout.decode()

    def shoal(self, *arguments: str, data: bytes | None = None) -> str:
        return self("exec", "-T", "scheduler-1", "shoal", *arguments, data=data)

    def health(self) -> dict[str, Any]:
        """What the engine says of each service."""
        project: Any = {"label": "com.docker.compose.project=shoaltest"}
        found = {}
        for container in self.engine.client().containers.list(all=True, filters=project):
            state = container.attrs["State"]
            found[container.labels["com.docker.compose.service"]] = state.get("Health", {}).get(
                "Status", state["Status"]
            )
        return found

    def executions(self, pipeline: str) -> list[Any]:
        return self.engine.client().containers.list(filters={"label": f"shoal.pipeline={pipeline}"})


@pytest.fixture
def compose(engine: Engine, tmp_path: Path) -> Iterator[Compose]:
    run_dir = Path(tempfile.mkdtemp(prefix="shoal-compose-", dir="/dev/shm"))
    cluster = Compose(engine, run_dir)
    try:
        cluster("up", "-d")
        yield cluster
    finally:
        cluster("down", "-v", "-t", "5")
        shutil.rmtree(run_dir, ignore_errors=True)


@pytest.mark.timeout(500)
def test_the_compose_cluster_runs_pipelines(compose: Compose) -> None:
    def all_healthy() -> bool:
        health = compose.health()
        return len(health) == 8 and set(health.values()) == {"healthy"}

    until(all_healthy, "every service is healthy", HEALTHY_S)
    rows = json.loads(compose.shoal("hosts", "-o", "json"))
    assert [(r["host"], r["state"]) for r in rows] == [(f"host-{n}", "alive") for n in (1, 2, 3)]
    assert all(row["state"] == "ok" for row in json.loads(compose.shoal("doctor", "-o", "json")))

    manifest = TICK + b"---\nid: ticks\nversion: '1'\n"
    compose.shoal("apply", "-f", "-", "--wait", "--timeout", "90s", data=manifest)
    (container,) = compose.executions("ticks")

    # A NATS server goes; the cluster stays, and so does what runs.
    compose("kill", "nats-2")
    compose.shoal("pause", "ticks", "--wait", "--timeout", "90s")
    assert compose.executions("ticks") == []
    compose.shoal("resume", "ticks", "--wait", "--timeout", "90s")
    assert [c.id for c in compose.executions("ticks")] == [container.id]
    compose("up", "-d", "nats-2")

    compose.shoal("delete", "ticks", "--wait", "--timeout", "90s")
    assert compose.executions("ticks") == []
