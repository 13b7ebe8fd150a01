"""100 pipelines published at once on three engines, against the bare engines started with the same parallelism.

    python -m bench.burst [--count 100] [--runs 3]

The floor creates and starts the same containers with the Docker SDK, as many at a time on each engine as an agent does,
until each Bento says that it is ready. Removing all of them is measured likewise. A run takes about 50 s on two cores,
starting the engines half a minute: --runs 2 ends within three minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from bench.cluster import (
    configuration,
    local_cluster,
    put_configuration,
    put_record,
    store_of,
    until_no_status,
    until_ready,
)
from bench.engines import BenchEngine, create_and_start, several_engines
from bench.harness import Bar, Series, show
from cli.local import LocalCluster, free_port
from shared.keys import Keys
from shared.store import Store

PARALLEL = max(6, min(16, 2 * (os.cpu_count() or 1)))  # the agent's own bound, see agent.docker_executor
POLL_S = 0.05  # 100 Bentos are asked at once: asking more often would itself be the load
SETTLE_S = 5.0  # linting 100 configurations, before the records are written


def ports(count: int) -> list[int]:
    """Free ports, all different."""
    found: set[int] = set()
    while len(found) < count:
        found.add(free_port())
    return sorted(found)


async def all_ready(of: list[int]) -> float:
    """When the last one became ready."""
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(max_workers=len(of) + 8))
    return max(await asyncio.gather(*(until_ready(port, POLL_S) for port in of)))


async def bare(engines: list[BenchEngine], count: int) -> tuple[float, float]:
    """Containers per second, started until ready and removed, without Shoal."""
    chosen = ports(count)
    pools = [ThreadPoolExecutor(max_workers=PARALLEL) for _ in engines]
    started = time.monotonic()
    work = [pools[i % len(pools)].submit(create_and_start, engines[i % len(engines)], p) for i, p in enumerate(chosen)]
    ready = await all_ready(chosen)
    containers = [w.result() for w in work]
    removing = time.monotonic()
    gone = [pools[i % len(pools)].submit(stop_and_remove, c) for i, c in enumerate(containers)]
    await asyncio.to_thread(lambda: [g.result() for g in gone])
    removed = time.monotonic()
    for pool in pools:
        pool.shutdown()
    return count / (ready - started), count / (removed - removing)


def stop_and_remove(container: object) -> None:
    """SIGTERM, then remove: what Shoal does, too."""
    container.stop(timeout=22)  # type: ignore[attr-defined]
    container.remove()  # type: ignore[attr-defined]


async def ours(store: Store, count: int, run: int) -> tuple[float, float]:
    """Pipelines per second, published until ready and removed, with Shoal."""
    names = {f"burst-{run}-{number}": port for number, port in enumerate(ports(count))}
    for name, port in names.items():
        await put_configuration(store, name, configuration(port))
    await asyncio.sleep(SETTLE_S)
    seen = asyncio.create_task(all_ready(list(names.values())))
    started = time.monotonic()
    await asyncio.gather(*(put_record(store, name) for name in names))
    ready = await seen
    removing = time.monotonic()
    await asyncio.gather(*(store.write(Keys().pipelines, name, None) for name in names))
    for name in names:
        await until_no_status(store, name)
    return count / (ready - started), count / (time.monotonic() - removing)


async def measure(local: LocalCluster, engines: list[BenchEngine], count: int, runs: int) -> bool:
    """Both in turn, and the table."""
    figures = {n: Series(f"{n}, {count} on {len(engines)} engines", "/s") for n in ("bare start", "start")}
    figures |= {n: Series(f"{n}, {count} on {len(engines)} engines", "/s") for n in ("bare removal", "removal")}
    async with store_of(local) as store:
        for run in range(runs):
            for prefix, (start, removal) in (
                ("bare ", await bare(engines, count)),
                ("", await ours(store, count, run)),
            ):
                figures[f"{prefix}start"].add(start)
                figures[f"{prefix}removal"].add(removal)
    starts = Series("start: share of the bare throughput", "x", _share(figures["start"], figures["bare start"]))
    removals = Series("removal: share of the bare throughput", "x", _share(figures["removal"], figures["bare removal"]))
    rows: list[tuple[Series, Bar | None]] = [(series, None) for series in figures.values()]
    return show("burst", [*rows, (starts, Bar(0.8, at_most=False)), (removals, Bar(0.8, at_most=False))])


def _share(a: Series, b: Series) -> list[float]:
    return [x / y for x, y in zip(a.samples, b.samples, strict=True)]


def main() -> int:
    """Run it. Exit code 1 when a bar was missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    with several_engines(3) as engines:
        options = {f"host-{n}": ("--docker-host", e.url, "--image", e.image) for n, e in enumerate(engines, start=1)}
        with local_cluster(hosts=3, executor="docker", agent_options=options) as local:
            return 0 if asyncio.run(measure(local, engines, arguments.count, arguments.runs)) else 1


if __name__ == "__main__":
    sys.exit(main())
