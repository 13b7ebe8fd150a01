"""A real agent as a child process, on real NATS, with the process executor and real Bento; assignments are written by
the test itself, so no scheduler takes part."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import shutil
import signal
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import Popen
from typing import Any

from agent import process_table
from agent.process_table import ProcessFile
from shared.archive import write_archive
from shared.bundle import Runtime
from shared.connection import ConnectionSettings
from shared.documents import Assigned, Assignment, Heartbeat, Report, Session, decode, encode
from shared.errors import StoreError
from shared.keys import Keys, assign_key
from shared.nats_store import NatsStore, connect
from shared.nats_streams import ensure_streams
from shared.states import Overlap, Wanted
from tests.support import processes
from tests.support.components import ROOT, require

STORE_ID = "0123456789abcdef"
POLL_S = 0.02

STEADY = """
input:
  generate: {interval: 1s, mapping: 'root = "tick"'}
output:
  drop: {}
"""


@dataclass
class AgentProcess:
    """The agent of one host; killed and started at will, its directories stay."""

    host: str
    cluster: str
    url: str
    directory: Path
    store: NatsStore
    run_dir: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="shoal-test-", dir="/dev/shm")))
    executor: str = "process"
    process: Popen[bytes] | None = None
    plan: int = 0
    told: Assignment | None = None  # last
    _http: int = 0

    @property
    def keys(self) -> Keys:
        return Keys(self.cluster)

    @property
    def log(self) -> Path:
        return self.directory / f"{self.host}.log"

    # --- the process

    def start(self, *options: str) -> None:
        self._http = processes.free_port()
        self.process = processes.spawn(
            [
                *(sys.executable, "-m", "cli.main", "--server", self.url, "--cluster", self.cluster, "agent"),
                *("--host", self.host, "--executor", self.executor, "--state-dir", self.directory / self.host),
                *("--run-dir", self.run_dir, "--metrics", f"127.0.0.1:{self._http}", "--bento", require("bento")),
                *options,
            ],
            self.log,
            cwd=ROOT,
        )

    def kill(self) -> None:
        """SIGKILL: executions go on."""
        assert self.process is not None
        processes.kill(self.process)

    def terminate(self) -> int:
        """SIGTERM; its exit code."""
        assert self.process is not None
        processes.terminate(self.process, grace_s=60.0)
        return self.process.returncode

    def said(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def health(self) -> dict[str, Any]:
        """What /healthz says, whatever its status is; {} while nobody listens."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._http}/healthz", timeout=5) as answer:
                return dict(json.load(answer))
        except urllib.error.HTTPError as error:
            with error:
                return dict(json.load(error))
        except OSError:
            return {}

    def metrics(self) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self._http}/metrics", timeout=5) as answer:
            return str(answer.read().decode())

    # --- executions on this machine

    def executions(self) -> dict[str, ProcessFile]:
        """Process files by execution."""
        found = [process_table.read(path) for path in self.run_dir.glob("executions/*")]
        return {content.execution: content for content in found if content is not None}

    def alive(self) -> list[str]:
        """Executions whose runner lives."""
        files = self.executions().values()
        return sorted(f.execution for f in files if f.process is not None and process_table.alive(f.process))

    def health_of(self, execution: str) -> Mapping[str, Any]:
        (path,) = self.run_dir.glob(f"executions/*-{execution}/health.json")
        found: Mapping[str, Any] = json.loads(path.read_text())
        return found

    def end_executions(self) -> None:
        """Kill what is left, runners first: their Bentos die with them."""
        for content in self.executions().values():
            if content.process is not None:
                marker = f"SHOAL_EXECUTION={content.execution}".encode()
                for member in process_table.session_of(content.process, marker):
                    process_table.send(member, signal.SIGKILL)

    # --- the store

    async def assign(self, *items: Assigned, **changes: Any) -> None:
        """Write the next assignment. It answers the session that the host's key shows, once there is one."""
        self.plan += 1
        known: dict[str, Any] = {
            "store_id": STORE_ID,
            "term": 1,
            "plan": self.plan,
            "host": self.host,
            "session": changes["session"] if "session" in changes else await self.session(),
            "executions": items,
        }
        document = self.told = Assignment(**{**known, **changes})
        await self.store.write(self.keys.control, assign_key(self.host), encode(document))

    async def answer(self, session: Session) -> None:
        """Write what was assigned last again, for this session."""
        assert self.told is not None
        await self.assign(*self.told.executions, session=session)

    async def session(self, within_s: float = 30.0) -> Session:
        """The session that the host's key shows, once there is one."""
        end = time.monotonic() + within_s
        while time.monotonic() < end:
            with contextlib.suppress(StoreError):
                beat = await self.heartbeat()
                if beat is not None:
                    return beat.session
            await asyncio.sleep(POLL_S)
        raise AssertionError(f"no heartbeat within {within_s} s\n{processes.log_tail(self.log)}")

    async def item(
        self, pipeline: str, config: str = STEADY, *, wanted: Wanted = Wanted.RUN, serial: int = 1, **runtime: Any
    ) -> Assigned:
        """An execution of this configuration, its bundle stored."""
        digest, data = bundle(pipeline, config, **runtime)
        await self.store.put_object(self.keys.bundles, digest, data)
        return Assigned(
            execution=f"{pipeline}-0-{serial}",
            pipeline=pipeline,
            slot=0,
            replicas=1,
            version="1",
            digest=digest,
            wanted=wanted,
            overlap=Overlap.EXCLUSIVE,
            lease_bound=True,
            stop_grace_s=runtime.get("stop_grace_s", 22.0),
            cpu=0.0,
            memory_bytes=0,
        )

    async def report(self) -> Report | None:
        entry = await self.store.read(self.keys.reports, self.host)
        return None if entry.value is None else decode(Report, entry.value)

    async def heartbeat(self) -> Heartbeat | None:
        entry = await self.store.read(self.keys.hosts, self.host)
        return None if entry.value is None else decode(Heartbeat, entry.value)

    async def reports(self, holds: Callable[[Report], bool], within_s: float = 30.0) -> Report:
        """Wait for a report of which it holds."""
        seen: Report | None = None
        end = time.monotonic() + within_s
        while time.monotonic() < end:
            try:
                seen = await self.report()
            except StoreError:
                seen = None
            if seen is not None and holds(seen):
                return seen
            await asyncio.sleep(POLL_S)
        raise AssertionError(f"no such report within {within_s} s; last: {seen}\n{processes.log_tail(self.log)}")

    async def beats(self, within_s: float = 30.0) -> Heartbeat:
        """Wait for a heartbeat that is newer than the first one that can be read."""
        first: list[Heartbeat | None] = []
        end = time.monotonic() + within_s
        while time.monotonic() < end:
            with contextlib.suppress(StoreError):
                now = await self.heartbeat()
                first = first or [now]
                if now is not None and now != first[0]:
                    return now
            await asyncio.sleep(POLL_S)
        raise AssertionError(f"no heartbeat within {within_s} s\n{processes.log_tail(self.log)}")


@asynccontextmanager
async def agent_on(
    url: str, cluster: str, directory: Path, host: str = "h1", *, streams: bool = True
) -> AsyncIterator[AgentProcess]:
    """An agent that is not started yet; everything it ever started is gone afterwards."""
    store = await connect(ConnectionSettings(servers=tuple(url.split(","))), name="test")
    agent = AgentProcess(host, cluster, url, directory, store)
    try:
        if streams:
            await ensure_streams(store, agent.keys)
        yield agent
    finally:
        if agent.process is not None:
            processes.kill(agent.process)
        agent.end_executions()
        shutil.rmtree(agent.run_dir, ignore_errors=True)
        await store.close()


def bundle(pipeline: str, config: str, **changes: Any) -> tuple[str, bytes]:
    """(digest, bytes) of a bundle."""
    known: dict[str, Any] = {
        "pipeline": pipeline,
        "version": "1",
        "env": {},
        "volumes": (),
        "image": "",
        "cpu": None,
        "memory_bytes": None,
        "restart_delay_s": 0.5,
        "restart_delay_max_s": 4.0,
        "restart_reset_after_s": 60.0,
        "stop_grace_s": 22.0,
        "http": "auto",
        "config_digest": "0" * 64,
    }
    runtime = Runtime(**{**known, **changes})
    data = write_archive([("runtime.json", encode(runtime)), ("pipeline.yaml", config.encode())])
    return hashlib.sha256(data).hexdigest(), data


def phases(report: Report) -> dict[str, str]:
    return {one.execution: one.phase.value for one in report.executions}
