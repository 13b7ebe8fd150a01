"""Memory and CPU at rest: an agent with 50 executions, a scheduler with 10,000, and what a runner adds to each.

    python -m bench.footprint [--seconds 30] [--only process|docker|scheduler]

Private memory is what would be freed if the process ended (smaps_rollup: Private_*); total is its resident set. About
a minute and a half for each driver of the agent, and one for the scheduler.
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


def processes(seconds: float) -> bool:
    """An agent with 50 executions as processes, and their runners."""
    runner, bento = Series("runner: private", "MB"), Series("bento: private", "MB")
    with local_cluster(hosts=1) as local:
        rows = asyncio.run(_agent(local, "process", seconds))
        for pid in asyncio.run(_runners(local)):
            runner.add(memory(pid).private)
            bento.add(memory(_child(pid)).private)
    return show("footprint of an agent and its runners", [*rows, (runner, Bar(8)), (bento, None)])


def docker(seconds: float) -> bool:
    """An agent with 50 containers."""
    from bench.engines import one_engine

    with one_engine() as engine:
        options = {"host-1": ("--docker-host", engine.url, "--image", engine.image)}
        with local_cluster(executor="docker", agent_options=options) as local:
            rows = asyncio.run(_agent(local, "docker", seconds))
    return show("footprint of an agent with containers", rows)


async def _agent(local: LocalCluster, driver: str, seconds: float) -> list[tuple[Series, Bar | None]]:
    private, total, cpu = (
        Series(f"agent, {EXECUTIONS} executions ({driver}): {what}", unit)
        for what, unit in (("private", "MB"), ("total", "MB"), ("CPU", "%"))
    )
    async with store_of(local) as store:
        for number in range(EXECUTIONS):
            await put_configuration(store, f"rest-{number}", configuration(free_port()))
        for number in range(EXECUTIONS):
            await put_record(store, f"rest-{number}")
        for number in range(EXECUTIONS):
            await until_state(store, f"rest-{number}", State.RUNNING)
        await asyncio.sleep(10)
    await _sample(local.children["host-1"].pid, seconds, private, total, cpu)
    return [(private, None), (total, Bar(60)), (cpu, None)]


async def _runners(local: LocalCluster) -> list[int]:
    async with store_of(local) as store:
        seen = await picture(Cluster(store, Keys()))
    return [int(observed.runtime) for observed in seen.reports["host-1"].executions]


async def _sample(pid: int, seconds: float, private: Series, total: Series, cpu: Series) -> None:
    """Five samples of a process at rest."""
    for _ in range(5):
        before, started = cpu_seconds(pid), time.monotonic()
        await asyncio.sleep(seconds / 5)
        cpu.add(100 * (cpu_seconds(pid) - before) / (time.monotonic() - started))
        found = memory(pid)
        private.add(found.private)
        total.add(found.total)


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
        await _sample(local.children["scheduler-1"].pid, seconds, private, total, cpu)
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
    """Run all, or one. Exit code 1 when a bar was missed."""
    programs = {"process": processes, "docker": docker, "scheduler": scheduler}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--only", choices=tuple(programs))
    arguments = parser.parse_args()
    met = [run(arguments.seconds) for name, run in programs.items() if arguments.only in (None, name)]
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
