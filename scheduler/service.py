"""The scheduler as a process: settings, connections, threads, signals.

    main thread       Loop: watches, plan (in a worker thread), commits        one connection
    thread "watch"    Watchkeeper: election and pulses                         two connections
    thread telemetry  /metrics, /healthz

A leader that computes for a second must not be deposed for it, hence the second thread. Whatever fails in any of them
ends the process with its context; supervision starts it again, and another instance has taken over meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import structlog
import uvloop
from prometheus_client import CollectorRegistry

from scheduler.confined import landlock_version
from scheduler.core.view import Policy
from scheduler.elector import Role
from scheduler.lint import BentoLinter, Linter, NoLint, find_bento, warn_if_unconfined
from scheduler.loop import Loop
from scheduler.metrics import SchedulerMetrics
from scheduler.ports import Ports, T
from scheduler.watchkeeper import LoopSide, Watchkeeper
from shared.clock import Clock, SystemClock
from shared.connection import ConnectionSettings
from shared.errors import BadInput, Refused, StoreError, StoreUnavailable, Unfit, problem
from shared.keys import Keys
from shared.nats_store import NatsStore, connect
from shared.nats_streams import StreamReport, ensure_streams, remake_streams
from shared.telemetry import Health, LogForm, TelemetryServer, parse_address, set_up_logging

SILENT_EXCLUSIVE_S = 12.0  # of a host whose heartbeats go to a stream with one replica
SILENT_EXCLUSIVE_REPLICATED_S = 16.5
TEND_S = 2.0  # between two looks whether the hosts' stream is still there; a host's lease lasts 8 s
WAITING_SAID_S = 10.0  # between two lines that say so
LEAVE_TIMEOUT_S = 2.0  # to clear the lease
END_TIMEOUT_S = 1.0  # to close the connections of the second thread

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerSettings:
    """What a person can choose. Everything else is a named constant."""

    connection: ConnectionSettings = field(default_factory=ConnectionSettings)
    cluster: str = "shoal"  # prefix of all streams and subjects; several clusters may share a NATS
    name: str = ""  # of this instance, for people; "" = host name and process id
    replicas: int | None = None  # of streams that are created; None = 1 on a single server, else 3
    bento: str = ""  # path of the Bento that lints; "" = beside this Python, else on PATH
    lint: bool = True  # False: admit what merely looks like a configuration (--no-lint)
    metrics: str = ""  # host:port of /metrics and /healthz; "" = none
    log_form: LogForm = "auto"
    log_level: str = "info"
    strict_audit: bool = False  # an audit violation ends the process; for tests

    def __post_init__(self) -> None:
        Keys(self.cluster)
        if self.replicas is not None and self.replicas not in (1, 3, 5):
            raise BadInput(problem("replicas", self.replicas, "use 1, 3 or 5"))
        if self.metrics:
            parse_address(self.metrics)


def main(settings: SchedulerSettings) -> int:
    """Run a scheduler until SIGTERM or SIGINT; the exit code. Says in one sentence why it cannot run."""
    set_up_logging(settings.log_form, settings.log_level)
    # A view of 100,000 executions is millions of objects that live long and form no circles. With default thresholds
    # the collector looks at them again and again while a plan is made: half of the planning time (measured).
    gc.set_threshold(100_000, 20, 100)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run(settings))
    except (Unfit, Refused, BadInput) as error:
        log.error("The scheduler cannot run.", why=str(error))
        return 1
    return 0


async def run(settings: SchedulerSettings) -> None:
    """As `main`, in a running event loop. Returns when a signal asked for it; Unfit, Refused, BadInput (also
    for an address of /metrics that is taken) when it cannot run."""
    linter: Linter = BentoLinter(find_bento(settings.bento)) if settings.lint else NoLint()
    if settings.lint:
        warn_if_unconfined(landlock_version())
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if not settings.lint:
        log.warning("Configurations are admitted without a look by Bento; what it refuses fails when it starts.")
    service = _Service(settings, linter)
    with contextlib.ExitStack() as stack:
        if settings.metrics:
            stack.enter_context(TelemetryServer(settings.metrics, service.registry, service.health))
        serving = loop.create_task(service.serve(stop), name="service")
        stopping = loop.create_task(stop.wait(), name="stop")
        await asyncio.wait((serving, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not service.running:
            serving.cancel()  # still waiting for NATS: there is nothing to leave in order
        with contextlib.suppress(asyncio.CancelledError):
            await serving


class _Service:
    """The parts of one process."""

    def __init__(self, settings: SchedulerSettings, linter: Linter) -> None:
        self.registry = CollectorRegistry()
        self.running = False
        self._settings = settings
        self._linter = linter
        self._keys = Keys(settings.cluster)
        self._name = settings.name or f"{socket.gethostname()}-{os.getpid()}"
        self._metrics = SchedulerMetrics(self.registry)
        self._loop: Loop | None = None
        self._watch: _WatchThread | None = None

    def health(self) -> Health:
        """For /healthz; called in other threads."""
        loop, watch = self._loop, self._watch
        if loop is None or watch is None:
            return Health(False, {"role": "starting", "name": self._name})
        facts = {"role": watch.role, "name": self._name, "term": loop.term, "watches_fresh": loop.eligible}
        return Health(loop.eligible, facts)

    async def serve(self, stop: asyncio.Event) -> None:
        """Connect, check, run until `stop` is set, and leave in order."""
        settings, keys, clock = self._settings, self._keys, SystemClock()
        async with _connected(settings, f"{self._name} loop") as store:
            policy = await self._prepare(store)
            with ThreadPoolExecutor(1, thread_name_prefix="plan") as pool:
                self._loop = Loop(
                    Ports(
                        store=store,
                        keys=keys,
                        clock=clock,
                        policy=policy,
                        metrics=self._metrics,
                        worker=_ThreadWorker(pool),
                        token=_token,
                        refresh=lambda: self._watching.call(Watchkeeper.refresh),
                        strict=settings.strict_audit,
                    ),
                    self._linter,
                    on_deposed=lambda term: self._watching.call(lambda keeper: keeper.resign(term)),
                    on_vacant=lambda: self._watching.call(Watchkeeper.look),
                    on_hindered=lambda term: self._watching.call(lambda keeper: keeper.give_up(term)),
                )
                self._watch = _WatchThread(settings, self._name, keys, clock, policy, self._metrics, self._loop)
                self.running = True
                async with asyncio.TaskGroup() as group:
                    loop = group.create_task(self._loop.run(), name="loop")
                    watch = group.create_task(self._watch.wait(), name="watch")
                    tend = group.create_task(self._tend(store, clock), name="streams")
                    await stop.wait()
                    log.info("Leaving.", name=self._name)
                    await self._watch.leave()
                    loop.cancel()
                    watch.cancel()
                    tend.cancel()

    @property
    def _watching(self) -> _WatchThread:
        assert self._watch is not None, "the loop runs only beside the watchkeeper"
        return self._watch

    async def _tend(self, store: NatsStore, clock: Clock) -> None:
        """Make streams again that were deleted, where nobody could wish for a backup: without the hosts' stream all
        leases would end."""
        while True:
            await clock.sleep(TEND_S)
            try:
                made = await remake_streams(store, self._keys, replicas=self._settings.replicas)
            except (StoreError, Unfit) as error:
                log.info("The streams cannot be looked after now.", why=str(error))
                continue
            if made:
                log.error("Streams were deleted; they were made again.", streams=list(made))

    async def _prepare(self, store: NatsStore) -> Policy:
        """Streams as they must be; the policy that follows from their replication. Waits while NATS is not ready."""
        while True:
            try:
                reports = await ensure_streams(
                    store, self._keys, replicas=self._settings.replicas, timeout=WAITING_SAID_S
                )
            except StoreUnavailable as error:
                remedy = "JetStream must be enabled, and in a cluster a majority of the servers must be up"
                log.warning("Waiting for NATS to be ready.", why=str(error), remedy=remedy)
                continue
            return _policy(next(report for report in reports if report.stream == f"KV_{self._keys.hosts}"))


class _WatchThread:
    """The watchkeeper in a thread with an event loop of its own. Methods are for the main thread."""

    def __init__(
        self,
        settings: SchedulerSettings,
        name: str,
        keys: Keys,
        clock: Clock,
        policy: Policy,
        metrics: SchedulerMetrics,
        loop: Loop,
    ) -> None:
        self._settings = settings
        self._name = name
        self._keys = keys
        self._clock = clock
        self._policy = policy
        self._metrics = metrics
        self._main = asyncio.get_running_loop()
        self._loop = loop
        self._side: asyncio.AbstractEventLoop | None = None
        self._keeper: Watchkeeper | None = None
        self._ended: asyncio.Future[None] = self._main.create_future()
        self._task: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    @property
    def role(self) -> Role:
        keeper = self._keeper
        return Role.STANDBY if keeper is None else keeper.role

    def call(self, what: Callable[[Watchkeeper], None]) -> None:
        """Call `what` in the watchkeeper's event loop, soon. Nothing before it is connected or after it has ended: what
        is called are wake-ups, and it looks for itself when it begins."""
        side, keeper = self._side, self._keeper
        if side is not None and keeper is not None:
            with contextlib.suppress(RuntimeError):  # the loop was closed just now
                side.call_soon_threadsafe(what, keeper)

    async def wait(self) -> None:
        """Until the thread ends; raises what ended it."""
        await asyncio.shield(self._ended)

    async def leave(self) -> None:
        """Clear the lease if it is ours, and end the thread. A store that does not answer is not waited for."""
        side, keeper, task = self._side, self._keeper, self._task
        if side is None or task is None:
            return
        if keeper is not None:
            left = asyncio.run_coroutine_threadsafe(keeper.leave(), side)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.wrap_future(left), LEAVE_TIMEOUT_S)
        with contextlib.suppress(RuntimeError):  # it has ended by itself
            side.call_soon_threadsafe(task.cancel)
        await asyncio.wait([self._ended], timeout=END_TIMEOUT_S)

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self._keep())
        except asyncio.CancelledError:
            pass  # by `leave`
        except BaseException as caught:  # noqa: BLE001 - not handled here: `wait` raises it in the main thread
            error = caught
        self._tell(self._end, error)

    def _end(self, error: BaseException | None) -> None:
        if error is None:
            self._ended.set_result(None)
        else:
            self._ended.set_exception(error)

    async def _keep(self) -> None:
        self._task = asyncio.current_task()
        self._side = asyncio.get_running_loop()
        async with (
            _connected(self._settings, f"{self._name} lease") as lease_store,
            _connected(self._settings, f"{self._name} pulse") as pulse_store,
        ):
            loop = self._loop
            self._keeper = Watchkeeper(
                lease_store,
                pulse_store,
                self._keys,
                self._clock,
                policy=self._policy,
                metrics=self._metrics,
                holder=_token(),
                name=self._name,
                token=_token,
                loop=LoopSide(
                    eligible=lambda: loop.eligible,
                    lead=lambda leadership: self._tell(loop.lead, leadership),
                    lose=lambda term: self._tell(loop.lose, term),
                    hosts=lambda hosts: self._tell(loop.hosts, hosts),
                ),
            )
            await self._keeper.run()

    def _tell(self, method: Callable[[T], None], value: T) -> None:
        with contextlib.suppress(RuntimeError):  # the process is ending
            self._main.call_soon_threadsafe(method, value)


@contextlib.asynccontextmanager
async def _connected(settings: SchedulerSettings, name: str) -> AsyncIterator[NatsStore]:
    told_s = -math.inf

    def waiting(error: StoreError) -> None:
        nonlocal told_s
        now_s = time.monotonic()
        if now_s >= told_s + WAITING_SAID_S:
            told_s = now_s
            log.warning("Waiting for NATS.", servers=list(settings.connection.servers), why=str(error))

    store = await connect(settings.connection, name=name, wait=True, waiting=waiting)
    try:
        yield store
    finally:
        await store.close()


def _policy(hosts: StreamReport) -> Policy:
    """The silence that makes an exclusive execution safe to move follows from the lease, and that from whether the
    heartbeats' stream may be without a leader for some seconds."""
    return Policy(silent_exclusive_s=SILENT_EXCLUSIVE_S if hosts.replicas <= 1 else SILENT_EXCLUSIVE_REPLICATED_S)


class _ThreadWorker:
    """Plans in the pool's only thread."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool

    async def __call__(self, work: Callable[[], T], /) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)


def _token() -> str:
    """A random id: of a store, an instance, an attempt."""
    return secrets.token_hex(8)


if __name__ == "__main__":
    sys.exit(main(SchedulerSettings()))
