"""NATS is away for longer than Bento's client library tries: every pipeline moves data again soon after its return, and
who connects again by itself, or has no NATS in it, is left alone. Real NATS, real Bento.

One outage for all: of the only server, under processes and under containers; of one of three servers, which nobody
needs; and of one host's way to all three.
"""

import asyncio
import contextlib
import http.client
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.aio.client import Client
from nats.js.api import AckPolicy, ConsumerConfig

from tests.support.components import require
from tests.support.engines import Engine
from tests.support.nats_servers import NatsCluster, NatsServer
from tests.support.processes import free_port
from tests.support.real import RealCluster, Running, real_cluster
from tests.support.relay import Way, way_to

AWAY_S = 150.0  # the library gives up after 120 s and a little
BACK_MAX_S = 60.0  # generous: the machine may be busy; the figures are printed
LOST = ("in-push", "in-core", "out-busy", "out-idle", "both", "processor")  # Bento never connects these again
OTHERS = ("in-kv", "prints", "without")  # Bento connects the first itself, the rest never lost anything
BOXED_LOST, BOXED_OTHERS = ("boxed-both", "boxed-busy"), ("boxed-without",)  # the same in containers
CUT, NEAR = "cut-both", "near-both"  # on a host that is cut off, and on one that loses one server of three
TICK = "generate: {interval: 200ms, mapping: 'root = \"tick\"'}"


def configurations(directory: Path, port: int, second: str) -> dict[str, str]:
    """What each pipeline is, by its id. What one receives it writes to a file, what one sends goes to stream OUT."""

    def written(name: str) -> str:
        return f"file: {{path: {directory}/{name}.txt, codec: lines}}"

    lookup = "nats_kv: {urls: ['${NATS_URL}'], bucket: values, operation: get, key: k}"
    parts = {
        "in-push": (bound("push"), "", written("in-push")),
        "in-core": ("nats: {urls: ['${NATS_URL}'], subject: core.in}", "", written("in-core")),
        "in-kv": ("nats_kv: {urls: ['${NATS_URL}'], bucket: values, key: '>'}", "", written("in-kv")),
        "out-busy": (TICK, "", sent("out-busy")),
        "out-idle": (f"http_server: {{path: /post, address: '127.0.0.1:{port}'}}", "", sent("idle")),
        "both": (bound("both"), "", sent("both")),
        # What it reads is the value, and otherwise the message goes on as it was.
        "processor": (TICK, lookup, written("processor")),
        "prints": (TICK, "log: {level: ERROR, message: 'nats: connection closed'}", written("prints")),
        "without": (TICK, "", written("without")),
        "second": (TICK, "", sent("second", second)),
    }
    return {name: configuration(*part) for name, part in parts.items()}


def configuration(source: str, step: str, sink: str) -> str:
    steps = f"pipeline: {{processors: [{{{step}}}]}}\n" if step else ""
    return f"input: {{{source}}}\n{steps}output: {{{sink}}}\n"


def bound(durable: str) -> str:
    names = f"stream: IN, durable: {durable}, queue: {durable}, bind: true, subject: in.{durable}"
    return f"nats_jetstream: {{urls: ['${{NATS_URL}}'], {names}}}"


def sent(subject: str, url: str = "${NATS_URL}") -> str:
    return f"nats_jetstream: {{urls: ['{url}'], subject: out.{subject}}}"


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
            "out-idle": (lambda: asyncio.to_thread(self._post, mark), lambda: self._last("out.idle", mark)),
            "processor": (lambda: self._put("k", mark), lambda: self._in_file(name, mark)),
        }
        if name.endswith("both"):
            checks[name] = (
                lambda: self.stream.publish(f"in.{name}", mark),
                lambda: self._last(f"out.{name}", mark),
            )
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
            if name.endswith("busy"):
                return await self._count(f"out.{name}")
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


async def prepare(urls: list[str], *durables: str, replicas: int = 1) -> None:
    client = await nats.connect(urls)
    stream = client.jetstream()
    await stream.add_stream(name="IN", subjects=["in.>"], num_replicas=replicas)
    await stream.add_stream(name="OUT", subjects=["out.>"], num_replicas=replicas)
    for name in durables:
        config = ConsumerConfig(
            durable_name=name, deliver_subject=f"deliver.{name}", deliver_group=name, filter_subject=f"in.{name}",
            ack_policy=AckPolicy.EXPLICIT, ack_wait=30, max_ack_pending=1024,
        )  # fmt: skip
        await stream.add_consumer("IN", config)
    await (await stream.create_key_value(bucket="values")).put("k", b"v")
    await client.close()


async def figures(
    urls: list[str], directory: Path, port: int, names: tuple[str, ...], since: float
) -> dict[str, float]:
    """When each pipeline has moved something, in seconds since then."""
    client = await nats.connect(urls)
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


@dataclass
class Site:
    """One cluster in the outage, its pipelines, and which of them Bento never connects again."""

    cluster: RealCluster
    urls: list[str]
    lost: tuple[str, ...]
    others: tuple[str, ...]
    moving: tuple[str, ...]  # of the others, those that move data which is seen
    before: dict[str, Running] = field(default_factory=dict)
    moved: dict[str, float] = field(default_factory=dict)

    @property
    def pipelines(self) -> tuple[str, ...]:
        return (*self.lost, *self.others)

    def publish(self, configured: Mapping[str, str], **fields: Any) -> None:
        for name, text in configured.items():
            # May overlap, so it goes on while its host is cut off.
            self.cluster.publish(name, text.encode(), overlap="allow", **fields)

    def found(self) -> dict[str, Running]:
        return {name: self.cluster.the(name) for name in self.pipelines}


@dataclass
class Window:
    """The outage, when it is over. `boxed` None: there can be no container engine here."""

    plain: Site
    boxed: Site | None
    three: Site
    directory: Path
    port: int

    @property
    def sites(self) -> list[Site]:
        return [site for site in (self.plain, self.boxed, self.three) if site is not None]

    def moves(self, since: float, *, all_of_them: bool) -> None:
        """Wait until every pipeline, or everyone that was lost, has moved something, everywhere at once."""

        async def whole() -> None:
            async with asyncio.TaskGroup() as group:
                for site in self.sites:
                    group.create_task(one(site), name="figures")

        async def one(site: Site) -> None:
            names = (*site.lost, *site.moving) if all_of_them else site.lost
            site.moved = await figures(site.urls, self.directory, self.port, names, since)

        asyncio.run(whole())


def plain_site(stack: ExitStack, directory: Path, server: NatsServer, data: Path, port: int) -> Site:
    second = stack.enter_context(NatsServer(directory / "second", binary=require("nats-server")))
    asyncio.run(prepare([second.url]))
    cluster = stack.enter_context(real_cluster(directory / "plain", hosts=1, servers=server))
    site = Site(cluster, [server.url], LOST, (*OTHERS, "second"), OTHERS)
    site.publish(configurations(data, port, second.url))
    return site


def boxed_site(stack: ExitStack, directory: Path, server: NatsServer, engine: Engine) -> Site:
    made = real_cluster(directory / "boxed", driver="docker", hosts=1, engines=[engine], name="boxed", servers=server)
    site = Site(stack.enter_context(made), [server.url], BOXED_LOST, BOXED_OTHERS, ())
    site.publish(
        {
            "boxed-both": configuration(bound("boxed-both"), "", sent("boxed-both")),
            "boxed-busy": configuration(TICK, "", sent("boxed-busy")),
            "boxed-without": configuration(TICK, "", "drop: {}"),
        }
    )
    return site


def three_site(stack: ExitStack, directory: Path, servers: NatsCluster, ways: list[Way]) -> Site:
    """The first host by ways that can be cut, the second one directly."""
    asyncio.run(prepare(servers.urls, CUT, NEAR, replicas=3))
    made = real_cluster(
        directory / "three", hosts=2, servers=servers, ways={"host-1": ",".join(way.url for way in ways)}
    )
    there = servers.urls[:2]  # the third one is killed
    site = Site(stack.enter_context(made), there, (CUT,), (NEAR,), (NEAR,))
    for name, host in ((CUT, "host-1"), (NEAR, "host-2")):
        site.publish({name: configuration(bound(name), "", sent(name))}, placement={"required": {"host": host}})
    return site


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Window]:
    """Everything worked, then the outage was, and everything that was lost moves data again."""
    directory, port = tmp_path_factory.mktemp("healing"), free_port()
    (data := directory / "data").mkdir()
    with ExitStack() as stack:
        server = stack.enter_context(NatsServer(directory / "nats", binary=require("nats-server")))
        servers = NatsCluster(directory / "three-nats", binary=require("nats-server"), advertise=False)
        stack.enter_context(servers)
        ways = [stack.enter_context(way_to(url)) for url in servers.urls]
        asyncio.run(prepare([server.url], "push", "both", "boxed-both"))
        try:
            engine = request.getfixturevalue("engines_session")[0]
        except pytest.skip.Exception:
            engine = None
        plain = plain_site(stack, directory, server, data, port)
        boxed = None if engine is None else boxed_site(stack, directory, server, engine)
        outage = Window(plain, boxed, three_site(stack, directory, servers, ways), data, port)
        for site in outage.sites:
            for name in site.pipelines:
                site.cluster.until_state(name, "running")
        outage.moves(time.monotonic(), all_of_them=True)
        for site in outage.sites:
            site.before = site.found()

        server.kill()
        servers[2].kill()
        for way in ways:
            way.cut()
        over = time.monotonic() + AWAY_S
        while time.monotonic() < over:
            for site in outage.sites:
                assert site.found() == site.before, "nobody is touched meanwhile"
            time.sleep(1.0)
        server.start()
        servers[2].start(wait=False)
        for way in ways:
            way.mend()
        outage.moves(time.monotonic(), all_of_them=False)
        for site in outage.sites:
            print("seconds from NATS's return to data:", {name: round(s, 1) for name, s in sorted(site.moved.items())})
        yield outage
        if boxed is not None:
            boxed.cluster.remove_all()


def assert_healed(site: Site) -> None:
    """In place, each one once, and nobody else; and it is over."""
    for name in site.pipelines:
        site.cluster.until_state(name, "running")
    after, before = site.found(), site.before
    assert {name for name in after if after[name] != before[name]} == set(site.lost)
    assert {name: after[name].execution for name in after} == {name: before[name].execution for name in before}
    assert counts(site.cluster) == {name: (0, 1 if name in site.lost else 0) for name in site.pipelines}
    site.cluster.assert_all_alive()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_pipeline_moves_data_again_after_a_long_outage(window: Window) -> None:
    assert_healed(window.plain)
    # Nobody is touched again, and the rest has worked all along.
    after = [site.found() for site in window.sites]
    window.moves(time.monotonic(), all_of_them=True)
    assert [site.found() for site in window.sites] == after


@pytest.mark.docker
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_so_does_every_container(window: Window, engines_session: list[Engine]) -> None:
    assert window.boxed is not None
    assert_healed(window.boxed)
    for name in window.boxed.lost:
        assert window.boxed.found()[name].runtime == window.boxed.before[name].runtime, "the same container"


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_one_host_that_was_cut_off_heals_and_one_server_of_three_is_not_missed(window: Window) -> None:
    assert_healed(window.three)
