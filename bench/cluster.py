"""A cluster for measuring: real processes on this machine, in a directory of its own, gone afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cli.local import LocalCluster, free_port, program
from cli.options import Options
from cli.up import await_ready
from shared.documents import Status, decode
from shared.keys import Keys, object_name, status_key
from shared.nats_store import connect
from shared.states import State
from shared.store import Store

DEADLINE_S = 120.0


@contextlib.contextmanager
def local_cluster(
    hosts: int = 1,
    schedulers: int = 1,
    executor: str = "process",
    agent_options: Mapping[str, Sequence[str]] | None = None,
) -> Iterator[LocalCluster]:
    """A running cluster; `agent_options` adds options to the agent of a host, by name (`host-1` ...)."""
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as directory:
        local = LocalCluster(Path(directory), free_port(), executor=executor, say=lambda _: None)
        try:
            local.start_store()
            for number in range(1, schedulers + 1):
                local.start_scheduler(f"scheduler-{number}")
            for number in range(1, hosts + 1):
                name = f"host-{number}"
                local.agent_options = (agent_options or {}).get(name, ())
                local.start_agent(name, {"zone": "abc"[(number - 1) % 3]})
            await_ready(local, hosts, threading.Event())
            yield local
        finally:
            local.stop()


@contextlib.asynccontextmanager
async def store_of(local: LocalCluster) -> AsyncIterator[Store]:
    """A connection to the cluster's store."""
    store = await connect(Options(server=local.url).connection(), name="bench")
    try:
        yield store
    finally:
        await store.close()


def configuration(port: int) -> bytes:
    """A trivial pipeline whose HTTP address is its own, so that readiness can be asked of Bento itself."""
    return f"""http:
  address: 127.0.0.1:{port}
input:
  generate:
    interval: 1s
    mapping: root = "tick"
output:
  drop: {{}}
""".encode()


def is_ready(port: int) -> bool:
    """Whether the Bento on this port says that it is ready."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
    try:
        connection.request("GET", "/ready")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


async def until_ready(port: int, poll_s: float = 0.003) -> float:
    """When (monotonic) the Bento on this port was first seen ready; looks every `poll_s`, in a thread."""

    def look() -> float:
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            if is_ready(port):
                return time.monotonic()
            time.sleep(poll_s)
        raise TimeoutError(f"nothing is ready on port {port}")

    return await asyncio.to_thread(look)


async def until_state(store: Store, pipeline: str, state: State) -> float:
    """When (monotonic) the status key of a pipeline first said `state`."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        entry = await store.read(Keys().control, status_key(pipeline))
        if entry.value is not None and decode(Status, entry.value).state is state:
            return time.monotonic()
        await asyncio.sleep(0.003)
    raise TimeoutError(f"{pipeline} never became {state}")


async def until_no_status(store: Store, pipeline: str) -> None:
    """Return when nothing is left of a pipeline."""
    deadline = time.monotonic() + DEADLINE_S
    while (await store.read(Keys().control, status_key(pipeline))).value is not None:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{pipeline} is still there")
        await asyncio.sleep(0.02)


async def put_configuration(store: Store, pipeline: str, data: bytes, version: str = "1") -> None:
    """Store a configuration, as `nats object put` does."""
    await store.put_object(Keys().configs, object_name(pipeline, version), data)


async def put_record(store: Store, pipeline: str, **fields: Any) -> float:
    """Publish a record; the time (monotonic) just before it was sent."""
    record = {"id": pipeline, "status": "published", "version": "1", **fields}
    started = time.monotonic()
    await store.write(Keys().pipelines, pipeline, json.dumps(record).encode())
    return started


async def delete_record(store: Store, pipeline: str) -> None:
    """Delete a record and wait until nothing is left of it."""
    await store.write(Keys().pipelines, pipeline, None)
    await until_no_status(store, pipeline)


async def bare_bento(directory: Path, port: int) -> float:
    """Seconds from starting Bento by itself to ready; it is ended again."""
    path = directory / f"bare-{port}.yaml"
    path.write_bytes(configuration(port))
    started = time.monotonic()
    child = await asyncio.create_subprocess_exec(
        program("bento"), "-c", str(path), stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        return await until_ready(port) - started
    finally:
        child.kill()
        await child.wait()
