"""All that can be chosen for an agent, as one value that refuses what cannot work together."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from shared import __version__
from shared.connection import ConnectionSettings
from shared.errors import BadInput, problem
from shared.ids import check_id
from shared.telemetry import LogForm, parse_address

LEASE_SINGLE_S = 8.0
LEASE_REPLICATED_S = 12.0  # losing the leader of a replicated stream stops writes for 4 to 10 s
LEASE_MIN_S = 4.0  # three heartbeats and a change of server
LEASE_MAX_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSettings:
    """Settings of one agent. Raises BadInput where they contradict each other."""

    host: str  # the host's name in the cluster; one agent has it at a time
    state_dir: Path  # survives reboots: identity, admitted assignment, bundles, logs of the process driver
    driver: Literal["docker", "process"] = "docker"
    cluster: str = "shoal"
    connection: ConnectionSettings = field(default_factory=ConnectionSettings)
    labels: Mapping[str, str] = field(default_factory=dict)  # for placement; `host` is added
    run_dir: Path | None = None  # tmpfs, lost with a reboot: leases and executions; None: see `run_directory`
    env: Mapping[str, str] = field(default_factory=dict)  # added to every execution; records win
    allow_volume: tuple[Path, ...] = ()  # host paths below which records may mount
    lease_s: float | None = None  # how long the host may act on its last heartbeat; None: by the store's replication
    cpu: float | None = None  # cores offered; None: those of the machine
    memory_bytes: int | None = None  # offered; None: that of the machine
    stop_on_exit: bool = False  # remove all executions when told to end; for clusters that live on one machine
    docker_host: str = "unix:///var/run/docker.sock"  # the engine; it must run on this machine
    docker_network: str = "host"  # a bridge costs 90 ms a start
    image: str = f"shoal-runner:{__version__}"  # docker driver: for records that name none
    bento: Path | None = None  # process driver: the Bento binary; None: beside this Python, else on PATH
    metrics: str = ""  # address of /metrics and /healthz, such as 127.0.0.1:7602; "" = none
    log_form: LogForm = "auto"
    log_level: str = "info"

    def __post_init__(self) -> None:
        check_id(self.host, "host")
        check_id(self.cluster, "cluster")
        if self.labels.get("host", self.host) != self.host:
            remedy = f"this label is always the host's name, {self.host}"
            raise BadInput(problem("label host", self.labels["host"], remedy))
        if self.lease_s is not None and not LEASE_MIN_S <= self.lease_s <= LEASE_MAX_S:
            remedy = f"use {LEASE_MIN_S:g} to {LEASE_MAX_S:g} seconds: heartbeats are a second apart and may be lost"
            raise BadInput(problem("lease", self.lease_s, remedy))
        if self.cpu is not None and self.cpu <= 0:
            raise BadInput(problem("cpu", self.cpu, "offer more than no cores"))
        if self.memory_bytes is not None and self.memory_bytes <= 0:
            raise BadInput(problem("memory", self.memory_bytes, "offer more than no memory"))
        for path in self.allow_volume:
            if not path.is_absolute():
                raise BadInput(problem("allow-volume", str(path), "use an absolute path"))
        state, run = self.state_directory, self.run_directory
        if state.is_relative_to(run) or run.is_relative_to(state):
            remedy = f"use a place on tmpfs, apart from the state directory, {state}"
            raise BadInput(problem("run-dir", str(run), remedy))
        if self.metrics:
            parse_address(self.metrics)

    @property
    def state_directory(self) -> Path:
        return self.state_dir.absolute()

    @property
    def run_directory(self) -> Path:
        """Where leases and executions lie: below root's /run, else below the user's own."""
        if self.run_dir is not None:
            return self.run_dir.absolute()
        name = "shoal" if self.cluster == "shoal" else f"shoal-{self.cluster}"
        if os.geteuid() == 0:
            return Path("/run") / name / self.host
        base = os.environ.get("XDG_RUNTIME_DIR", "")
        if not base:
            raise BadInput(problem("run-dir", "", "name a directory on tmpfs: XDG_RUNTIME_DIR is not set"))
        return Path(base) / name / self.host
