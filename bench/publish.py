"""From a raw KV put to Bento ready, against starting the same thing without Shoal; and how late people learn of it.

    python -m bench.publish [--runs 15] [--only process|docker]

The configuration's object is stored (and linted) before; the record is written raw. Ours and the floor are taken in
turn, so that a change of the machine's speed hits both. About a minute for each executor.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from bench.cluster import (
    bare_bento,
    configuration,
    delete_record,
    local_cluster,
    put_configuration,
    put_record,
    store_of,
    until_ready,
    until_state,
)
from bench.harness import Bar, Series, ratio, show
from cli.local import LocalCluster, free_port
from shared.states import State

SETTLE_S = 0.6  # between putting the object and the record: the object's lint is not part of the figure


async def measure(local: LocalCluster, runs: int, name: str, floor_of: object, limit: float) -> bool:
    """Sample ours and the floor in turn, and print the table."""
    ours, floor = Series(f"{name}: raw KV put -> Bento /ready", "ms"), Series(f"{name}: floor", "ms")
    lag = Series(f"{name}: /ready -> status key says running", "ms")
    async with store_of(local) as store:
        for number in range(-1, runs):  # the first run warms caches and is not counted
            port = free_port()
            pipeline = f"bench-{name}-{number + 1}"
            await put_configuration(store, pipeline, configuration(port))
            await asyncio.sleep(SETTLE_S)
            seen = asyncio.create_task(until_ready(port))
            status = asyncio.create_task(until_state(store, pipeline, State.RUNNING))
            started = await put_record(store, pipeline)
            ready, told = await seen, await status
            await delete_record(store, pipeline)
            bare = await floor_of(free_port())  # type: ignore[operator]
            if number >= 0:
                ours.add((ready - started) * 1000)
                lag.add(max(told - ready, 0.0) * 1000)
                floor.add(bare * 1000)
    times = ratio(f"{name}: ratio to the floor", ours, floor)
    return show(f"publish, {name} executor", [(floor, None), (ours, None), (times, Bar(limit)), (lag, Bar(150))])


def process(runs: int) -> bool:
    """The process executor against starting Bento directly."""
    with local_cluster() as local, tempfile.TemporaryDirectory() as directory:

        async def floor(port: int) -> float:
            return await bare_bento(Path(directory), port)

        return asyncio.run(measure(local, runs, "process", floor, 2.0))


def docker(runs: int) -> bool:
    """The docker executor against create and start by the Docker SDK, same image, same configuration."""
    from bench.engines import bare_container, one_engine

    with one_engine() as engine:
        options = {"host-1": ("--docker-host", engine.url, "--image", engine.image)}
        with local_cluster(executor="docker", agent_options=options) as local:

            async def floor(port: int) -> float:
                return await bare_container(engine, port)

            return asyncio.run(measure(local, runs, "docker", floor, 1.5))


def main() -> int:
    """Run both, or one. Exit code 1 when a bar was missed."""
    programs = {"process": process, "docker": docker}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--only", choices=tuple(programs))
    arguments = parser.parse_args()
    met = [run(arguments.runs) for name, run in programs.items() if arguments.only in (None, name)]
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
