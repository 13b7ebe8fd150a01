"""Admission against the real things: Bento's lint, objects in NATS, and the examples as Bento runs them."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import nats
import nats.js
import pytest
from nats.aio.client import Client

from scheduler.admission import Admission
from scheduler.core.candidates import Candidate, Ready, Rejected, Unavailable
from scheduler.lint import BentoLinter, Linter, LintUnavailable, NoLint
from shared.archive import write_archive
from shared.bundle import read_bundle
from shared.clock import SystemClock
from shared.components import INPUTS
from shared.configuration import read_configuration
from shared.connection import ConnectionSettings
from shared.keys import CONFIG_BYTES_MAX, Keys
from shared.manifest import read_manifests
from shared.nats_store import NatsStore, connect
from shared.nats_streams import ensure_streams
from shared.record import PipelineRecord, parse_record
from tests.support import processes
from tests.support.components import ROOT, require
from tests.support.nats_servers import NatsServer

T = TypeVar("T")
PLAIN = b"input: {generate: {mapping: 'root = {}'}}\noutput: {drop: {}}\n"


# --- Bento's lint

WRAPPERS = {"batched", "broker", "dynamic", "read_until", "resource", "sequence"}


def test_the_table_knows_every_input_of_this_bento() -> None:
    listed = subprocess.run(
        [require("bento"), "list", "inputs"], capture_output=True, text=True, check=True, timeout=60
    )
    names = {line.removeprefix("  - ") for line in listed.stdout.splitlines() if line.startswith("  - ")}
    assert names
    assert names - WRAPPERS <= set(INPUTS)


CLEAN = [
    ("the least", "input: {generate: {mapping: 'root = {}'}}"),
    ("variables that are not set", "input: {nats: {urls: [${NATS_URL}, ${OTHER}], subject: a, queue: '${Q}'}}"),
    ("a number from the host", "pipeline: {threads: ${THREADS}}"),
    ("a number of the execution", "pipeline: {threads: ${SHOAL_REPLICAS}}"),
    ("a default", "pipeline: {threads: ${THREADS:4}}"),
    ("a default that refers", "output: {file: {path: '${A:${B}}'}}"),
    ("an escaped reference", "output: {file: {path: '${{NOT}}'}}"),
    ("a Bloblang interpolation", "output: {file: {path: '${! json(\"a\") }'}}"),
    ("a deprecated field alone", "input: {nats_stream: {urls: [a], cluster_id: b, subject: c}}"),
    ("a second document", "input: {generate: {mapping: 'root = {}'}}\n---\nid: orders\n"),
]

REFUSED = [
    ("an unknown field", "input:\n  nats: {subject: a, urls: [b], quue: c}", "line 2", "field quue not recognised"),
    ("an unknown component", "input:\n  frobnicate: {}", "line", "Bento that has this component"),
    ("broken Bloblang", "pipeline:\n  processors:\n    - mapping: 'root = this.foo('", "line 3", "expected"),
    ("a wrong type", "pipeline: {threads: many}", "line 1", "cannot unmarshal"),
    ("a bad label", "input: {label: BAD-LABEL, generate: {mapping: 'root = {}'}}", "line 1", "invalid label"),
    ("a required field", "input: {nats: {urls: [a]}}", "line 1", "field subject is required"),
    (
        "two kinds",
        "input: {nats: {subject: a, urls: [b]}, generate: {mapping: 'root = {}'}}",
        "line",
        "multiple candidates",
    ),
]


def lint(*texts: str, **env: str) -> list[tuple[str, ...]]:
    configurations = [read_configuration(text.encode()) for text in texts]
    return asyncio.run(BentoLinter(require("bento")).lint(configurations, env))


def test_clean_configurations_and_refused_ones_in_one_call() -> None:
    found = lint(*[text for _, text in CLEAN], *[text for _, text, _, _ in REFUSED])
    for (name, _), complaints in zip(CLEAN, found, strict=False):
        assert complaints == (), name
    for (name, _, where, what), complaints in zip(REFUSED, found[len(CLEAN) :], strict=True):
        assert len(complaints) == 1, name
        assert where in complaints[0], name
        assert what in complaints[0], name


def test_the_record_decides_what_a_variable_is() -> None:
    text = "pipeline:\n  threads: ${THREADS}\n"
    assert lint(text, THREADS="4") == [()]
    ((complaint,),) = lint(text, THREADS="many")
    assert "pipeline.yaml line 2 is 'threads: ${THREADS}'" in complaint


def test_files_of_a_tar_are_found_by_relative_path() -> None:
    main = b'input:\n  generate:\n    mapping: |\n      import "./lib/x.blobl"\n      root = {}\n'
    with_file = read_configuration(write_archive([("pipeline.yaml", main), ("lib/x.blobl", b"map a { root = this }")]))
    without = read_configuration(write_archive([("pipeline.yaml", main), ("other", b"")]))
    found = asyncio.run(BentoLinter(require("bento")).lint([with_file, without]))
    assert found[0] == ()
    assert "no such file" in found[1][0]


def test_what_bento_takes_ages_for_is_no_verdict() -> None:
    nested = f"pipeline: {{processors: [{{mapping: 'root = {'(' * 200_000}1{')' * 200_000}'}}]}}\n"

    async def scenario() -> None:
        linter = BentoLinter(require("bento"), timeout_s=0.05)
        with pytest.raises(LintUnavailable):
            await linter.lint([read_configuration(nested.encode())])

    asyncio.run(scenario())


# --- admission over NATS


def record(**fields: Any) -> PipelineRecord:
    return parse_record(
        "orders", json.dumps({"id": "orders", "status": "published", "version": "1", **fields}).encode()
    )


class Rig:
    """A leading admission on a real store, and a user with raw nats-py."""

    def __init__(self, store: NatsStore, keys: Keys, linter: Linter, user: Client) -> None:
        self.store, self.keys = store, keys
        self.admission = Admission(store, keys, linter, SystemClock())
        self.user = user

    async def configs(self) -> Any:
        return await self.user.jetstream().object_store(self.keys.configs)

    async def put(self, data: bytes) -> None:
        await (await self.configs()).put("orders/1", data)

    def want(self, wanted: PipelineRecord) -> None:
        self.admission.want({("orders", "1"): wanted})

    async def verdict(self, kind: type[Candidate]) -> Any:
        """The verdict on orders/1 as soon as it is of a kind."""
        while True:
            self.admission.changed.clear()
            found = self.admission.candidates().get(("orders", "1"))
            if isinstance(found, kind):
                return found
            await self.admission.changed.wait()

    async def watch(self) -> None:
        async with aclosing(self.store.watch_objects(self.keys.configs)) as items:  # type: ignore[type-var]
            async for item in items:
                self.admission.fold(item)


@asynccontextmanager
async def rig(server: NatsServer, cluster: str, linter: Linter) -> AsyncIterator[Rig]:
    keys = Keys(cluster)
    store = await connect(ConnectionSettings(servers=(server.url,)))
    user = await nats.connect(server.url)
    try:
        await ensure_streams(store, keys)
        made = Rig(store, keys, linter, user)
        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            tasks = [group.create_task(made.watch()), group.create_task(made.admission.run())]
            yield made
            for task in tasks:
                task.cancel()
    finally:
        await user.close()
        await store.close()


def run(
    server: NatsServer, cluster: str, scenario: Callable[[Rig], Coroutine[Any, Any, None]], linter: Linter | None = None
) -> None:
    async def main() -> None:
        async with rig(server, cluster, linter or NoLint()) as made:
            await scenario(made)

    asyncio.run(main())


def test_from_missing_to_ready_with_real_lint(nats_session: NatsServer, cluster_name: str) -> None:
    async def scenario(made: Rig) -> None:
        made.want(record(env={"N": "1"}))
        missing = await made.verdict(Unavailable)
        assert missing.missing
        assert f"`nats object put {made.keys.configs} FILE --name orders/1`" in missing.reason
        await made.put(b"input: {generate: {mapping: 'root = {}', foo: 1}}\n")
        refused = await made.verdict(Rejected)
        assert "field foo not recognised" in refused.problems[0]
        tar = write_archive([("pipeline.yaml", PLAIN), ("schema.json", b"{}")])
        await made.put(tar)
        ready = await made.verdict(Ready)
        data = await made.store.get_object(made.keys.bundles, ready.pin.digest, bytes_max=10**8)
        runtime, files = read_bundle(data, ready.pin.digest)
        assert dict(runtime.env) == {"N": "1"}
        assert files == (("pipeline.yaml", PLAIN), ("schema.json", b"{}"))
        assert ready.pin.config_digest == read_configuration(tar).digest

    run(nats_session, cluster_name, scenario, BentoLinter(require("bento")))


def test_publishing_a_prepared_object_takes_little_more_than_writing_the_bundle(
    nats_session: NatsServer, cluster_name: str
) -> None:
    async def scenario(made: Rig) -> None:
        await made.put(PLAIN)
        # The lint's result is not visible from outside; wanting it once and asking again with an edit is.
        made.want(record())
        await made.verdict(Ready)
        begun = time.monotonic()
        made.want(record(env={"A": "1"}))
        await made.verdict(Ready)
        took_s = time.monotonic() - begun
        print(f"from wanted to ready: {took_s * 1000:.1f} ms")
        assert took_s < 2.0

    run(nats_session, cluster_name, scenario, BentoLinter(require("bento")))


def test_an_object_with_missing_chunks(nats_session: NatsServer, cluster_name: str) -> None:
    async def scenario(made: Rig) -> None:
        await made.put(PLAIN)
        # Prepared on arrival: only what is fetched from now on misses chunks.
        for _ in range(3000):
            if made.admission._configurations._kept:
                break
            await asyncio.sleep(0.01)
        info = await (await made.configs()).get_info("orders/1")
        await made.user.jetstream().purge_stream(
            f"OBJ_{made.keys.configs}", subject=f"$O.{made.keys.configs}.C.{info.nuid}"
        )
        made.admission._configurations._kept.clear()
        made.want(record(env={"A": "1"}))
        refused = await made.verdict(Rejected)
        assert "chunk" in refused.problems[0]
        await made.put(PLAIN + b"# whole\n")
        await made.verdict(Ready)

    run(nats_session, cluster_name, scenario)


def test_an_object_that_is_too_large(nats_session: NatsServer, cluster_name: str) -> None:
    async def scenario(made: Rig) -> None:
        await made.put(b"#" * (CONFIG_BYTES_MAX + 1))
        made.want(record())
        refused = await made.verdict(Rejected)
        assert str(CONFIG_BYTES_MAX) in refused.problems[0]

    run(nats_session, cluster_name, scenario)


def test_nats_away_and_back(nats_server: NatsServer, cluster_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scheduler.configurations.FETCH_TIMEOUT_S", 2.0)

    async def scenario(made: Rig) -> None:
        made.want(record())
        assert (await made.verdict(Unavailable)).missing
        nats_server.stop()
        made.want(record(env={"A": "1"}))
        assert not (await made.verdict(Unavailable)).missing
        nats_server.start()
        async with asyncio.timeout(30):
            while not (await made.verdict(Unavailable)).missing:
                made.admission.changed.clear()
                await made.admission.changed.wait()

    run(nats_server, cluster_name, scenario)


# --- examples


async def eventually(what: str, look: Callable[[], Awaitable[T | None]], within_s: float = 30.0) -> T:
    """What `look` finds, as soon as it finds something."""
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        found = await look()
        if found is not None:
            return found
        await asyncio.sleep(0.05)
    raise AssertionError(f"not within {within_s:g} s: {what}")


class Bentos:
    """Bento processes on examples, as a runner would start them."""

    def __init__(self, server: NatsServer, directory: Path) -> None:
        self._server, self._directory = server, directory
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self, example: str, execution: str, **env: str) -> int:
        """Its HTTP port."""
        path = ROOT / "examples" / example
        main = path / "pipeline.yaml" if path.is_dir() else path
        port = processes.free_port()
        command: list[str | Path] = [require("bento"), "--set", f"http.address=127.0.0.1:{port}", "-c", main]
        environment = {
            "PATH": os.environ["PATH"],
            "NATS_URL": self._server.url,
            "SHOAL_EXECUTION": execution,
            "SHOAL_PIPELINE": execution.partition("-")[0],
            **env,
        }
        self._processes.append(
            processes.spawn(command, self._directory / f"{execution}.log", env=environment, cwd=main.parent)
        )
        return port

    async def ready(self, port: int) -> None:
        async def look() -> bool | None:
            return await asyncio.to_thread(request, port, "GET", "/ready") == 200 or None

        await eventually(f"Bento on port {port} is ready", look)

    def stop(self) -> None:
        for process in self._processes:
            processes.terminate(process)


def request(port: int, method: str, path: str, body: bytes = b"") -> int:
    """The status of one HTTP request; 0 if nobody answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path, body=body)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


@pytest.fixture
def bentos(nats_server: NatsServer, tmp_path: Path) -> Iterator[Bentos]:
    started = Bentos(nats_server, tmp_path)
    try:
        yield started
    finally:
        started.stop()


async def create(js: nats.js.JetStreamContext) -> None:
    """The examples' streams and consumers, with the server's own API and the documents that the `nats` CLI takes."""
    for path in sorted((ROOT / "examples/nats").glob("*.json"), key=lambda path: path.name.startswith("consumer")):
        document = json.loads(path.read_text())
        kind, name, *rest = path.stem.split("-")
        if kind == "stream":
            answer = await js._nc.request(f"$JS.API.STREAM.CREATE.{name}", json.dumps(document).encode(), timeout=10)
        else:
            body = json.dumps({"stream_name": name, "config": document}).encode()
            answer = await js._nc.request(f"$JS.API.CONSUMER.DURABLE.CREATE.{name}.{rest[0]}", body, timeout=10)
        assert "error" not in json.loads(answer.data), answer.data


async def messages(js: nats.js.JetStreamContext, stream: str) -> list[dict[str, Any]]:
    info = await js.stream_info(stream)
    return [
        json.loads((await js.get_msg(stream, seq)).data or b"null")
        for seq in range(info.state.first_seq, info.state.last_seq + 1)
    ]


def test_every_example_passes_lint() -> None:
    found = [read_configuration(manifest.configuration) for manifest in read_manifests(ROOT / "examples")]
    assert found
    assert asyncio.run(BentoLinter(require("bento")).lint(found)) == [()] * len(found)


def test_every_example_file_is_one_that_bento_itself_accepts() -> None:
    for manifest in read_manifests(ROOT / "examples"):
        path = ROOT / manifest.name
        done = subprocess.run(
            [require("bento"), "lint", path.name], cwd=path.parent, capture_output=True, text=True, timeout=60
        )
        assert (done.returncode, done.stderr) == (0, ""), manifest.name


def test_the_examples_together(nats_server: NatsServer, bentos: Bentos) -> None:
    """Orders come over HTTP and from elsewhere, two copies share the packing, all are audited, one place ticks."""

    async def scenario() -> None:
        client = await nats.connect(nats_server.url)
        try:
            js = client.jetstream()
            await create(js)
            webhook = processes.free_port()
            ports = [
                bentos.start("orders.yaml", "orders-0-1"),
                bentos.start("orders.yaml", "orders-1-1"),
                bentos.start("ticker.yaml", "ticker-0-1", SHOAL_HOST="here"),
                bentos.start("webhook.yaml", "webhook-0-1", WEBHOOK_PORT=str(webhook)),
                bentos.start("audit", "audit-0-1"),
            ]
            for port in ports:
                await bentos.ready(port)
            body = b'{"region":"North","items":[{"price":5,"quantity":2}]}'
            assert await asyncio.to_thread(request, webhook, "POST", "/orders", body) == 200
            assert await asyncio.to_thread(request, webhook, "POST", "/orders", b"no json") >= 400
            for number in range(200):
                order = {"id": f"o{number}", "region": "south", "items": [{"price": 2, "quantity": number + 1}]}
                await js.publish("orders.south", json.dumps(order).encode())
            await js.publish("orders.south", b"rubbish")
            await js.publish("orders.south", b'{"id": "no-items", "region": "south"}')

            async def all_shipped() -> list[dict[str, Any]] | None:
                found = await messages(js, "SHIPMENTS")
                return found if len(found) >= 202 else None

            shipped = await eventually("all orders are shipped", all_shipped)
            assert len(shipped) == 202
            totals = {found["order"]: found["total"] for found in shipped}
            assert [totals[f"o{number}"] for number in range(200)] == [2 * (number + 1) for number in range(200)]
            assert {found["region"] for found in shipped} == {"north", "south"}
            assert {found["packed_by"] for found in shipped} == {"orders-0-1", "orders-1-1"}

            async def all_audited() -> list[dict[str, Any]] | None:
                found = await messages(js, "REJECTS")
                return found if len(found) >= 2 else None

            rejects = await eventually("what is no order is reported", all_audited)
            assert sorted(found["order"] for found in rejects) == ["rubbish", '{"id": "no-items", "region": "south"}']

            async def ticked() -> list[dict[str, Any]] | None:
                return await messages(js, "TICKS") or None

            ticks = await eventually("the ticker ticks", ticked)
            assert {(tick["execution"], tick["host"]) for tick in ticks} == {("ticker-0-1", "here")}
        finally:
            await client.close()

    asyncio.run(scenario())


def test_the_setup_script_makes_what_the_examples_need(nats_server: NatsServer, tmp_path: Path) -> None:
    nats_cli = require("nats")
    env = {"PATH": f"{nats_cli.parent}:{os.environ['PATH']}", "NATS_URL": nats_server.url, "HOME": str(tmp_path)}
    for _ in range(2):  # a second run changes nothing
        done = subprocess.run([ROOT / "examples/nats/setup.sh"], env=env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr

    async def look() -> None:
        client = await nats.connect(nats_server.url)
        try:
            js = client.jetstream()
            for name in ("ORDERS", "SHIPMENTS", "TICKS", "REJECTS"):
                await js.stream_info(name)
            for name in ("orders", "audit"):
                info = await js.consumer_info("ORDERS", name)
                assert info.config.deliver_group == name
        finally:
            with contextlib.suppress(OSError):
                await client.close()

    asyncio.run(look())
