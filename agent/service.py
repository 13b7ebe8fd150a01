"""The agent as a daemon: one agent made of real parts, and signals.

    SIGTERM, SIGINT   the agent ends and leaves its executions running; with `stop_on_exit` it removes them first

What an agent cannot do without is checked before it begins: its directories, that it is not in a time namespace, a
driver that exists. NATS and the container engine are not among it: without them it waits, says so, and goes on.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import signal
import sys
from collections.abc import Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, assert_never

import structlog
import uvloop

from agent.bundles import Bundles
from agent.executor import Executor
from agent.grants import GrantDirectory
from agent.heartbeat import HostFacts
from agent.host import Host
from agent.late_store import LateStore
from agent.layout import Layout, Surroundings, boot_id
from agent.lease import LeaseDirectory
from agent.loop import Agent
from agent.metrics import AgentMetrics
from agent.settings import LEASE_REPLICATED_S, LEASE_SINGLE_S, AgentSettings
from agent.state import StateDirectory, Threads, locked
from shared import __version__
from shared.clock import SystemClock
from shared.errors import BadInput, Refused, StoreError, problem
from shared.keys import Keys
from shared.nats_store import NatsStore, connect
from shared.nats_streams import describe_streams
from shared.telemetry import Health, TelemetryServer, set_up_logging

__all__ = ["AgentSettings", "main"]

ASK_REPLICATION_S = 3.0  # how long a start waits for the store to say whether it is replicated
DISK_THREADS = 4
REMOVE_ALL_S = 600.0  # on exit: longer than the stop grace of what most people run

log = structlog.get_logger()


def main(settings: AgentSettings) -> int:
    """Run an agent until it is told to end. 0 = ended as told, 1 = it refuses to start, with the reason logged."""
    set_up_logging(settings.log_form, settings.log_level)
    try:
        refuse_time_namespace(Path("/proc/self/timens_offsets"))
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(settings))
    except (BadInput, Refused, OSError) as error:
        log.error("The agent does not start.", host=settings.host, problem=str(error))
        return 1
    return 0


def refuse_time_namespace(offsets: Path) -> None:
    """Refused where the boot clock is not that of the machine: leases are instants on it, and runners read them."""
    try:
        lines = offsets.read_text().split("\n")
    except FileNotFoundError:
        return  # a kernel without time namespaces
    if any(value != "0" for line in lines for value in line.split()[1:]):
        raise Refused("this process is in a time namespace with its own boot clock; run the agent outside of it")


async def _serve(settings: AgentSettings) -> None:
    told = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told.set)
    layout = Layout(
        cluster=settings.cluster,
        host=settings.host,
        run_dir=settings.run_directory,
        state_dir=settings.state_directory,
    )
    with ExitStack() as stack:
        stack.enter_context(locked(layout.run_dir, "run directory"))
        state = stack.enter_context(StateDirectory(layout.state_dir, lambda: secrets.token_hex(16)))
        executor = _executor(settings, layout)
        threads = stack.enter_context(Threads(DISK_THREADS, "disk"))
        metrics = AgentMetrics(SystemClock().monotonic)
        view = stack.enter_context(_telemetry(settings, metrics))
        stores = _Stores(settings)
        try:
            await _until(told, _live(settings, layout, state, executor, threads, metrics, stores, view))
        finally:
            await executor.close()
            await stores.close()
    log.info("The agent has ended.", host=settings.host)


class _Stores:
    """The two connections of an agent: heartbeats have one of their own."""

    def __init__(self, settings: AgentSettings) -> None:
        self._settings = settings
        self.main = LateStore(lambda: self._dial(""))
        self.heart = LateStore(lambda: self._dial("-heartbeat"))
        self._said = ""

    async def connect(self) -> None:
        """Connect both; waits for as long as it takes."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.main.connect(), name="connect")
            group.create_task(self.heart.connect(), name="connect for heartbeats")

    async def close(self) -> None:
        await self.main.close()
        await self.heart.close()

    async def _dial(self, suffix: str) -> NatsStore:
        name = f"shoal-agent-{self._settings.host}{suffix}"
        return await connect(self._settings.connection, name=name, wait=True, waiting=self._say)

    def _say(self, error: StoreError) -> None:
        if str(error) != self._said:
            self._said = str(error)
            log.warning("NATS cannot be reached; what was assigned before goes on.", problem=str(error))


async def _live(
    settings: AgentSettings,
    layout: Layout,
    state: StateDirectory,
    executor: Executor,
    threads: Threads,
    metrics: AgentMetrics,
    stores: _Stores,
    view: _View,
) -> None:
    """Live until cancelled."""
    keys, clock = Keys(settings.cluster), SystemClock()
    lease = LeaseDirectory(layout.lease_dir)
    async with asyncio.TaskGroup() as group:
        group.create_task(stores.connect(), name="connections")
        host = Host(
            name=settings.host,
            boot=boot_id(),
            lease_s=settings.lease_s or await _lease_s(stores.main, keys, lease),
            facts=_facts(settings),
            keys=keys,
            store=stores.main,
            heart_store=stores.heart,
            executor=executor,
            bundles=Bundles(store=stores.main, bucket=keys.bundles, directory=layout.bundles_dir, offload=threads),
            durable=state,
            lease=lease,
            grants=GrantDirectory(layout.lease_dir),
            clock=clock,
            offload=threads,
        )
        agent = view.agent = Agent(host, metrics)
        log.info("The agent begins.", host=settings.host, session=str(agent.heart.session), lease_s=host.lease_s)
        try:
            await agent.run()
        except asyncio.CancelledError:
            if settings.stop_on_exit:
                async with asyncio.timeout(REMOVE_ALL_S):
                    await agent.remove_all()
            raise


async def _until(told: asyncio.Event, living: Coroutine[Any, Any, None]) -> None:
    """Run `living` until told to end, or until it fails."""
    task = asyncio.create_task(living, name="agent")
    waiting = asyncio.create_task(told.wait(), name="signals")
    try:
        await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
        task.cancel()
        await asyncio.wait({task, waiting})
    if not task.cancelled():
        task.result()


async def _lease_s(late: LateStore[NatsStore], keys: Keys, lease: LeaseDirectory) -> float:
    """By the replication of the hosts bucket. If nobody says in time: as before, else the longer one, which is safe."""
    try:
        async with asyncio.timeout(ASK_REPLICATION_S):
            store = await late.ready()
            reports = await describe_streams(store, keys)
    except (TimeoutError, StoreError) as error:
        before = lease.read()
        chosen = before.lease_s if before is not None else LEASE_REPLICATED_S
        log.info("The store did not say whether it is replicated.", lease_s=chosen, problem=str(error))
        return chosen
    replicas = max((one.replicas for one in reports if one.stream == f"KV_{keys.hosts}"), default=0)
    if replicas == 0:  # not made yet: a scheduler replicates what it makes on a cluster
        replicas = 3 if store.link.info.get("cluster") else 1
    return LEASE_SINGLE_S if replicas == 1 else LEASE_REPLICATED_S


def _executor(settings: AgentSettings, layout: Layout) -> Executor:
    """The driver's executor. Only the chosen driver is imported: the Docker SDK alone takes 15 MB."""
    surroundings = Surroundings(
        nats_url=settings.env.get("NATS_URL", ",".join(settings.connection.servers)),
        env=settings.env,
        fetch=_fetch(settings),
    )
    match settings.driver:
        case "docker":
            from agent.docker_executor import DockerExecutor, DockerSettings

            return DockerExecutor(
                layout,
                DockerSettings(
                    url=settings.docker_host,
                    image=settings.image,
                    network=settings.docker_network,
                    volumes=settings.allow_volume,
                ),
                surroundings,
            )
        case "process":
            import runner
            from agent.process_executor import ProcessExecutor
            from agent.process_starter import ProcessSettings

            assert runner.__file__ is not None, "the runner is a package with files"
            directory = Path(runner.__file__).parent
            process = ProcessSettings(runner=directory, bento=_bento(settings), volumes=settings.allow_volume)
            return ProcessExecutor(layout, process, surroundings)
        case _:
            assert_never(settings.driver)


def _bento(settings: AgentSettings) -> Path:
    """The Bento binary. BadInput where it is not said and not found; one that vanishes later shows in the heartbeat."""
    if settings.bento is not None:
        return settings.bento.absolute()
    beside = Path(sys.executable).parent / "bento"
    found = str(beside) if beside.exists() else shutil.which("bento")
    if found is None:
        raise BadInput(problem("bento", "", "install Bento beside Python or on PATH, or say where it is"))
    return Path(found)


def _fetch(settings: AgentSettings) -> str:
    """How a runner gets a bundle that is not on this host: the agent's own way to NATS."""
    found = settings.connection
    named = {
        "user": found.user,
        "password": found.password,
        "token": found.token,
        "creds": found.creds,
        "nkey": found.nkey,
        "tlscert": found.tlscert,
        "tlskey": found.tlskey,
        "tlsca": found.tlsca,
    }
    given = {name: value for name, value in named.items() if value}
    return json.dumps({"servers": list(found.servers), "bucket": Keys(settings.cluster).bundles, **given})


def _facts(settings: AgentSettings) -> HostFacts:
    return HostFacts(
        cpu=settings.cpu or float(len(os.sched_getaffinity(0))),
        memory_bytes=settings.memory_bytes or _memory_bytes(Path("/proc/meminfo")),
        labels={**settings.labels, "host": settings.host},
        volumes=tuple(str(path) for path in settings.allow_volume),
        software=__version__,
    )


def _memory_bytes(meminfo: Path) -> int:
    for line in meminfo.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "MemTotal":
            return int(value.split()[0]) * 1024
    raise Refused(f"{meminfo} does not say how much memory there is; say it with --memory")


class _View:
    """What /metrics and /healthz show; asked from other threads, also before there is an agent."""

    def __init__(self) -> None:
        self.agent: Agent | None = None
        self._begun_s = SystemClock().monotonic()

    def heartbeat_age_s(self) -> float:
        acknowledged_s = self.agent.heart.acknowledged_s if self.agent else None
        return SystemClock().monotonic() - (self._begun_s if acknowledged_s is None else acknowledged_s)

    def health(self) -> Health:
        if self.agent is None:
            return Health(False, {"waiting": "the agent begins", "version": __version__})
        ok = self.agent.heart.valid and not self.agent.lookout.problem
        age_s = round(self.heartbeat_age_s(), 3)
        return Health(ok, {**self.agent.facts(), "heartbeat_age_s": age_s, "version": __version__})


@contextmanager
def _telemetry(settings: AgentSettings, metrics: AgentMetrics) -> Iterator[_View]:
    """Serve /metrics and /healthz, if an address is set."""
    view = _View()
    metrics.heartbeat_age.set_function(view.heartbeat_age_s)
    if not settings.metrics:
        yield view
        return
    with TelemetryServer(settings.metrics, metrics.registry, view.health) as server:
        log.info("Metrics and health are served.", port=server.port)
        yield view
