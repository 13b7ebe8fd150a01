"""The demo: a real cluster on this machine, real Bento pipelines, real failures, and a count of every message.

    python -m cli.demo      DEMO_EXECUTOR=docker runs containers (needs an engine and the runner image, DEMO_IMAGE)

Everything it starts ends with it, also after Ctrl-C. Exit code 0 only if every message arrived.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cli.cluster import Cluster, picture
from cli.executions import execution_rows
from cli.leader import leadership
from cli.local import LocalCluster, free_port
from cli.options import Options
from cli.up import start
from shared.errors import Refused, ShoalError
from shared.keys import Keys
from shared.nats_store import NatsStore, connect

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
WEB_ORDERS = 50
ORDER_PAUSE_S = 0.02
ARRIVE_S = 60.0  # messages that a dead host had fetched are delivered again after the consumer's ack_wait of 30 s
MOVED_S = 60.0


def main() -> int:
    """Run the demo; the exit code."""
    executor = os.environ.get("DEMO_EXECUTOR", "process")
    stop = threading.Event()
    with tempfile.TemporaryDirectory(prefix="shoal-demo-") as directory:
        local = LocalCluster(Path(directory), free_port(), executor=executor, say=_say)
        web_port = free_port()
        local.agent_options = ["--env", f"WEBHOOK_PORT={web_port}", *_docker_options(executor)]
        try:
            _title(f"A cluster: one NATS server, two schedulers, three hosts (executor: {executor})")
            start(local, hosts=3, schedulers=2, stop=stop)
            shown = asyncio.run(_Demo(local, web_port, executor).run())
        except ShoalError as error:
            print(f"\nThe demo failed: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("\ninterrupted", file=sys.stderr)
            return 130
        finally:
            _say("stopping everything")
            local.stop()
    print(f"\nShown: {shown}")
    return 0


def _docker_options(executor: str) -> list[str]:
    if executor != "docker":
        return []
    options = ["--docker-host", os.environ["DOCKER_HOST"]] if os.environ.get("DOCKER_HOST") else []
    return options + (["--image", os.environ["DEMO_IMAGE"]] if os.environ.get("DEMO_IMAGE") else [])


class _Demo:
    """The story, step by step."""

    def __init__(self, local: LocalCluster, web_port: int, executor: str) -> None:
        self._local = local
        self._web_port = web_port
        self._executor = executor
        self._store: NatsStore
        self._cluster: Cluster
        self._sent: set[str] = set()
        self._keep_sending = True

    async def run(self) -> str:
        """The story; what was shown, in one line."""
        options = Options(server=self._local.url)
        self._store = await connect(options.connection(), name="demo")
        self._cluster = Cluster(self._store, Keys())
        try:
            await self._streams()
            async with asyncio.TaskGroup() as group:
                sending = group.create_task(self._send_orders(), name="orders")
                await self._publish()
                await self._pause_and_resume()
                led = await self._kill_the_leader()
                moved = await self._kill_a_host()
                await self._post_web_orders(WEB_ORDERS)
                self._keep_sending = False
                await sending
            count = await self._count()
        finally:
            await self._store.close()
        moves = ", ".join(f"{name} after {seconds:.1f} s" for name, seconds in moved.items())
        return (
            f"5 pipelines on 3 hosts; paused and resumed in place; a new leader after {led:.1f} s; a lost host's "
            f"pipelines back elsewhere ({moves}); all {count} orders arrived, none twice"
        )

    async def _streams(self) -> None:
        _title("Streams and consumers for the example pipelines (examples/nats)")
        for path in sorted((EXAMPLES / "nats").glob("stream-*.json")):
            config = json.loads(path.read_text())
            await self._store.link.api(f"STREAM.CREATE.{config['name']}", config, timeout=10)
        for path in sorted((EXAMPLES / "nats").glob("consumer-*.json")):
            stream, name = path.stem.removeprefix("consumer-").split("-")
            body = {"stream_name": stream, "config": json.loads(path.read_text())}
            await self._store.link.api(f"CONSUMER.DURABLE.CREATE.{stream}.{name}", body, timeout=10)
        _say("ORDERS, SHIPMENTS, REJECTS, TICKS; from now on 50 orders a second flow into ORDERS")

    async def _send_orders(self) -> None:
        while self._keep_sending:
            number = f"order-{len(self._sent):05d}"
            order = {"id": number, "region": "eu", "items": [{"name": "fish", "price": 3, "quantity": 2}]}
            await self._store.append("orders.demo", json.dumps(order).encode(), message_id=number)
            self._sent.add(number)
            await asyncio.sleep(ORDER_PAUSE_S)

    async def _publish(self) -> None:
        _title(
            "Publish five pipelines: orders from JetStream to JetStream, an audit of them, orders over HTTP, and two "
            "sources that must never run twice"
        )
        await self._shoal("apply", "-f", str(EXAMPLES), "--wait")
        await self._shoal("executions")
        await self._post_web_orders(WEB_ORDERS)

    async def _post_web_orders(self, count: int) -> None:
        """POST orders to the webhook, wherever it runs now (all hosts of the demo share this machine's network)."""
        posted = 0
        deadline = time.monotonic() + MOVED_S
        while posted < count:
            number = f"web-{len(self._sent):05d}"
            if await asyncio.to_thread(_post, self._web_port, {"id": number, "region": "web", "items": []}):
                self._sent.add(number)
                posted += 1
            elif time.monotonic() > deadline:
                raise Refused(f"the webhook does not answer on port {self._web_port}")
            else:
                await asyncio.sleep(0.2)
        _say(f"{count} orders came in over HTTP")

    async def _pause_and_resume(self) -> None:
        _title("Pause and resume one: the same execution, on the same host")
        before = await self._place("ticker")
        await self._shoal("pause", "ticker", "--wait")
        await self._shoal("resume", "ticker", "--wait")
        after = await self._place("ticker")
        if before != after:
            raise Refused(f"ticker was {before} and is {after} now")
        _say(f"ticker is execution {after[0]} on {after[1]}, as before")

    async def _kill_the_leader(self) -> float:
        row = await leadership(self._cluster)
        _title(f"Kill the leader, {row['name']} (SIGKILL)")
        runtimes = await self._runtimes()
        started = time.monotonic()
        self._local.kill(row["name"])

        async def another() -> bool:
            now = await self._cluster.read(self._cluster.keys.control, "journal")
            return bool(json.loads(now.value or b"{}").get("holder") != row["instance"])

        taken = await self._until(another, started, "a new leader")
        _say(f"the standby leads after {taken:.2f} s")
        if await self._runtimes() != runtimes:
            raise Refused("an execution was restarted by a change of leader")
        _say("no execution noticed")
        await self._shoal("leader")
        self._local.start_scheduler(row["name"])
        return taken

    async def _kill_a_host(self) -> dict[str, float]:
        host = (await self._place("ticker"))[1]
        lost = [r for r in execution_rows(await picture(self._cluster)) if r["host"] == host]
        names = sorted({r["pipeline"] for r in lost})
        _title(f"Kill {host}, as if it lost power: its agent, its runners, its Bentos ({', '.join(names)})")
        started = time.monotonic()
        self._local.kill(host)
        for row in lost:
            self._kill_execution(row["runtime"])
        moved: dict[str, float] = {}

        async def all_back() -> bool:
            rows = execution_rows(await picture(self._cluster))
            for old in lost:
                slot = f"{old['pipeline']} ({old['overlap']})"
                back = [
                    r
                    for r in rows
                    if (r["pipeline"], r["slot"]) == (old["pipeline"], old["slot"])
                    and r["host"] != host
                    and r["state"] == "ready"
                ]
                if back and slot not in moved:
                    moved[slot] = time.monotonic() - started
                    _say(f"{old['pipeline']} runs again on {back[0]['host']} after {moved[slot]:.1f} s")
            return len(moved) == len({f"{r['pipeline']} ({r['overlap']})" for r in lost})

        await self._until(all_back, started, f"everything of {host} elsewhere")
        await self._shoal("executions")
        await self._shoal("hosts")
        return moved

    def _kill_execution(self, runtime: str) -> None:
        if self._executor == "docker":
            subprocess.run(["docker", "kill", runtime], capture_output=True, check=False, timeout=60)
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(runtime), signal.SIGKILL)  # Bento dies with its runner

    async def _count(self) -> int:
        _title("Count: every order that was accepted must have been shipped, none twice")
        wanted = set(self._sent)
        started = time.monotonic()
        shipped: Counter[str] = Counter()

        async def all_there() -> bool:
            nonlocal shipped
            shipped = await self._shipped(len(wanted))
            return wanted <= set(shipped)

        try:
            await self._until(all_there, started, "every order", ARRIVE_S)
        except Refused as error:
            missing = sorted(wanted - set(shipped))
            raise Refused(f"{len(missing)} of {len(wanted)} orders never arrived, such as {missing[:3]}") from error
        twice = [order for order, count in shipped.items() if count > 1]
        if twice:
            raise Refused(f"{len(twice)} orders were shipped more than once, such as {twice[:3]}")
        _say(f"{len(wanted)} orders were accepted, {len(wanted)} are in SHIPMENTS, none twice")
        return len(wanted)

    async def _shipped(self, expected: int) -> Counter[str]:
        found: Counter[str] = Counter()
        messages = self._store.history("SHIPMENTS", "shipments.>", last=expected * 2 + 1000, follow=False)
        async with contextlib.aclosing(messages):  # type: ignore[type-var]
            async for message in messages:
                found[str(json.loads(message.data)["order"])] += 1
        return found

    # --- small things

    async def _place(self, pipeline: str) -> tuple[str, str]:
        rows = execution_rows(await picture(self._cluster), pipeline)
        if not rows:
            raise Refused(f"nothing runs of {pipeline}")
        return rows[0]["execution"], rows[0]["host"]

    async def _runtimes(self) -> set[str]:
        return {r["runtime"] for r in execution_rows(await picture(self._cluster))}

    async def _until(self, done: Callable[[], Any], started: float, what: str, limit: float = MOVED_S) -> float:
        while not await done():
            if time.monotonic() - started > limit:
                raise Refused(f"{what}: not within {limit:g} s")
            await asyncio.sleep(0.05)
        return time.monotonic() - started

    async def _shoal(self, *arguments: str) -> None:
        """Run a command as a user would, and show it."""
        print(f"    $ shoal {' '.join(a.replace(str(EXAMPLES), 'examples') for a in arguments)}", flush=True)
        command = [sys.executable, "-m", "cli.main", "--server", self._local.url, *arguments]
        done = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        output, _ = await done.communicate()
        for line in output.decode("utf-8", "replace").splitlines():
            print(f"    {line}", flush=True)
        if done.returncode != 0:
            raise Refused(f"`shoal {' '.join(arguments)}` ended with code {done.returncode}")


def _post(port: int, order: dict[str, Any]) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("POST", "/orders", json.dumps(order))
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _title(text: str) -> None:
    print(f"\n== {text}", flush=True)


def _say(text: str) -> None:
    print(f"   {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
