"""A real cluster for end-to-end tests: nats-server, schedulers, agents as processes; containers on engines of our own.

What is checked is looked up from outside: container engines, /proc and directories, never the product's own memory.
"""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker
import docker.errors

from cli.local import LocalCluster
from cli.up import await_ready
from tests.support.components import require
from tests.support.engines import Engine
from tests.support.images import RUNNER_TAG
from tests.support.nats_servers import NatsCluster, NatsServer
from tests.support.processes import free_port

DEADLINE_S = 60.0

TICK = b"""input:
  generate:
    interval: 1s
    mapping: root = "tick"
output:
  drop: {}
"""

SHARED = b"""input:
  nats:
    urls: [ "${NATS_URL}" ]
    subject: e2e.shared
    queue: e2e
output:
  drop: {}
"""


# What a container is asked: the digest of the configuration inside.
_DIGEST = (
    "import hashlib, os; d = os.environ['SHOAL_RUNNER_DIR'];"
    "print(hashlib.sha256(open(d + '/files/pipeline.yaml', 'rb').read()).hexdigest())"
)


def until(look: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S) -> Any:
    """What `look` finds, as soon as it is true."""
    deadline = time.monotonic() + deadline_s
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {deadline_s:g} s: {what}"
        time.sleep(0.05)


def healthz(address: str) -> dict[str, Any]:
    """What a daemon says of itself, whether it is well or not; {} while nobody listens."""
    try:
        with urllib.request.urlopen(f"http://{address}/healthz", timeout=5) as answer:
            return dict(json.load(answer))
    except urllib.error.HTTPError as error:
        with error:
            return dict(json.load(error))
    except OSError:
        return {}


@dataclass(frozen=True)
class Running:
    """One execution as it is found outside of the product: container id or pid, host, and the facts it carries."""

    execution: str
    pipeline: str
    slot: int
    host: str
    runtime: str
    alive: bool
    config_digest: str  # sha256 of the configuration that is inside, "" when it does not run
    started: str  # start time, as the engine or the kernel says it


@dataclass
class Site(LocalCluster):
    """The children of a cluster: with a NATS server among them, or on `servers` that belong to the test.

    `ways`: where a child finds NATS if not there, by name. `clocks`: files that say by how many seconds the wall clock
    of a child is wrong.
    """

    servers: NatsServer | NatsCluster | None = None
    ways: Mapping[str, str] = field(default_factory=dict)
    clocks: Mapping[str, Path] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return super().url if self.servers is None else self.servers.url

    def _spawn(self, name: str, command: Sequence[str]) -> None:
        way = self.ways.get(name, self.url)
        command = [way if part == self.url else part for part in command]
        if name in self.clocks:
            at = command.index("cli.main")
            command[at:at] = ["tests.support.shifted_clock", str(self.clocks[name])]
        super()._spawn(name, command)

    def start_store(self) -> None:
        if self.servers is None:
            super().start_store()

    def start_scheduler(self, name: str) -> None:
        os.environ["SHOAL_STRICT_AUDIT"] = "1"  # a plan that the audit refuses ends the process, which tests notice
        try:
            super().start_scheduler(name)
        finally:
            del os.environ["SHOAL_STRICT_AUDIT"]

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal to one of the children."""
        self.children[name].send_signal(number)

    def ends(self, name: str, timeout_s: float = 60.0) -> int:
        """Wait for the end of a child; its exit code."""
        return self.children.pop(name).wait(timeout_s)


@dataclass
class RealCluster:
    """A running cluster. `shoal` and `nats` run the commands as a user would.

    `options`: what the agent of a host is started with besides the usual, by host.
    """

    local: Site
    driver: str
    engines: Sequence[Engine] = ()
    hosts: dict[str, Engine | None] = field(default_factory=dict)
    options: Mapping[str, Sequence[str]] = field(default_factory=dict)
    clients: dict[str, docker.DockerClient] = field(default_factory=dict)
    written: dict[str, int] = field(default_factory=dict)  # revision of the newest record that was written here

    @property
    def url(self) -> str:
        return self.local.url

    def command(self, *arguments: str) -> list[str]:
        """A command line of `shoal` for this cluster."""
        return [sys.executable, "-m", "cli.main", "--server", self.url, "--cluster", self.local.cluster, *arguments]

    def run(self, *arguments: str, timeout_s: float = 90.0, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command of `shoal` and say how it ended."""
        return subprocess.run(
            self.command(*arguments), capture_output=True, text=True, timeout=timeout_s, check=False, **options
        )

    def shoal(self, *arguments: str, code: int = 0, timeout_s: float = 90.0, **options: Any) -> str:
        """Standard output of a command that must end with `code` (and its errors, if that is not 0)."""
        done = self.run(*arguments, timeout_s=timeout_s, **options)
        assert done.returncode == code, f"shoal {arguments} ended with {done.returncode}: {done.stdout}{done.stderr}"
        return done.stdout if code == 0 else done.stdout + done.stderr

    def json(self, *arguments: str) -> Any:
        """The JSON that a command prints."""
        return json.loads(self.shoal(*arguments, "-o", "json"))

    def nats_cli(self) -> Path:
        """Where the real `nats` CLI is."""
        return require("nats")

    def nats(self, *arguments: str, data: bytes | None = None) -> str:
        """Standard output of the real `nats` CLI; again while a stream has no leader: the CLI does not wait for one."""
        command = [str(self.nats_cli()), "--server", self.url, *arguments]
        deadline = time.monotonic() + DEADLINE_S
        while True:
            done = subprocess.run(command, input=data, capture_output=True, timeout=60, check=False)
            leaderless = any(words in done.stderr for words in (b"deadline exceeded", b"no response from stream"))
            if done.returncode == 0 or not leaderless or time.monotonic() > deadline:
                break
        assert done.returncode == 0, f"nats {arguments}: {done.stdout!r} {done.stderr!r}"
        return done.stdout.decode()

    def status(self, pipeline: str) -> dict[str, Any]:
        """The status as the `nats` CLI shows it; {} if there is none."""
        return self.document("control", f"status.{pipeline}") or {}

    def document(self, bucket: str, key: str) -> dict[str, Any] | None:
        """A document in a bucket, as the `nats` CLI shows it; None if there is none."""
        command = [str(require("nats")), "--server", self.url, "kv", "get"]
        command += [f"{self.local.cluster}_{bucket}", key, "--raw"]
        done = subprocess.run(command, capture_output=True, timeout=60, check=False)
        return json.loads(done.stdout) if done.returncode == 0 and done.stdout.strip() else None

    def leader(self) -> str:
        """Name of the scheduler that leads now, "" if none does."""
        done = self.run("leader", "-o", "json")
        row = json.loads(done.stdout) if done.stdout else {"alive": False}
        return str(row["name"]) if row["alive"] else ""

    def wait(self, pipeline: str, goal: str = "running") -> None:
        self.shoal("wait", pipeline, "--for", goal, "--timeout", "60s")

    def until_state(self, pipeline: str, state: str, deadline_s: float = DEADLINE_S) -> dict[str, Any]:
        """The status, as soon as its state is `state` and it speaks of the newest record without a problem.

        Quicker than `wait`, which is a process of its own; and it waits where `wait` would give up.
        """
        seen: dict[str, Any] = {}

        def reached() -> bool:
            nonlocal seen
            seen = self.status(pipeline)
            newest = seen.get("record", 0) >= self.written.get(pipeline, 0)
            return newest and seen.get("state") == state and not seen["problems"]

        try:
            until(reached, f"{pipeline} is {state}", deadline_s)
        except AssertionError as error:
            raise AssertionError(f"{error}; it is {seen}") from None
        return seen

    def until_running_and_paused(self, pipelines: Sequence[str], paused: str) -> None:
        """Wait until all of these run; then pause the one of them that is named."""
        for pipeline in pipelines:
            self.until_state(pipeline, "running")
        self.put_record(paused, status="paused")
        self.until_state(paused, "paused")

    # --- what really runs

    def found(self, pipeline: str) -> list[Running]:
        """Executions of a pipeline that exist on any host, running or kept."""
        return sorted(self._found(pipeline), key=lambda r: (r.slot, r.execution))

    def _found(self, pipeline: str) -> Iterator[Running]:
        if self.driver == "process":
            yield from self._processes(pipeline)
            return
        for host, engine in self.hosts.items():
            assert engine is not None
            if not engine.running:
                continue  # it has lost its power, and its containers with it
            client = self.clients.setdefault(host, engine.client())
            ours = [f"shoal.pipeline={pipeline}", f"shoal.cluster={self.local.cluster}", f"shoal.host={host}"]
            filters: dict[str, Any] = {"label": ours}
            for container in client.containers.list(all=True, filters=filters, ignore_removed=True):
                labels = container.labels
                alive, digest = container.status == "running", ""
                if alive:
                    try:
                        output: Any = container.exec_run(["/opt/shoal/python3", "-c", _DIGEST]).output
                        digest = output.decode().strip()
                    except docker.errors.NotFound:
                        continue  # removed since it was listed
                    except docker.errors.APIError:
                        alive = False  # it has ended since it was listed
                yield Running(
                    labels["shoal.execution"],
                    pipeline,
                    int(labels["shoal.slot"]),
                    host,
                    container.id or "",
                    alive,
                    digest,
                    container.attrs["State"]["StartedAt"],
                )

    def _processes(self, pipeline: str) -> Iterator[Running]:
        live = {}
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                pairs = [p.partition(b"=") for p in path.read_bytes().split(b"\0")]
                stat = (path.parent / "stat").read_text().rpartition(")")[2].split()
            except (OSError, PermissionError):
                continue
            env = {k.decode(): v.decode("utf-8", "replace") for k, _, v in pairs if k}
            directory = env.get("SHOAL_RUNNER_DIR", "")
            ours = env.get("SHOAL_PIPELINE") == pipeline and directory.startswith(f"{self.local.run_dir}/")
            leads = stat[3] == path.parent.name  # its session: it is the runner, not its Bento
            if ours and leads and stat[0] != "Z":
                live[directory] = (path.parent.name, env, stat[19])
        for host in self.hosts:
            for place in (self.local.run_dir / host / "executions").glob(f"*-{pipeline}-*"):
                slot = int(place.name.rsplit("-", 2)[1])
                execution = f"{pipeline}-{slot}-{place.name.rsplit('-', 1)[1]}"
                pid, _, started = live.get(str(place), ("", {}, ""))
                inside = place / "files" / "pipeline.yaml"
                digest = ""
                with contextlib.suppress(FileNotFoundError):  # not there yet, or being removed as we look
                    digest = hashlib.sha256(inside.read_bytes()).hexdigest() if pid else ""
                yield Running(execution, pipeline, slot, host, pid or str(place), bool(pid), digest, started)

    def until_found(self, pipeline: str, wanted: Sequence[Running], what: str) -> None:
        """Wait until exactly these executions of a pipeline exist."""
        until(lambda: self.found(pipeline) == list(wanted), f"{pipeline}: {what}")

    def remove_all(self) -> None:
        """Delete every record that was written here, and wait until nothing of it is left."""
        pipelines = list(self.written)
        for pipeline in pipelines:
            self.delete_record(pipeline)
        for pipeline in pipelines:
            until(lambda: not self.status(pipeline) and not self.found(pipeline), f"{pipeline} is gone")  # noqa: B023
        self.assert_all_alive()

    def the(self, pipeline: str) -> Running:
        """Its one execution."""
        found = self.found(pipeline)
        assert len(found) == 1, f"expected one execution of {pipeline}, found {found}"
        return found[0]

    def traces(self, pipeline: str) -> list[str]:
        """Everything that is left of a pipeline: containers, processes, directories, logs, bundles, documents."""
        left = [f"execution {r.execution} on {r.host}" for r in self.found(pipeline)]
        for host in self.hosts:
            left += [str(p) for p in (self.local.run_dir / host / "executions").glob(f"*-{pipeline}-*")]
            left += [str(p) for p in (self.local.data / "hosts" / host / "logs").glob(f"*-{pipeline}-*")]
            for bundle in (self.local.data / "hosts" / host / "bundles").glob("*/bundle.tar"):
                with contextlib.suppress(FileNotFoundError):  # deleted as we look
                    if f'"pipeline":"{pipeline}"'.encode() in bundle.read_bytes()[:4096]:
                        left.append(str(bundle))
        rows = self.json("executions", pipeline)
        left += [f"assignment of {r['execution']} to {r['host']}" for r in rows]
        if self.status(pipeline):
            left.append("status")
        return left

    def wait_no_trace(self, pipeline: str) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while left := self.traces(pipeline):
            assert time.monotonic() < deadline, f"left of {pipeline}: {left}"
            time.sleep(0.2)

    # --- publishing without any of our code: the `nats` CLI

    def put_config(self, pipeline: str, version: str, data: bytes, directory: Path | None = None) -> str:
        """Store a configuration with `nats object put`; its sha256."""
        path = (directory or self.local.data) / f"{pipeline}-{version}.object"
        path.write_bytes(data)
        bucket = f"{self.local.cluster}_configs"
        self.nats("object", "put", bucket, str(path), "--name", f"{pipeline}/{version}", "--force")
        return hashlib.sha256(data).hexdigest()

    def put_record(self, pipeline: str, **fields: Any) -> None:
        """Write a record with `nats kv put`."""
        record = {"id": pipeline, "name": pipeline, "status": "published", "version": "1", **fields}
        self.put_raw(pipeline, json.dumps(record).encode())

    def put_raw(self, pipeline: str, data: bytes) -> None:
        """Write anything under the key of a pipeline."""
        self.nats("kv", "put", self._pipelines, pipeline, data=data)
        shown = self.nats("kv", "get", self._pipelines, pipeline)  # "bucket > key revision: N created @ ..."
        self.written[pipeline] = int(shown.partition("revision: ")[2].split()[0])

    def publish(self, pipeline: str, data: bytes, *, version: str = "1", **fields: Any) -> None:
        """Store a configuration and write a record that publishes it."""
        self.put_config(pipeline, version, data)
        self.put_record(pipeline, version=version, **fields)

    def delete_record(self, pipeline: str) -> None:
        self.written.pop(pipeline, None)
        self.nats("kv", "del", self._pipelines, pipeline, "--force")

    def purge_record(self, pipeline: str) -> None:
        self.written.pop(pipeline, None)
        self.nats("kv", "purge", self._pipelines, pipeline, "--force")

    @property
    def _pipelines(self) -> str:
        return f"{self.local.cluster}_pipelines"

    # --- failures

    def start_agent(self, name: str) -> None:
        engine = self.hosts[name]
        docker_options = ("--docker-host", engine.url, "--image", RUNNER_TAG) if engine is not None else ()
        self.local.agent_options = (*docker_options, *self.options.get(name, ()))
        self.local.start_agent(name, {"zone": "abc"[(int(name.rpartition("-")[2]) - 1) % 3]})

    def usable(self, host: str) -> bool:
        """Whether a host has said that its driver works."""
        drivers = (self.document("hosts", host) or {"drivers": {}})["drivers"]
        return any(driver["ok"] for driver in drivers.values())

    def kill_agent(self, name: str) -> None:
        """SIGKILL to the agent alone: what it runs goes on."""
        self.local.kill(name)

    def assert_all_alive(self) -> None:
        """No process of the cluster has ended by itself."""
        ended = self.local.ended()
        assert not ended, "\n".join(f"{name} ended:\n{self.local.last_lines(name, 20)}" for name in ended)

    def lose_host(self, name: str) -> None:
        """The host loses power: agent, runners and Bentos are gone at once."""
        self.local.kill(name)
        engine = self.hosts[name]
        if engine is not None:
            engine.power_off()
            return
        _kill_executions(self.local.run_dir / name)


def _kill_executions(directory: Path) -> None:
    """SIGKILL to what runs as a process below a host's directory."""
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if f"SHOAL_RUNNER_DIR={directory}/".encode() in path.read_bytes():
                os.kill(int(path.parent.name), signal.SIGKILL)


@contextlib.contextmanager
def real_cluster(
    directory: Path,
    *,
    driver: str = "process",
    hosts: int = 3,
    schedulers: int = 1,
    engines: Sequence[Engine] = (),
    name: str = "shoal",
    servers: NatsServer | NatsCluster | None = None,
    options: Mapping[str, Sequence[str]] | None = None,
    ways: Mapping[str, str] | None = None,
    clocks: Mapping[str, Path] | None = None,
) -> Iterator[RealCluster]:
    """A cluster, ready; everything it started is gone afterwards.

    `servers`: the NATS it lives in, else one of its own. `options`: further options of agents, by host. `ways` and
    `clocks` of schedulers and agents: see `Site`.
    """
    require("nats-server"), require("bento"), require("nats")
    directory.mkdir(parents=True, exist_ok=True)
    local = Site(
        directory,
        free_port(),
        cluster=name,
        executor=driver,
        say=lambda _: None,
        servers=servers,
        ways=ways or {},
        clocks=clocks or {},
    )
    cluster = RealCluster(local, driver, engines, options=options or {})
    try:
        local.start_store()
        for number in range(1, schedulers + 1):
            local.start_scheduler(f"scheduler-{number}")
        for number in range(1, hosts + 1):
            cluster.hosts[f"host-{number}"] = engines[number - 1] if driver == "docker" else None
            cluster.start_agent(f"host-{number}")
        await_ready(local, hosts, threading.Event())
        until(lambda: all(map(cluster.usable, cluster.hosts)), "every host has a driver that works")
        yield cluster
    finally:
        local.stop()
        for host in cluster.hosts:
            _kill_executions(local.run_dir / host)  # of an agent that the test has killed, and left so
