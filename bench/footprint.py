"""Memory and CPU at rest: an agent with 50 executions, a scheduler with 10,000, and what a runner adds to each.

    python -m bench.footprint [--seconds 30]

Private memory is what would be freed if the process ended (smaps_rollup: Private_*); total is its resident set.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from bench.cluster import configuration, local_cluster, put_configuration, put_record, store_of, until_state
from bench.harness import Bar, Series, show
from cli.cluster import Cluster, picture
from cli.local import LocalCluster, free_port
from shared.documents import Assignment
from shared.keys import Keys
from shared.states import State

EXECUTIONS = 50
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Memory:
    """Of one process, in MB."""

    private: float
    total: float


def memory(pid: int) -> Memory:
    """Read from smaps_rollup."""
    kilobytes = {"Private": 0, "Rss": 0}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, value = line.split(":")
        group = name.partition("_")[0]
        if group in kilobytes:
            kilobytes[group] += int(value.split()[0])
    return Memory(kilobytes["Private"] / 1024, kilobytes["Rss"] / 1024)


def cpu_seconds(pid: int) -> float:
    """User and system time so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def agent_and_runners(seconds: float) -> bool:
    """An agent with 50 executions."""
    with local_cluster(hosts=1) as local:
        return asyncio.run(_agent_and_runners(local, seconds))


async def _agent_and_runners(local: LocalCluster, seconds: float) -> bool:
    private, total = Series("agent, 50 executions: private", "MB"), Series("agent, 50 executions: total", "MB")
    cpu = Series("agent, 50 executions: CPU", "%")
    runner, bento = Series("runner: private", "MB"), Series("bento: private", "MB")
    async with store_of(local) as store:
        for number in range(EXECUTIONS):
            await put_configuration(store, f"rest-{number}", configuration(free_port()))
        for number in range(EXECUTIONS):
            await put_record(store, f"rest-{number}")
        for number in range(EXECUTIONS):
            await until_state(store, f"rest-{number}", State.RUNNING)
        await asyncio.sleep(10)
        seen = await picture(Cluster(store, Keys()))
    pid = local.children["host-1"].pid
    for _ in range(5):
        before, started = cpu_seconds(pid), time.monotonic()
        await asyncio.sleep(seconds / 5)
        cpu.add(100 * (cpu_seconds(pid) - before) / (time.monotonic() - started))
        found = memory(pid)
        private.add(found.private)
        total.add(found.total)
    for observed in seen.reports["host-1"].executions:
        runner.add(memory(int(observed.runtime)).private)
        bento.add(memory(_child(int(observed.runtime))).private)
    bars = [(private, None), (total, Bar(60)), (cpu, None), (runner, Bar(8)), (bento, None)]
    return show("footprint of an agent and its runners", bars)


def _child(pid: int) -> int:
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


def scheduler(seconds: float) -> bool:
    """A scheduler that leads 10,000 executions on 100 hosts that exist only in the store."""
    with local_cluster(hosts=0) as local:
        return asyncio.run(_scheduler(local, seconds))


async def _scheduler(local: LocalCluster, seconds: float) -> bool:
    from bench.assign import Heartbeats, publish

    private, total = Series("scheduler, 10,000 executions: private", "MB"), Series("... total", "MB")
    cpu = Series("scheduler, 10,000 executions, quiet: CPU", "%")
    async with store_of(local) as store, Heartbeats(store, hosts=100):
        await publish(store, pipelines=1000, replicas=10)
        await _placed(store, 10_000)
        await asyncio.sleep(10)
        pid = local.children["scheduler-1"].pid
        for _ in range(5):
            before, started = cpu_seconds(pid), time.monotonic()
            await asyncio.sleep(seconds / 5)
            cpu.add(100 * (cpu_seconds(pid) - before) / (time.monotonic() - started))
            found = memory(pid)
            private.add(found.private)
            total.add(found.total)
    return show("footprint of a scheduler", [(private, None), (total, None), (cpu, None)])


async def _placed(store: object, count: int) -> None:
    cluster = Cluster(store, Keys())  # type: ignore[arg-type]
    deadline = time.monotonic() + 300
    while True:
        found = await cluster.documents(cluster.keys.control, Assignment, "assign.")
        if sum(len(a.executions) for a in found.values()) >= count:
            return
        if time.monotonic() > deadline:
            raise TimeoutError("the executions were never placed")
        await asyncio.sleep(1)


def main() -> int:
    """Run both. Exit code 1 when a bar was missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30)
    arguments = parser.parse_args()
    met = agent_and_runners(arguments.seconds)
    return 0 if scheduler(arguments.seconds) and met else 1


if __name__ == "__main__":
    sys.exit(main())
