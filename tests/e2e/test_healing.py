"""NATS is away for longer than Bento's client library tries: every pipeline moves data again soon after its return, and
who connects again by itself, or has no NATS in it, is left alone. Real NATS, real Bento, the process driver."""

import asyncio
import contextlib
import http.client
import secrets
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import nats
import pytest
from nats.aio.client import Client
from nats.js.api import AckPolicy, ConsumerConfig

from tests.support.components import require
from tests.support.nats_servers import NatsServer
from tests.support.processes import free_port
from tests.support.real import RealCluster, real_cluster

AWAY_S = 150.0  # the library gives up after 120 s and a little
BACK_MAX_S = 60.0  # generous: the machine may be busy; the figures are printed
LOST = ("in-push", "in-core", "out-busy", "out-idle", "both", "processor")  # Bento never connects these again
OTHERS = ("in-kv", "prints", "without", "second")  # Bento connects the first itself, the rest never lost anything
TICK = "generate: {interval: 200ms, mapping: 'root = \"tick\"'}"


def configurations(directory: Path, port: int, second: str) -> dict[str, str]:
    """What each pipeline is, by its id. What one receives it writes to a file, what one sends goes to stream OUT."""

    def bound(durable: str) -> str:
        names = f"stream: IN, durable: {durable}, queue: {durable}, bind: true, subject: in.{durable}"
        return f"nats_jetstream: {{urls: ['${{NATS_URL}}'], {names}}}"

    def sent(subject: str, url: str = "${NATS_URL}") -> str:
        return f"nats_jetstream: {{urls: ['{url}'], subject: out.{subject}}}"

    def written(name: str) -> str:
        return f"file: {{path: {directory}/{name}.txt, codec: lines}}"

    lookup = "nats_kv: {urls: ['${NATS_URL}'], bucket: values, operation: get, key: k}"
    parts = {
        "in-push": (bound("push"), "", written("in-push")),
        "in-core": ("nats: {urls: ['${NATS_URL}'], subject: core.in}", "", written("in-core")),
        "in-kv": ("nats_kv: {urls: ['${NATS_URL}'], bucket: values, key: '>'}", "", written("in-kv")),
        "out-busy": (TICK, "", sent("busy")),
        "out-idle": (f"http_server: {{path: /post, address: '127.0.0.1:{port}'}}", "", sent("idle")),
        "both": (bound("both"), "", sent("both")),
        # What it reads is the value, and otherwise the message goes on as it was.
        "processor": (TICK, lookup, written("processor")),
        "prints": (TICK, "log: {level: ERROR, message: 'nats: connection closed'}", written("prints")),
        "without": (TICK, "", written("without")),
        "second": (TICK, "", sent("second", second)),
    }
    return {
        name: f"input: {{{source}}}\npipeline: {{processors: [{{{step}}}]}}\noutput: {{{sink}}}\n"
        if step
        else f"input: {{{source}}}\noutput: {{{sink}}}\n"
        for name, (source, step, sink) in parts.items()
    }


class Data:
    """Moves data through the pipelines, and sees whether it arrived."""

    def __init__(self, client: Client, directory: Path, port: int) -> None:
        self.client, self.directory, self.port = client, directory, port
        self.stream = client.jetstream()

    async def arrives(self, name: str) -> bool:
        """Whether something that was sent now has come out, within a second or two."""
        mark = secrets.token_hex(8).encode()  # never seen before, also not by another of these
        checks: dict[str, tuple[Callable[[], Awaitable[object]], Callable[[], Awaitable[object]]]] = {
            "in-push": (lambda: self.stream.publish("in.push", mark), lambda: self._in_file(name, mark)),
            "in-core": (lambda: self.client.publish("core.in", mark), lambda: self._in_file(name, mark)),
            "in-kv": (lambda: self._put("k2", mark), lambda: self._in_file(name, mark)),
            "both": (lambda: self.stream.publish("in.both", mark), lambda: self._last("out.both", mark)),
            "out-idle": (lambda: asyncio.to_thread(self._post, mark), lambda: self._last("out.idle", mark)),
            "processor": (lambda: self._put("k", mark), lambda: self._in_file(name, mark)),
        }
        send, look = checks[name] if name in checks else (self._nothing, await self._grown(name))
        await send()
        for _ in range(20):
            if await look():
                return True
            await asyncio.sleep(0.1)
        return False

    async def _nothing(self) -> None:
        """These send by themselves."""

    async def _grown(self, name: str) -> Callable[[], Awaitable[object]]:
        async def size() -> int:
            if name == "out-busy":
                return await self._count("out.busy")
            file = self.directory / f"{name}.txt"
            return file.stat().st_size if file.exists() else 0

        before = await size()

        async def look() -> bool:
            return await size() > before

        return look

    async def _in_file(self, name: str, mark: bytes) -> bool:
        file = self.directory / f"{name}.txt"
        return file.exists() and mark in file.read_bytes().splitlines()[-50:]

    async def _last(self, subject: str, mark: bytes) -> bool:
        with contextlib.suppress(nats.js.errors.NotFoundError):
            return (await self.stream.get_last_msg("OUT", subject)).data == mark
        return False

    async def _count(self, subject: str) -> int:
        info = await self.stream.stream_info("OUT", subjects_filter=subject)
        return (info.state.subjects or {}).get(subject, 0)

    async def _put(self, key: str, value: bytes) -> None:
        await (await self.stream.key_value("values")).put(key, value)

    def _post(self, mark: bytes) -> None:
        """Refused while it is being started again."""
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=1.5)
            with contextlib.closing(connection):
                connection.request("POST", "/post", mark)
                connection.getresponse().read()


async def prepare(server: NatsServer) -> None:
    client = await nats.connect(server.url)
    stream = client.jetstream()
    await stream.add_stream(name="IN", subjects=["in.>"])
    await stream.add_stream(name="OUT", subjects=["out.>"])
    for name in ("push", "both"):
        config = ConsumerConfig(
            durable_name=name, deliver_subject=f"deliver.{name}", deliver_group=name, filter_subject=f"in.{name}",
            ack_policy=AckPolicy.EXPLICIT, ack_wait=30, max_ack_pending=1024,
        )  # fmt: skip
        await stream.add_consumer("IN", config)
    await (await stream.create_key_value(bucket="values")).put("k", b"v")
    await client.close()


async def figures(
    server: NatsServer, directory: Path, port: int, names: tuple[str, ...], since: float
) -> dict[str, float]:
    """When each pipeline has moved something, in seconds since then."""
    client = await nats.connect(server.url)
    data = Data(client, directory, port)
    found: dict[str, float] = {}

    async def watch(name: str) -> None:
        while not await data.arrives(name):
            pass  # it has taken its time itself
        found[name] = time.monotonic() - since

    try:
        async with asyncio.timeout(BACK_MAX_S):
            async with asyncio.TaskGroup() as group:
                for name in names:
                    group.create_task(watch(name), name=name)
    except TimeoutError:
        raise AssertionError(f"not within {BACK_MAX_S:g} s: {sorted(set(names) - set(found))}; {found}") from None
    finally:
        await client.close()
    return found


def counts(cluster: RealCluster) -> dict[str, tuple[int, int]]:
    """(restarts, healed) of each pipeline."""
    return {row["pipeline"]: (row["restarts"], row["healed"]) for row in cluster.json("executions")}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_pipeline_moves_data_again_after_a_long_outage(tmp_path: Path) -> None:
    port, directory = free_port(), tmp_path / "data"
    directory.mkdir()
    with (
        NatsServer(tmp_path / "nats", binary=require("nats-server")) as server,
        NatsServer(tmp_path / "second", binary=require("nats-server")) as second,
        real_cluster(tmp_path / "cluster", hosts=1, servers=server) as cluster,
    ):
        asyncio.run(prepare(server))
        asyncio.run(prepare(second))
        configured = configurations(directory, port, second.url)
        for name, text in configured.items():
            # May overlap, so it goes on while its host is cut off.
            cluster.publish(name, text.encode(), overlap="allow")
        for name in configured:
            cluster.until_state(name, "running")
        moved = asyncio.run(figures(server, directory, port, (*LOST, "in-kv", "prints", "without"), time.monotonic()))
        assert moved, "all of them work before"
        before = {name: cluster.the(name) for name in configured}

        server.kill()
        over = time.monotonic() + AWAY_S
        while time.monotonic() < over:
            assert {name: cluster.the(name) for name in configured} == before, "nobody is touched meanwhile"
            time.sleep(1.0)
        server.start()
        back = time.monotonic()
        moved = asyncio.run(figures(server, directory, port, LOST, back))
        print("seconds from NATS's return to data:", {name: round(s, 1) for name, s in sorted(moved.items())})

        after = {name: cluster.the(name) for name in configured}
        assert {name for name in configured if after[name] != before[name]} == set(LOST)
        assert {name: after[name].execution for name in configured} == {name: before[name].execution for name in before}
        for name in configured:
            cluster.until_state(name, "running")
        assert counts(cluster) == {name: (0, 1 if name in LOST else 0) for name in configured}
        # It is over: nobody is touched again, and the rest has worked all along.
        asyncio.run(figures(server, directory, port, (*LOST, "in-kv", "prints", "without"), time.monotonic()))
        assert {name: cluster.the(name) for name in configured} == after
        cluster.assert_all_alive()
