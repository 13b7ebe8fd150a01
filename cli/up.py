"""`shoal up`: a whole cluster on one machine, in the foreground."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from cli.cluster import Cluster, run
from cli.leader import leadership
from cli.local import LocalCluster
from cli.options import Options
from cli.output import note
from shared.documents import Heartbeat
from shared.errors import Refused, ShoalError

_READY_S = 60.0


def register(app: typer.Typer) -> None:
    """Add the command to the tree."""
    app.command()(up)


def up(
    context: typer.Context,
    hosts: Annotated[int, typer.Option(min=1, max=50, help="How many hosts (agents).")] = 3,
    schedulers: Annotated[int, typer.Option(min=1, max=9, help="How many schedulers; one leads.")] = 2,
    executor: Annotated[str, typer.Option(help="process (nothing to install) or docker.")] = "process",
    data: Annotated[Path, typer.Option(help="Where everything is kept; a second `up` continues there.")] = Path(
        ".shoal"
    ),
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the embedded NATS server.")] = 4222,
) -> None:
    """Run a whole cluster on this machine, until Ctrl-C.

    It has a NATS server of its own. Everything stops with it, executions included; what was published is kept and runs
    again at the next `up`.
    """
    if executor not in ("process", "docker"):
        raise typer.BadParameter(f"'{executor}' is no executor; use process or docker")
    options: Options = context.obj
    local = LocalCluster(data, port, options.cluster, executor, say=note)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        start(local, hosts, schedulers, stop)
        if not stop.is_set():
            note(_how_to_connect(local))
        _supervise(local, stop)
    finally:
        if local.children:
            note("stopping everything")
            local.stop()
            note(f"stopped; `shoal up --data {data}` continues with what was published")


def start(local: LocalCluster, hosts: int, schedulers: int, stop: threading.Event) -> None:
    """Start everything and wait until a scheduler leads and every host can run something."""
    local.start_store()
    local.say(f"NATS listens on {local.url}")
    for number in range(1, schedulers + 1):
        local.start_scheduler(f"scheduler-{number}")
    for number in range(1, hosts + 1):
        local.start_agent(f"host-{number}", {"zone": "abc"[(number - 1) % 3]})
    await_ready(local, hosts, stop)


def await_ready(local: LocalCluster, hosts: int, stop: threading.Event) -> None:
    """Wait until somebody leads and `hosts` hosts heartbeat with an executor that works.

    Refused with what the processes, or the executors, said otherwise.
    """
    deadline = time.monotonic() + _READY_S
    problem = ""
    while not stop.is_set():
        ended = local.ended()
        if ended:
            raise Refused(f"{ended[0]} ended at once:\n{local.last_lines(ended[0])}")
        try:
            leader, beats = run(Options(server=local.url, cluster=local.cluster), _ready)
        except ShoalError as error:
            problem = str(error)
        else:
            broken = [
                f"{name}: {kind}: {driver.reason}"
                for name, beat in sorted(beats.items())
                if name in local.children
                for kind, driver in beat.drivers.items()
                if not driver.ok
            ]
            if leader and len(beats) >= hosts and not broken:
                local.say(f"{leader} leads; {len(beats)} hosts have registered")
                return
            problem = "; ".join([f"{len(beats)} of {hosts} hosts have registered", *broken])
        if time.monotonic() > deadline:
            raise Refused(f"the cluster is not ready after {_READY_S:g} s ({problem}); see {local.data / 'logs'}")
        stop.wait(0.1)


async def _ready(cluster: Cluster) -> tuple[str, Mapping[str, Heartbeat]]:
    beats = await cluster.documents(cluster.keys.hosts, Heartbeat)
    row = await leadership(cluster)
    return (row["name"] if row["alive"] else ""), beats


def _supervise(local: LocalCluster, stop: threading.Event) -> None:
    """Say what ends by itself; the rest of the cluster is there to cope with it."""
    while not stop.wait(0.5):
        for name in local.ended():
            code = local.children.pop(name).returncode
            note(f"{name} ended with code {code}:\n{local.last_lines(name)}")
            if name == "nats":
                raise Refused("the NATS server is gone, and with it the store")


def _how_to_connect(local: LocalCluster) -> str:
    cluster = f"    export SHOAL_CLUSTER={local.cluster}\n" if local.cluster != "shoal" else ""
    return (
        f"\nThe cluster is ready. In another terminal:\n"
        f"    export NATS_URL={local.url}\n{cluster}"
        f"    shoal hosts\n"
        f"    shoal apply -f examples/hello.yaml --wait\n"
        f"    shoal logs hello -f\n"
        f"    nats kv get {local.cluster}_control status.hello\n"
        f"What the cluster itself says: {local.data / 'logs'}. Ctrl-C stops everything.\n"
    )
