"""The three executors, each with what a test needs to treat them alike: specs, ways to hurt, and a look from outside.

A rig knows real programs only through what anybody could see: processes, containers, files. `traces` is the judge of
"no trace is left", and does not ask the executor.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import secrets
import shutil
import signal
import tempfile
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import uvloop

from agent.docker_executor import DockerExecutor, DockerSettings
from agent.executor import Executor, Found, Life, Spec
from agent.grants import GrantDirectory
from agent.layout import Layout, Surroundings, boot_id
from agent.process_executor import ProcessExecutor
from agent.process_starter import ProcessSettings
from runner.permits import Grant
from shared.archive import write_archive
from shared.bundle import Runtime
from shared.clock import SystemClock
from shared.documents import encode
from tests.support.components import ROOT
from tests.support.engines import Engine
from tests.support.fake_executor import Behaviour, FakeExecutor, FakeHost, Ledger
from tests.support.images import RUNNER_TAG

DEADLINE_S = 90.0  # for anything that happens by itself; only ends a hang
_POLL_S = 0.02

RUNS = """
input: {generate: {interval: 50ms, mapping: 'root = "tick"'}}
output: {stdout: {}}
"""
# One message, and the end: Bento exits with 0.
ENDS = """
input: {generate: {count: 1, interval: "", mapping: 'root = "the end"'}}
output: {stdout: {}}
"""
# Bento refuses it and exits with 1.
BROKEN = """
input: {no_such_input: {}}
output: {drop: {}}
"""
# A message that is not through for a minute, and a Bento that waits for it.
STUBBORN = """
shutdown_timeout: 60s
input: {generate: {count: 0, interval: 1s, mapping: 'root = "slow"'}}
pipeline: {threads: 1, processors: [{sleep: {duration: 60s}}]}
output: {drop: {}}
"""
# Bento with a child of its own, which would outlive both.
PARENT = """
input: {subprocess: {name: sleep, args: ["1000"], restart_on_exit: true}}
output: {drop: {}}
"""
CONFIGURATIONS = {"runs": RUNS, "ends": ENDS, "broken": BROKEN, "stubborn": STUBBORN, "parent": PARENT}


async def eventually(
    condition: Callable[[], Awaitable[Any]], what: str, deadline_s: float = DEADLINE_S, poll_s: float = _POLL_S
) -> Any:
    """The first true value of `condition`; an assertion when the deadline has passed."""
    deadline = asyncio.get_running_loop().time() + deadline_s
    while not (value := await condition()):
        assert asyncio.get_running_loop().time() < deadline, f"not within {deadline_s} s: {what}"
        await asyncio.sleep(poll_s)
    return value


class Rig(ABC):
    """One host with one kind of executor, in a cluster of its own."""

    kind: str
    grace_s = 10.0

    def __init__(self, directory: Path) -> None:
        self.cluster = f"t{secrets.token_hex(4)}"
        self.store_id = secrets.token_hex(8)
        self.directory = directory
        self._open: list[Executor] = []

    @abstractmethod
    def make(self) -> Executor:
        """A new executor object on the same host, as an agent that starts makes one."""

    @abstractmethod
    def hurt(self, found: Found, what: str) -> None:
        """SIGKILL to the `runner` or the `bento` of an execution."""

    @abstractmethod
    def traces(self, execution: str) -> list[str]:
        """Whatever is left of an execution anywhere, in words."""

    def executor(self) -> Executor:
        """As `make`, with the rig's store admitted; closed at the end of the test."""
        executor = self.make()
        executor.adopt(frozenset({self.store_id}))
        self._open.append(executor)
        return executor

    async def aclose(self) -> None:
        """End what still runs, close all executors."""
        if self._open:
            last = self._open[-1]
            for one in await last.list():
                await last.remove(one.execution, 0)
        for executor in self._open:
            await executor.close()

    def spec(self, what: str = "runs", *, slot: int = 0, serial: int = 1, **changes: Any) -> Spec:
        """An execution that does `what` (a key of CONFIGURATIONS); the pipeline has the same name."""
        spec = Spec(
            execution=f"{what}-{slot}-{serial}",
            store_id=self.store_id,
            pipeline=what,
            slot=slot,
            replicas=1,
            version="1",
            digest="0" * 64,
            bundle="/nowhere/bundle.tar",
            env={},
            volumes=(),
            image="",
            cpu=None,
            memory_bytes=None,
            stop_grace_s=self.grace_s,
            http="auto",
        )
        return replace(self.with_bundle(spec, CONFIGURATIONS[what]), **changes)

    def with_bundle(self, spec: Spec, configuration: str) -> Spec:
        """`spec` with a bundle of this configuration on the host."""
        return spec


class FakeRig(Rig):
    kind = "fake"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        clock = SystemClock()
        self.ledger = Ledger(clock.monotonic)
        self.host = FakeHost("h1", clock=clock, ledger=self.ledger, now=clock.monotonic)
        self.host.crash_after_s = {"ends": 0.3, "broken": 0.3}
        self.host.behaviour_of = {"stubborn": Behaviour(drain_s=60.0)}

    def make(self) -> Executor:
        return FakeExecutor(self.host, cluster=self.cluster)

    def hurt(self, found: Found, what: str) -> None:
        self.host.crash(found.execution, exit_code=137)

    def traces(self, execution: str) -> list[str]:
        return [name for name in self.host.present() if name == execution]


class RealRig(Rig):
    """What both real drivers have in common: directories, bundles, and processes that can be seen."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        # tmpfs, as in production; and short, because it is in the command lines and environments that tests look for.
        self.run_dir = Path(tempfile.mkdtemp(prefix="shoal-run-", dir="/dev/shm"))
        self.run_dir.chmod(0o755)
        self.layout = Layout(cluster=self.cluster, host="h1", run_dir=self.run_dir, state_dir=directory / "state")
        self.surroundings = Surroundings(nats_url="nats://127.0.0.1:4222", env={"REGION": "north", "COLOUR": "agent"})

    def spec(self, what: str = "runs", *, slot: int = 0, serial: int = 1, **changes: Any) -> Spec:
        """As in every rig, with a grant: no runner starts without one."""
        spec = super().spec(what, slot=slot, serial=serial, **changes)
        self.grant(spec.store_id, spec.execution)
        return spec

    def grant(self, store_id: str, execution: str) -> None:
        """Let an execution start, whatever becomes of a lease."""
        name = self.layout.name(store_id, execution)
        grants = GrantDirectory(self.layout.lease_dir)
        grants.give(Grant(agent="agent", boot=boot_id(), number=1, execution=name, bound=False))

    async def aclose(self) -> None:
        try:
            await super().aclose()
        finally:
            shutil.rmtree(self.run_dir, ignore_errors=True)

    def with_bundle(self, spec: Spec, configuration: str) -> Spec:
        runtime = Runtime(
            pipeline=spec.pipeline,
            version=spec.version,
            env=dict(spec.env),
            volumes=spec.volumes,
            image=spec.image,
            cpu=spec.cpu,
            memory_bytes=spec.memory_bytes,
            restart_delay_s=1.0,
            restart_delay_max_s=60.0,
            restart_reset_after_s=120.0,
            stop_grace_s=spec.stop_grace_s,
            http=spec.http,
            config_digest=hashlib.sha256(configuration.encode()).hexdigest(),
        )
        data = write_archive([("runtime.json", encode(runtime)), ("pipeline.yaml", configuration.encode())])
        digest = hashlib.sha256(data).hexdigest()
        path = self.layout.bundle(digest)
        if not path.exists():
            # Whole or not at all: an execution of the same bundle may be starting.
            path.parent.mkdir(parents=True, exist_ok=True)
            fresh = path.with_name(secrets.token_hex(4))
            fresh.write_bytes(data)
            fresh.replace(path)
        return replace(spec, digest=digest, bundle=str(path))

    def processes(self, execution: str) -> dict[int, str]:
        """Every process with this execution's environment: runner, Bento and what Bento started."""
        marks = {f"SHOAL_EXECUTION={execution}".encode(), f"SHOAL_CLUSTER={self.cluster}".encode()}
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                with contextlib.suppress(OSError):
                    if marks <= set((entry / "environ").read_bytes().split(b"\0")):
                        found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        return found

    def process(self, execution: str, what: str) -> int:
        """The process id on the host of the `runner` or the `bento`."""
        wanted = "runner" if what == "runner" else "bento"
        for pid, command in sorted(self.processes(execution).items()):
            if (wanted == "runner") == ("__main__.py" in command or "/opt/shoal/runner" in command):
                return pid
        raise AssertionError(f"no {what} of {execution} among {self.processes(execution)}")

    def hurt(self, found: Found, what: str) -> None:
        os.kill(self.process(found.execution, what), signal.SIGKILL)

    def traces(self, execution: str) -> list[str]:
        left = [f"process {pid} {command}" for pid, command in self.processes(execution).items()]
        for root in (self.layout.executions_dir, self.layout.logs_dir):
            if root.exists():
                left += [str(path) for path in root.iterdir() if path.name.endswith(f"-{execution}")]
        return left


class ProcessRig(RealRig):
    kind = "process"

    def __init__(self, directory: Path, bento: Path) -> None:
        super().__init__(directory)
        self.settings = ProcessSettings(runner=ROOT / "runner", bento=bento)

    def make(self) -> ProcessExecutor:
        return ProcessExecutor(self.layout, self.settings, self.surroundings)


class DockerRig(RealRig):
    kind = "docker"

    def __init__(self, directory: Path, engine: Engine) -> None:
        super().__init__(directory)
        self.engine = engine
        self.settings = DockerSettings(url=engine.url, image=RUNNER_TAG)

    def make(self) -> DockerExecutor:
        return DockerExecutor(self.layout, self.settings, self.surroundings)

    def traces(self, execution: str) -> list[str]:
        client = self.engine.client()
        name = self.layout.name(self.store_id, execution)
        there = client.containers.list(all=True, filters={"name": f"^/{name}$"})
        return [*super().traces(execution), *(f"container {one.name}" for one in there)]


@contextlib.asynccontextmanager
async def opened(rig: Rig) -> AsyncIterator[Executor]:
    """An executor of the rig; everything is removed at the end."""
    try:
        yield rig.executor()
    finally:
        await rig.aclose()


def play(rig: Rig, scenario: Callable[[Executor], Coroutine[Any, Any, None]]) -> None:
    """Run a scenario on the event loop that agents run on."""

    async def run() -> None:
        async with opened(rig) as executor:
            await scenario(executor)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


async def one(executor: Executor, execution: str) -> Found | None:
    """The execution as the executor lists it."""
    return next((found for found in await executor.list() if found.execution == execution), None)


async def until_life(executor: Executor, execution: str, life: Life) -> Found:
    """Wait until the execution has this life."""

    async def look() -> Found | None:
        found = await one(executor, execution)
        return found if found is not None and found.life is life else None

    found: Found = await eventually(look, f"{execution} is {life}")
    return found


async def until_ready(executor: Executor, execution: str) -> None:
    """Wait until Bento is ready, by the health file alone."""

    found = await one(executor, execution)
    store_id = "" if found is None else found.store_id

    async def look() -> bool:
        healths = await executor.health({execution: store_id})
        return bool(healths.get(execution, {}).get("ready"))

    await eventually(look, f"{execution} is ready")
