"""Durable, fenced assignments per second, and what a plan costs.

    python -m bench.assign [--hosts 1000] [--pipelines 10000] [--replicas 10] [--runs 3]

End to end: a real scheduler process on a real store (one server, and three with three replicas). All versions are
admitted beforehand, hosts exist only as heartbeats that this program writes, and all records are published while no
scheduler runs. Measured is from the new leader's takeover (its first journal entry) to the last assignment in the
store: catching up, planning, auditing, encoding and committing.

Planning alone: the pure planner on views of 10,000, 30,000 and 100,000 executions, and the pass for one changed record
of 100,000.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
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
DEADLINE_S = 600.0
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
    deadline = time.monotonic() + DEADLINE_S
    async for key, value in _changes(store):
        if key == JOURNAL and not started and decode(Journal, value).holder != holder:
            started = time.monotonic()
        elif key.startswith("assign."):
            assigned[key] = value.count(b'"wanted":"run"')
            if sum(assigned.values()) >= executions:
                return time.monotonic() - started
        if time.monotonic() > deadline:
            raise TimeoutError(f"only {sum(assigned.values())} of {executions} were assigned")
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


async def end_to_end(url: str, log: Path, hosts: int, pipelines: int, replicas: int, runs: int) -> list[float]:
    """Assignments per second, one figure a run."""
    found = []
    store = await connect(Options(server=url).connection(), name="bench")
    try:
        with scheduler(url, log):
            await _until_leader(store)
            async with Heartbeats(store, hosts):
                await admit_all(store, pipelines, replicas)
        for _ in range(runs):
            await write_all(store, pipelines, replicas, "published")
            journal = decode(Journal, (await store.read(KEYS.control, JOURNAL)).value or b"{}")
            waiting = asyncio.create_task(until_assigned(store, pipelines * replicas, journal.holder))
            async with Heartbeats(store, hosts):
                await asyncio.sleep(2.0)
                with scheduler(url, log):
                    found.append(pipelines * replicas / await waiting)
                    await write_all(store, pipelines, replicas, "draft")
                    await _until_empty(store)
    finally:
        await store.close()
    return found


async def _until_leader(store: Store) -> None:
    deadline = time.monotonic() + 60
    while True:
        with contextlib.suppress(StoreError):
            if (await store.read(KEYS.control, JOURNAL)).value is not None:
                return
        if time.monotonic() > deadline:
            raise TimeoutError("no scheduler leads")
        await asyncio.sleep(0.2)


async def _until_empty(store: Store) -> None:
    """Until nothing is assigned. No agent confirms the stops, so what is being stopped stays listed as that."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        entries = (await _listing(store)).entries
        if not any(b'"wanted":"run"' in (e.value or b"") for k, e in entries.items() if k.startswith("assign.")):
            return
        if time.monotonic() > deadline:
            raise TimeoutError("something is still assigned")
        await asyncio.sleep(1.0)


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
    arguments = parser.parse_args()
    size = (arguments.hosts, arguments.pipelines, arguments.replicas, arguments.runs)
    rows: list[tuple[Series, Bar | None]] = []
    nats = Path(program("nats-server"))
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as directory:
        with NatsServer(Path(directory) / "r1", binary=nats) as server:
            single = Series("assignments, one server", "/s")
            single.samples = asyncio.run(end_to_end(server.url, Path(directory) / "r1.log", *size))
            rows.append((single, Bar(20_000, at_most=False)))
        with NatsCluster(Path(directory) / "r3", binary=nats) as servers:
            three = Series("assignments, three servers, three replicas", "/s")
            three.samples = asyncio.run(end_to_end(servers.url, Path(directory) / "r3.log", *size))
            rows.append((three, Bar(20_000, at_most=False)))
    rows += planning(arguments.hosts)
    return 0 if show("assign", rows) else 1


if __name__ == "__main__":
    sys.exit(main())
