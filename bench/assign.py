"""Durable, fenced assignments per second, and what a plan costs.

    python -m bench.assign [--hosts 1000] [--pipelines 10000] [--replicas 10] [--runs 3] [--only one|three|planning]

End to end: a real scheduler process on a real store (one server, and three with three replicas). A scheduler admits all
versions beforehand; then all records are published while none runs, and the stopped servers' files are kept. Each run
begins with a copy of them, and hosts that exist only as heartbeats that this program writes. Measured is from the new
leader's takeover (its first journal entry) to the last assignment in the store: catching up, planning, auditing,
encoding and committing.

Planning alone: the pure planner on views of 10,000, 30,000 and 100,000 executions, and the pass for one changed record
of 100,000.

At full size on two cores one server takes about a minute and a half (half of it to admit 10,000 versions), three
servers two and a half, planning alone half a minute.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from bench.harness import Bar, Series, show
from cli.local import program
from cli.options import Options
from scheduler.core.audit import audit
from scheduler.core.plan import plan
from shared.documents import Driver, Heartbeat, Journal, Session, decode, encode
from shared.errors import StoreError
from shared.keys import JOURNAL, Keys, object_name
from shared.nats_store import connect
from shared.store import Listing, Store
from tests.support.clusters import Cluster
from tests.support.nats_servers import NatsCluster, NatsServer

CONFIGURATION = b"""input:
  nats:
    urls: [ "${NATS_URL}" ]
    subject: bench.assign
    queue: bench
output:
  drop: {}
"""
KEYS = Keys()
GIB = 2**30
DEADLINE_S = 300.0
AT_ONCE = 64


class Heartbeats:
    """Hosts that exist only in the store: one heartbeat a second each, as agents write them."""

    def __init__(self, store: Store, hosts: int) -> None:
        self._store = store
        self._hosts = hosts
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Heartbeats:
        self._task = asyncio.create_task(self._beat(), name="heartbeats")
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        assert self._task is not None, "entered"
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _beat(self) -> None:
        sequence = 0
        while True:
            started = time.monotonic()
            sequence += 1
            for first in range(0, self._hosts, AT_ONCE):
                numbers = range(first, min(first + AT_ONCE, self._hosts))
                with contextlib.suppress(StoreError):
                    await asyncio.gather(*(self._write(number, sequence) for number in numbers))
            await asyncio.sleep(max(1.0 - (time.monotonic() - started), 0.0))

    async def _write(self, number: int, sequence: int) -> None:
        host = f"bench-{number:04d}"
        beat = Heartbeat(
            store_id="",
            host=host,
            session=Session(f"agent-{number}", "boot", 1),
            sequence=sequence,
            lease_s=8.0,
            fence_kill_s=2.0,
            poll_s=0.25,
            cpu=64.0,
            memory_bytes=512 * GIB,
            labels={"host": host, "zone": "abc"[number % 3]},
            drivers={"docker": Driver(True)},
        )
        await self._store.write(KEYS.hosts, host, encode(beat))


async def write_all(store: Store, pipelines: int, replicas: int, status: str) -> None:
    """Write all records."""

    async def one(number: int) -> None:
        name = f"pipe-{number:05d}"
        record = {"id": name, "status": status, "version": "1", "replicas": replicas}
        await store.write(KEYS.pipelines, name, json.dumps(record).encode())

    await _in_groups(one, pipelines)


async def admit_all(store: Store, pipelines: int, replicas: int) -> None:
    """Store all configurations, write all records as paused, and wait until every version is pinned."""

    async def one(number: int) -> None:
        await store.put_object(KEYS.configs, object_name(f"pipe-{number:05d}", "1"), CONFIGURATION)

    await _in_groups(one, pipelines)
    await write_all(store, pipelines, replicas, "paused")
    deadline = time.monotonic() + DEADLINE_S
    while True:
        keys = (await _listing(store)).entries
        if sum(key.startswith("version.") for key in keys) >= pipelines:
            return
        if time.monotonic() > deadline:
            raise TimeoutError("not every version was admitted")
        await asyncio.sleep(1.0)


async def publish(store: Store, pipelines: int, replicas: int) -> None:
    """Admit and publish at once; for the footprint."""
    await admit_all(store, pipelines, replicas)
    await write_all(store, pipelines, replicas, "published")


async def _in_groups(one: object, count: int) -> None:
    for first in range(0, count, AT_ONCE):
        await asyncio.gather(*(one(n) for n in range(first, min(first + AT_ONCE, count))))  # type: ignore[operator]


async def _listing(store: Store) -> Listing:
    async with contextlib.aclosing(store.watch(KEYS.control)) as items:  # type: ignore[type-var]
        async for item in items:
            if isinstance(item, Listing):
                return item
    raise AssertionError("a watch never ends by itself")


async def until_assigned(store: Store, executions: int, holder: str) -> float:
    """Seconds from the first journal entry of another holder to the last assignment, and that count is exact."""
    assigned: dict[str, int] = {}
    started = 0.0
    async for key, value in _changes(store):
        if key == JOURNAL and not started and decode(Journal, value).holder != holder:
            started = time.monotonic()
        elif key.startswith("assign."):
            assigned[key] = value.count(b'"wanted":"run"')
            if sum(assigned.values()) >= executions:
                return time.monotonic() - started
    raise AssertionError("a watch never ends by itself")


async def _changes(store: Store) -> AsyncIterator[tuple[str, bytes]]:
    async with contextlib.aclosing(store.watch(KEYS.control)) as items:  # type: ignore[type-var]
        async for item in items:
            entry = getattr(item, "entry", None)
            if entry is not None and entry.value is not None:
                yield entry.key, entry.value


@contextlib.contextmanager
def scheduler(url: str, log: Path) -> Iterator[None]:
    """A scheduler process for the time of the block."""
    command = [sys.executable, "-m", "cli.main", "--server", url, "scheduler", "--name", "bench"]
    with log.open("ab") as output:
        child = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        yield
    finally:
        child.terminate()
        child.wait()


@dataclass(frozen=True)
class Size:
    """How much there is to assign."""

    hosts: int
    pipelines: int
    replicas: int

    @property
    def executions(self) -> int:
        return self.pipelines * self.replicas


def end_to_end(servers: NatsServer | NatsCluster, directory: Path, size: Size, runs: int) -> list[float]:
    """Assignments per second, one figure a run. `directory`: of the servers."""
    log, kept = directory.with_suffix(".log"), directory.with_suffix(".kept")
    with servers:
        say(f"admitting {size.pipelines} versions")
        asyncio.run(_prepare(servers.url, log, size))
    directory.rename(kept)
    found = []
    for run in range(runs):
        shutil.copytree(kept, directory)
        with servers:
            found.append(size.executions / asyncio.run(_assign(servers.url, log, size)))
        shutil.rmtree(directory)
        say(f"run {run + 1}: {found[-1]:.0f} assignments per second")
    return found


def say(what: str) -> None:
    """Progress, for who waits."""
    print(f"{time.strftime('%X')} {what}", file=sys.stderr, flush=True)


async def _prepare(url: str, log: Path, size: Size) -> None:
    """Everything is admitted and published, nothing assigned, and no scheduler runs."""
    async with _store(url) as store:
        with scheduler(url, log):
            await _until_leader(store)
            async with Heartbeats(store, size.hosts):
                await admit_all(store, size.pipelines, size.replicas)
        await write_all(store, size.pipelines, size.replicas, "published")


async def _assign(url: str, log: Path, size: Size) -> float:
    """Seconds from a new leader's takeover to the last assignment."""
    async with _store(url) as store:
        await _until_leader(store)
        journal = decode(Journal, (await store.read(KEYS.control, JOURNAL)).value or b"{}")
        waiting = asyncio.create_task(until_assigned(store, size.executions, journal.holder))
        async with Heartbeats(store, size.hosts):
            await asyncio.sleep(2.0)  # so that every host was heard
            with scheduler(url, log):
                async with asyncio.timeout(DEADLINE_S):
                    return await waiting


@contextlib.asynccontextmanager
async def _store(url: str) -> AsyncIterator[Store]:
    store = await connect(Options(server=url).connection(), name="bench")
    try:
        yield store
    finally:
        await store.close()


async def _until_leader(store: Store) -> None:
    deadline = time.monotonic() + 60
    while True:
        with contextlib.suppress(StoreError):
            if (await store.read(KEYS.control, JOURNAL)).value is not None:
                return
        if time.monotonic() > deadline:
            raise TimeoutError("no scheduler leads")
        await asyncio.sleep(0.2)


def planning(hosts: int) -> list[tuple[Series, Bar | None]]:
    """The pure planner, by size."""
    rows: list[tuple[Series, Bar | None]] = []
    for executions in (10_000, 30_000, 100_000):
        cluster = _view(hosts, executions // 10, 10)
        plans, audits = Series(f"plan of {executions} new executions", "ms"), Series(f"audit of {executions}", "ms")
        for _ in range(3):
            started = time.perf_counter()
            made = plan(cluster.view, cluster.policy)
            planned = time.perf_counter()
            violations = audit(cluster.view, made)
            plans.add((planned - started) * 1000)
            audits.add((time.perf_counter() - planned) * 1000)
            assert not violations, violations
        rows += [(plans, None), (audits, None)]
    rows.append((_one_of(hosts, 100_000), None))
    return rows


def _view(hosts: int, pipelines: int, replicas: int) -> Cluster:
    cluster = Cluster()
    cluster.audited = False
    for number in range(hosts):
        cluster.host(f"h{number:04d}", cpu=64.0, memory_bytes=512 * GIB)
    for number in range(pipelines):
        cluster.publish(f"p{number:06d}", replicas=replicas)
    return cluster


def _one_of(hosts: int, records: int) -> Series:
    """The pass for one changed record among many that run."""
    cluster = _view(hosts, records, 1)
    cluster.settle()
    found = Series(f"pass for one changed record of {records}", "ms")
    for number in range(20):
        cluster.edit(f"p{number:06d}", replicas=2)
        scope = cluster.world.take_scope()
        started = time.perf_counter()
        made = plan(cluster.view, cluster.policy, scope)
        assert not audit(cluster.view, made)
        found.add((time.perf_counter() - started) * 1000)
        assert made.assignments, "the edit asks for one more replica"
    return found


def main() -> int:
    """Run all. Exit code 1 when a bar was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", type=int, default=1000)
    parser.add_argument("--pipelines", type=int, default=10_000)
    parser.add_argument("--replicas", type=int, default=10)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", choices=("one", "three", "planning"), help="one server, three, or planning alone")
    arguments = parser.parse_args()
    size = Size(arguments.hosts, arguments.pipelines, arguments.replicas)
    rows: list[tuple[Series, Bar | None]] = []
    nats = Path(program("nats-server"))
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as temporary:
        stores: dict[str, tuple[str, type[NatsServer | NatsCluster]]] = {
            "one": ("one server", NatsServer),
            "three": ("three servers, three replicas", NatsCluster),
        }
        for name, (words, kind) in stores.items():
            if arguments.only in (None, name):
                say(words)
                directory = Path(temporary) / name
                samples = end_to_end(kind(directory, binary=nats), directory, size, arguments.runs)
                rows.append((Series(f"assignments, {words}", "/s", samples), Bar(20_000, at_most=False)))
    if arguments.only in (None, "planning"):
        rows += planning(size.hosts)
    return 0 if show("assign", rows) else 1


if __name__ == "__main__":
    sys.exit(main())
