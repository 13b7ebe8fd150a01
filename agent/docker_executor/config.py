"""From a `Spec` to what the engine is asked for, and back from labels to facts. Pure: no engine, no files.

A container sees, besides its image (read-only) and a small /tmp:

    /shoal/run       its own directory, the only one that it may write     <run_dir>/executions/<name>
    /shoal/lease     lease file and grants                                 <run_dir>/lease
    /shoal/bundle    the directory with its bundle                         <state_dir>/bundles/<digest>
    volumes          of the record, as far as the agent allows them

The directories are mounted, never the files in them: a file that is replaced would stay the old one inside.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.executor import Found, Life, Spec
from agent.layout import BUNDLE_FILE, Inside, Layout

CLUSTER = "shoal.cluster"
STORE = "shoal.store"
HOST = "shoal.host"
PIPELINE = "shoal.pipeline"
SLOT = "shoal.slot"
VERSION = "shoal.version"
EXECUTION = "shoal.execution"
DIGEST = "shoal.digest"

RUN_INSIDE = "/shoal/run"
LEASE_INSIDE = "/shoal/lease"
BUNDLE_INSIDE = "/shoal/bundle"
INSIDE = Inside(
    directory=RUN_INSIDE,
    lease_dir=LEASE_INSIDE,
    bundle=f"{BUNDLE_INSIDE}/{BUNDLE_FILE}",
    bento="/usr/local/bin/bento",  # said in full: a record's env may have another PATH
)

PIDS_MAX = 512  # Bento has some tens of threads; more is a fork bomb
TMP_BYTES = 64 * 1024 * 1024
LOG_FILE_BYTES = "10m"
LOG_FILES = "3"
NANO = 1_000_000_000

# Docker's states. A paused container is frozen but not over: it counts as alive, and is nobody's to start again.
_LIVES = {
    "created": Life.CREATED,
    "running": Life.ALIVE,
    "paused": Life.ALIVE,
    "restarting": Life.ALIVE,
    "removing": Life.EXITED,
    "exited": Life.EXITED,
    "dead": Life.EXITED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DockerSettings:
    """How containers are made on one engine."""

    url: str  # of the engine, such as unix:///var/run/docker.sock; it must run on this machine (mounts, boot clock)
    image: str  # for records that name none
    network: str = "host"  # a bridge costs 90 ms a start and hides Bento's ports
    user: str = "10001:10001"  # of the processes inside; run directories are given to it
    volumes: tuple[Path, ...] = ()  # host paths below which records may mount (`--allow-volume`)

    @property
    def owner(self) -> tuple[int, int]:
        """Numeric user and group."""
        user, _, group = self.user.partition(":")
        return int(user), int(group or user)

    def __post_init__(self) -> None:
        assert self.owner[0] > 0, "containers never run as root"


@dataclass(frozen=True, slots=True)
class Mount:
    """One directory or file of the host inside a container."""

    source: str
    target: str
    writable: bool


def labels(spec: Spec, layout: Layout) -> dict[str, str]:
    """The memory of an execution: what `found` needs after the agent has forgotten everything."""
    return {
        CLUSTER: layout.cluster,
        STORE: spec.store_id,
        HOST: layout.host,
        PIPELINE: spec.pipeline,
        SLOT: str(spec.slot),
        VERSION: spec.version,
        EXECUTION: spec.execution,
        DIGEST: spec.digest,
    }


def selection(layout: Layout) -> tuple[str, ...]:
    """Label filter for everything of this agent, in any store: several agents may share one engine."""
    return (f"{CLUSTER}={layout.cluster}", f"{HOST}={layout.host}")


def belongs(found: Mapping[str, str], layout: Layout, accepted: frozenset[str]) -> bool:
    """Whether a container with these labels is ours. A broken set of labels is nobody's."""
    return found.get(STORE) in accepted and is_execution(found, layout)


def is_execution(found: Mapping[str, str], layout: Layout) -> bool:
    """Whether a container with these labels is an execution of this cluster and host, in any store."""
    return (
        found.get(CLUSTER) == layout.cluster
        and found.get(HOST) == layout.host
        and found.get(SLOT, "").isdecimal()
        and all(name in found for name in (STORE, EXECUTION, PIPELINE, VERSION, DIGEST))
    )


def found(
    labels: Mapping[str, str], *, runtime: str, state: str, ended: tuple[int, bool] | None, health: Mapping[str, Any]
) -> Found:
    """The execution that a container of ours is. `ended`: exit code and whether memory ran out, of one that exited."""
    started = health.get("started_boot_s")
    return Found(
        execution=labels[EXECUTION],
        store_id=labels[STORE],
        pipeline=labels[PIPELINE],
        slot=int(labels[SLOT]),
        version=labels[VERSION],
        digest=labels[DIGEST],
        life=_LIVES.get(state, Life.EXITED),
        runtime=runtime,
        started_s=started if isinstance(started, float) and started > 0 else None,
        exit_code=ended[0] if ended else None,
        oom=ended[1] if ended else False,
        health=health,
    )


def life(state: str) -> Life:
    """Of a container in this state."""
    return _LIVES.get(state, Life.EXITED)


def refused_lease(health: Mapping[str, Any]) -> bool:
    """Whether a runner ended because it found no lease or grant that is meant for it."""
    failure = health.get("failure")
    return isinstance(failure, Mapping) and failure.get("kind") == "lease"


def container(
    spec: Spec, layout: Layout, settings: DockerSettings, *, env: Mapping[str, str], volumes: Sequence[Mount]
) -> dict[str, Any]:
    """The body of the engine's create call."""
    return {
        "Image": spec.image or settings.image,
        "User": settings.user,
        "Env": [f"{name}={value}" for name, value in sorted(env.items())],
        "Labels": labels(spec, layout),
        # The image's own health check would cost a process every few seconds and tell less than the health file.
        "Healthcheck": {"Test": ["NONE"]},
        "StopSignal": "SIGTERM",
        "StopTimeout": math.ceil(spec.stop_grace_s),
        "HostConfig": _host_config(spec, layout, settings, volumes),
    }


def _host_config(spec: Spec, layout: Layout, settings: DockerSettings, volumes: Sequence[Mount]) -> dict[str, Any]:
    mounts = (
        Mount(str(layout.execution_dir(layout.name(spec.store_id, spec.execution))), RUN_INSIDE, writable=True),
        Mount(str(layout.lease_dir), LEASE_INSIDE, writable=False),
        Mount(str(Path(spec.bundle).parent), BUNDLE_INSIDE, writable=False),
        *volumes,
    )
    limits: dict[str, Any] = {"PidsLimit": PIDS_MAX}
    if spec.memory_bytes:
        # Without swap on top: a pipeline that is over its limit should end, not crawl.
        limits |= {"Memory": spec.memory_bytes, "MemorySwap": spec.memory_bytes}
    if spec.cpu:
        limits |= {"NanoCpus": round(spec.cpu * NANO)}
    return {
        **limits,
        "NetworkMode": settings.network,
        # Shoal alone decides what starts; after a reboot the engine would start what runs elsewhere by now.
        "RestartPolicy": {"Name": "no"},
        "Init": False,  # the runner is process 1: it reaps, and forwards signals
        "Privileged": False,
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges"],
        "ReadonlyRootfs": True,
        "Tmpfs": {"/tmp": f"rw,nosuid,nodev,mode=1777,size={TMP_BYTES}"},
        "LogConfig": {"Type": "json-file", "Config": {"max-size": LOG_FILE_BYTES, "max-file": LOG_FILES}},
        "Mounts": [
            {"Type": "bind", "Source": mount.source, "Target": mount.target, "ReadOnly": not mount.writable}
            for mount in mounts
        ],
    }
