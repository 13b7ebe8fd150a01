"""Docker engines of our own for measuring, and the floor: the Docker SDK used by hand, with the same image."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.cluster import configuration, until_ready
from tests.support.images import RUNNER_TAG, running_engines


@dataclass(frozen=True)
class BenchEngine:
    """An engine with the runner image; `directory` may be mounted."""

    url: str
    image: str
    directory: Path
    client: Any


@contextlib.contextmanager
def several_engines(count: int) -> Iterator[list[BenchEngine]]:
    """Engines side by side, as different hosts."""
    with (
        tempfile.TemporaryDirectory(prefix="shoal-bench-") as directory,
        running_engines(count, Path(directory)) as all_,
    ):
        yield [BenchEngine(engine.url, RUNNER_TAG, Path(directory), engine.client()) for engine in all_]


@contextlib.contextmanager
def one_engine() -> Iterator[BenchEngine]:
    """One engine."""
    with several_engines(1) as engines:
        yield engines[0]


def create_and_start(engine: BenchEngine, port: int) -> Any:
    """What anyone would write with the SDK: create and start Bento with a mounted configuration, host network."""
    path = engine.directory / f"bare-{port}.yaml"
    path.write_bytes(configuration(port))
    path.chmod(0o644)
    engine.directory.chmod(0o755)
    container = engine.client.containers.create(
        engine.image,
        entrypoint=["/usr/local/bin/bento"],
        command=["-c", "/pipeline.yaml"],
        network_mode="host",
        volumes={str(path): {"bind": "/pipeline.yaml", "mode": "ro"}},
    )
    container.start()
    return container


async def bare_container(engine: BenchEngine, port: int) -> float:
    """Seconds from create to ready, of one container; it is removed again."""
    started = time.monotonic()
    seen = asyncio.create_task(until_ready(port))
    container = await asyncio.to_thread(create_and_start, engine, port)
    try:
        return await seen - started
    finally:
        await asyncio.to_thread(container.remove, force=True)
