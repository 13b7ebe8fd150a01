"""The cluster under test: each server, scheduler and host a machine of its own, and what can be done to it.

Servers have two addresses. Schedulers and agents use the one, pipelines the other, so that an agent can be cut off
while the pipelines of its host go on reaching their streams.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from subprocess import Popen

from tests.support import processes
from tests.support.components import ROOT, require
from tests.support.nats_servers import NatsCluster, NatsServer
from tests.support.netns import Network, Node

CLUSTER = "shoal"
ROUTES_PORT = 6222
TERM_GRACE_S = 30.0
MEMORY = "64GiB"  # each host offers more than all pipelines ask for, so that one host can carry them
CORES = "64"


@dataclass
class Daemon:
    """A process of the product that is started, killed and frozen at will. What it says is kept over its restarts."""

    name: str
    node: Node
    command: Sequence[str | Path]
    log: Path
    env: Mapping[str, str]
    process: Popen[bytes] | None = None
    wanted: bool = False  # it shall run now: if it does not, it has ended by itself

    def start(self) -> None:
        assert not self.running, f"{self.name} runs already"
        self.process = processes.spawn([*self.node.prefix, *self.command], self.log, env=dict(self.env), cwd=ROOT)
        self.wanted = True

    def kill(self) -> None:
        self.wanted = False
        if self.process is not None:
            processes.kill(self.process)

    async def stop(self) -> None:
        """SIGTERM, and wait for its end."""
        self.wanted = False
        if self.process is not None:
            await asyncio.to_thread(processes.terminate, self.process, TERM_GRACE_S)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal that may end it."""
        assert self.process is not None
        self.wanted = False
        processes.send(self.process, number)

    def freeze(self) -> None:
        assert self.process is not None
        processes.send(self.process, signal.SIGSTOP)

    def thaw(self) -> None:
        assert self.process is not None
        processes.send(self.process, signal.SIGCONT)

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None


@dataclass
class Host:
    """A host: its agent, and the executions that go on without it."""

    node: Node
    agent: Daemon
    state_dir: Path
    run_dir: Path

    @property
    def name(self) -> str:
        return self.node.name

    def runners(self) -> list[int]:
        """Process ids of the runners on this machine."""
        return [pid for pid, _ in self._runners()]

    def bentos(self) -> list[int]:
        """Process ids of the Bentos on this machine: they work in the directory of their runner, and do not know it."""
        inside = f"{self.run_dir}/"
        return [
            pid
            for pid, env in environments()
            if "SHOAL_RUNNER_DIR" not in env and working_directory(pid).startswith(inside)
        ]

    def members(self) -> list[int]:
        """Process ids of every runner and Bento of this host."""
        return [pid for pid, env in environments() if env.get("SHOAL_HOST") == self.name]

    def kill(self) -> None:
        """Its agent, all runners, and with them their Bentos."""
        self.agent.kill()
        self.kill_executions()

    def kill_executions(self, pipeline: str = "") -> None:
        """SIGKILL to all runners, or those of one pipeline: their Bentos die with them."""
        for pid, env in self._runners():
            if pipeline in ("", env["SHOAL_PIPELINE"]):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def _runners(self) -> list[tuple[int, Mapping[str, str]]]:
        inside = f"{self.run_dir}/"
        return [(pid, env) for pid, env in environments() if env.get("SHOAL_RUNNER_DIR", "").startswith(inside)]


@dataclass
class Site:
    """All machines. `directory` holds data and logs; `run_dir` lies on tmpfs."""

    network: Network
    directory: Path
    run_dir: Path
    nats: NatsCluster
    server_nodes: Mapping[str, Node]
    schedulers: Mapping[str, Daemon] = field(default_factory=dict)
    hosts: Mapping[str, Host] = field(default_factory=dict)
    stranger: Host | None = None  # a machine whose agent may claim the name of one of the hosts
    claiming: Host | None = None  # the same, while it does, or did last

    @property
    def urls(self) -> list[str]:
        """Where the servers are reached by schedulers, agents and this program."""
        return [f"nats://{self.server_nodes[s.name].address}:{s.port}" for s in self.nats.servers]

    @property
    def pipeline_urls(self) -> list[str]:
        """Where pipelines reach the same servers."""
        return [f"nats://{self.server_nodes[s.name].aliases[0]}:{s.port}" for s in self.nats.servers]

    def server(self, name: str) -> NatsServer:
        return next(server for server in self.nats.servers if server.name == name)

    @property
    def daemons(self) -> list[Daemon]:
        strangers = [self.claiming.agent] if self.claiming is not None else []
        return [*self.schedulers.values(), *(host.agent for host in self.hosts.values()), *strangers]

    def claim(self, name: str) -> Host:
        """Start an agent on the stranger's machine, under the name of a host."""
        stranger = self.stranger
        assert stranger is not None
        command = [*stranger.agent.command, "--host", name]  # what is said last counts
        self.claiming = replace(stranger, agent=replace(stranger.agent, command=command))
        self.claiming.agent.start()
        return self.claiming

    def ended(self) -> list[str]:
        """Daemons that ended by themselves, with their last words."""
        return [
            f"{daemon.name} ended by itself:\n{processes.log_tail(daemon.log)}"
            for daemon in self.daemons
            if daemon.wanted and not daemon.running
        ]

    def left(self) -> list[str]:
        """What there is of executions on any host: processes, their directories, grants and logs."""
        found = [f"process {pid} on {host.name}" for host in self.hosts.values() for pid in host.members()]
        for host in self.hosts.values():
            for directory in (host.run_dir / "executions", host.run_dir / "lease" / "grants", host.state_dir / "logs"):
                found += [str(path) for path in directory.glob("*")]
        return found


@contextlib.contextmanager
def running_site(
    directory: Path, run_dir: Path, *, hosts: int = 4, schedulers: int = 3, servers: int = 3
) -> Iterator[Site]:
    """Servers, schedulers and agents, started; all of them are gone afterwards."""
    with Network() as network:
        site = _build(network, directory, run_dir, hosts, schedulers, servers)
        try:
            site.nats.start()
            for daemon in site.daemons:
                daemon.start()
            yield site
        finally:
            for daemon in site.daemons:
                daemon.kill()
            for host in [*site.hosts.values(), *([site.stranger] if site.stranger else [])]:
                host.kill_executions()
            site.nats.kill()
            shutil.rmtree(run_dir, ignore_errors=True)


def _build(network: Network, directory: Path, run_dir: Path, hosts: int, schedulers: int, size: int) -> Site:
    nodes = {name: network.add(name, aliases=1) for name in (f"n{number + 1}" for number in range(size))}
    routes = tuple(f"{node.address}:{ROUTES_PORT}" for node in nodes.values())
    servers = [
        NatsServer(
            directory / name,
            name=name,
            binary=require("nats-server"),
            cluster="chaos" if size > 1 else "",
            routes=routes,
            cluster_port=ROUTES_PORT,
            address=node.address,
            prefix=node.prefix,
        )
        for name, node in nodes.items()
    ]
    site = Site(network, directory, run_dir, NatsCluster.of(servers), nodes)
    # A plan that the audit refuses ends the scheduler, which is noticed here.
    env = {**os.environ, "SHOAL_STRICT_AUDIT": "1"}
    shoal = [sys.executable, "-m", "cli.main", "--server", ",".join(site.urls), "--cluster", CLUSTER]
    bento = require("bento")

    def scheduler(name: str) -> Daemon:
        node = network.add(name)
        command: list[str | Path] = [*shoal, "scheduler", "--name", name, "--bento", bento]
        return Daemon(name, node, command, directory / f"{name}.log", env)

    def host(name: str) -> Host:
        node, state = network.add(name), directory / "hosts" / name
        run = run_dir / name
        command: list[str | Path] = [
            *shoal,
            *("agent", "--host", name, "--executor", "process", "--bento", bento),
            *("--state-dir", state, "--run-dir", run, "--cpu", CORES, "--memory", MEMORY),
            *("--env", f"NATS_URL={','.join(site.pipeline_urls)}"),
        ]
        return Host(node, Daemon(name, node, command, directory / f"{name}.log", env), state, run)

    site.schedulers = {name: scheduler(name) for name in (f"s{number + 1}" for number in range(schedulers))}
    site.hosts = {name: host(name) for name in (f"h{number + 1}" for number in range(hosts))}
    site.stranger = host("stranger")
    return site


def environments() -> Iterator[tuple[int, Mapping[str, str]]]:
    """(pid, environment) of every runner and Bento that lives in this sandbox."""
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            pairs = [entry.partition(b"=") for entry in path.read_bytes().split(b"\0")]
            state = (path.parent / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue  # it has ended
        env = {name.decode(): value.decode("utf-8", "replace") for name, _, value in pairs}
        if state != "Z" and "SHOAL_EXECUTION" in env:
            yield int(path.parent.name), env


def working_directory(pid: int) -> str:
    """Of a process; "" when it has ended."""
    try:
        return str(Path(f"/proc/{pid}/cwd").readlink())
    except OSError:
        return ""
