"""Real NATS servers with JetStream, one or three, that tests may stop, kill and pause.

Ports are chosen at construction and kept over restarts, so that clients find their server again. Everything is
synchronous: a start takes some tens of milliseconds, and works in tests with and without an event loop.
"""

import http.client
import json
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

from tests.support import processes
from tests.support.components import find

# A server on a busy two-core machine is up in 0.1 s, a cluster elects in 1 to 5 s. The bound only ends a hang.
READY_DEADLINE_S = 30.0
_POLL_S = 0.01


class NatsServer:
    """One nats-server process with JetStream on loopback.

    `config` is appended to the configuration file as it stands (accounts, limits, TLS). `start`, `stop`, `kill`,
    `pause` and `resume` may be called in any order and any number of times; `restart` keeps ports and data.
    """

    def __init__(
        self,
        directory: Path,
        *,
        name: str = "n1",
        binary: Path | None = None,
        config: str = "",
        jetstream: bool = True,
        cluster: str = "",
        routes: tuple[str, ...] = (),
        cluster_port: int = 0,
        address: str = "127.0.0.1",
        prefix: Sequence[str] = (),
        advertise: bool = True,
    ) -> None:
        """`routes`: ADDRESS:PORT of every server of the cluster. `address`: where it is reached, if not on loopback;
        `prefix`: what its command line begins with, to run it in a network namespace. `advertise`: whether it tells
        clients of the others of its cluster."""
        found = binary or find("nats-server")
        if found is None:
            raise FileNotFoundError("nats-server is not available: run `make setup`")
        self.name = name
        self.binary: Path = found
        self.directory = directory
        self.store_dir = directory / "store"
        self.log = directory / "nats-server.log"
        self.host = address
        self.prefix = tuple(prefix)
        self.port = processes.free_port()
        self.monitor_port = processes.free_port()
        self.cluster_port = cluster_port
        self._config = config
        self._jetstream = jetstream
        self.max_file = "4TB"  # takes effect with the next start
        self._cluster = cluster
        self._routes = routes
        self._advertise = advertise and address == "127.0.0.1"
        self._process: subprocess.Popen[bytes] | None = None

    # -- what it is ---------------------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        return f"nats://{self.host}:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None, f"nats-server {self.name} was not started"
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def version(self) -> str:
        """As the running server reports it, for example `2.15.1`."""
        return str(self.monitor("/varz")["version"])

    def monitor(self, path: str, timeout_s: float = 5.0) -> dict[str, Any]:
        """A document of the monitoring endpoint (`/varz`, `/jsz?streams=true`, `/connz`)."""
        status, body = self._get(path, timeout_s)
        if status != 200:
            raise RuntimeError(f"nats-server {self.name} answered {status} to {path}: {body[:200]!r}")
        document: dict[str, Any] = json.loads(body)
        return document

    # -- what one can do to it ----------------------------------------------------------------------------------------

    def start(self, *, wait: bool = True) -> Self:
        """Start it (again). With `wait`, returns when JetStream is healthy; in a cluster that needs a quorum."""
        if not self.running:
            self.launch()
        if wait:
            self.wait_ready()
        return self

    def launch(self) -> None:
        """Start the process without waiting."""
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / "nats-server.conf"
        path.write_text(self._configuration())
        self._process = processes.spawn([*self.prefix, self.binary, "-c", path], self.log)

    def wait_ready(self, deadline_s: float = READY_DEADLINE_S) -> None:
        deadline = time.monotonic() + deadline_s
        while True:
            if not self.running:
                raise RuntimeError(f"nats-server {self.name} ended at start:\n{processes.log_tail(self.log)}")
            try:
                status, body = self._get("/healthz", 1.0)
                if status == 200 and json.loads(body).get("status") == "ok":
                    return
                answer = f"{status} {body[:200]!r}"
            except (OSError, http.client.HTTPException, ValueError) as error:
                answer = str(error)
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"nats-server {self.name} not ready in {deadline_s} s ({answer}):\n{processes.log_tail(self.log)}"
                )
            time.sleep(_POLL_S)

    def stop(self) -> None:
        """End it in order (SIGTERM; resumed first if paused)."""
        if self._process is not None:
            processes.terminate(self._process)

    def kill(self) -> None:
        """A crash: SIGKILL."""
        if self._process is not None:
            processes.kill(self._process)

    def restart(self, *, crash: bool = False, wait: bool = True) -> None:
        """Stop (or kill) and start with the same ports and data."""
        if crash:
            self.kill()
        else:
            self.stop()
        self.start(wait=wait)

    def pause(self) -> None:
        """SIGSTOP: connections stay open and nothing answers."""
        assert self._process is not None
        processes.send(self._process, signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        processes.send(self._process, signal.SIGCONT)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    # -- inside -------------------------------------------------------------------------------------------------------

    def _get(self, path: str, timeout_s: float) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self.host, self.monitor_port, timeout=timeout_s)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def _configuration(self) -> str:
        everywhere = self.host != "127.0.0.1"
        lines = [
            f"server_name: {self.name}",
            f"listen: {'0.0.0.0' if everywhere else self.host}:{self.port}",
            f"http: {self.host}:{self.monitor_port}",
        ]
        if self._jetstream:
            # Stated, because the defaults follow the free disk and memory of the machine.
            # Streams reserve what they may grow to, 1 GiB of history a cluster: the tests that share a server would
            # fill any honest figure.
            lines.append(f'jetstream {{ store_dir: "{self.store_dir}", max_mem: 1GB, max_file: {self.max_file} }}')
        if self._cluster:
            routes = ", ".join(f'"nats-route://{route}"' for route in self._routes)
            # One that listens on several addresses must not tell clients of those that they did not choose.
            silent = "" if self._advertise else ", no_advertise: true"
            listen = f"{self.host}:{self.cluster_port}"
            lines.append(f"cluster {{ name: {self._cluster}, listen: {listen}, routes: [{routes}]{silent} }}")
        return "\n".join([*lines, self._config, ""])


class NatsCluster:
    """Three servers that elect a leader per stream, so that streams may have three replicas."""

    def __init__(
        self,
        directory: Path,
        *,
        size: int = 3,
        binary: Path | None = None,
        config: str = "",
        name: str = "test",
        advertise: bool = True,
    ) -> None:
        ports = tuple(processes.free_port() for _ in range(size))
        self.servers = [
            NatsServer(
                directory / f"n{index + 1}",
                name=f"n{index + 1}",
                binary=binary,
                config=config,
                cluster=name,
                routes=tuple(f"127.0.0.1:{port}" for port in ports),
                cluster_port=port,
                advertise=advertise,
            )
            for index, port in enumerate(ports)
        ]

    @classmethod
    def of(cls, servers: Sequence[NatsServer]) -> Self:
        """A cluster of servers that know of each other already."""
        cluster = cls.__new__(cls)
        cluster.servers = list(servers)
        return cluster

    @property
    def urls(self) -> list[str]:
        return [server.url for server in self.servers]

    @property
    def url(self) -> str:
        """All servers, comma-separated, as `--server` takes it."""
        return ",".join(self.urls)

    @property
    def version(self) -> str:
        return next(server for server in self.servers if server.running).version

    def __getitem__(self, index: int) -> NatsServer:
        return self.servers[index]

    def start(self) -> Self:
        """Start every server that is down; returns when all are healthy and a meta leader is known."""
        for server in self.servers:
            if not server.running:
                server.launch()
        self.wait_ready()
        return self

    def wait_ready(self, deadline_s: float = READY_DEADLINE_S) -> None:
        for server in self.servers:
            if server.running:
                server.wait_ready(deadline_s)
        deadline = time.monotonic() + deadline_s
        while len(self.servers) > 1 and self.meta_leader() is None:
            if time.monotonic() > deadline:
                raise TimeoutError(f"no meta leader in {deadline_s} s:\n{processes.log_tail(self.servers[0].log)}")
            time.sleep(_POLL_S)

    def meta_leader(self) -> NatsServer | None:
        """The server that leads the JetStream metadata, as the running servers agree, or None."""
        return self._agreed(lambda server: server.monitor("/jsz").get("meta_cluster", {}).get("leader"))

    def stream_leader(self, stream: str) -> NatsServer | None:
        """The server that leads a stream, as the running servers agree, or None while there is none."""

        def leader(server: NatsServer) -> str | None:
            for account in server.monitor("/jsz?accounts=true&streams=true").get("account_details", []):
                for detail in account.get("stream_detail") or []:
                    if detail["name"] == stream:
                        found: str | None = detail.get("cluster", {}).get("leader")
                        return found
            return None

        return self._agreed(leader)

    def stop(self) -> None:
        for server in self.servers:
            server.stop()

    def kill(self) -> None:
        """A power cut: every server at once."""
        for server in self.servers:
            server.kill()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        # Killed: an orderly shutdown hands leadership over, one server after the other, which no test waits for.
        self.kill()

    def _agreed(self, ask: Callable[[NatsServer], str | None]) -> NatsServer | None:
        answers: set[str] = set()
        for server in self.servers:
            if not server.running:
                continue
            try:
                answer = ask(server)
            except (OSError, http.client.HTTPException, ValueError, RuntimeError):
                continue
            if answer:
                answers.add(answer)
        if len(answers) != 1:
            return None
        name = answers.pop()
        return next((server for server in self.servers if server.name == name and server.running), None)
