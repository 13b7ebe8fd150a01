"""What runs out: disks, the process directory, the store. Each is bounded, said, and over by
itself when its cause is."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.documents import Driver, Report
from shared.states import Phase
from tests.support.agent_process import AgentProcess, agent_on, phases
from tests.support.components import require_root, unavailable
from tests.support.intruder import Intruder
from tests.support.nats_servers import NatsServer
from tests.support.real import TICK, real_cluster, until

WORDS = """
input:
  generate: {interval: 20ms, mapping: 'root = "0123456789".repeat(100)'}
output:
  stdout: {}
"""


@contextlib.contextmanager
def small_disk(directory: Path, size: str) -> Iterator[Path]:
    """A file system of its own that fills quickly."""
    require_root("it mounts a small file system")
    directory.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0755", "none", str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        unavailable(f"needs to mount a tmpfs: {done.stderr}")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)


def fill(directory: Path) -> Path:
    """Write until there is no room for a byte; the file."""
    path = directory / "filler"
    with path.open("wb", buffering=0) as file:
        for size in (65536, 4096, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
    return path


async def driver_that_is(agent: AgentProcess, *, ok: bool) -> Driver:
    """What the host says of its driver, once it says so."""
    deadline = time.monotonic() + 60
    while True:
        beat = await agent.heartbeat()
        if beat is not None and beat.drivers["process"].ok is ok:
            return beat.drivers["process"]
        assert time.monotonic() < deadline, f"never: {beat}"
        await asyncio.sleep(0.1)


def ready(*executions: str) -> dict[str, str]:
    return {f"{name}-0-1": "ready" for name in executions}


@pytest.mark.timeout(240)
def test_a_full_disk_under_state_and_logs(nats_session: NatsServer, cluster_name: str, tmp_path: Path) -> None:
    """What runs goes on and its lines are dropped; what is new waits, and everybody is told why."""

    async def body(agent: AgentProcess) -> None:
        agent.start()
        await agent.assign(await agent.item("orders", WORDS))
        await agent.reports(lambda r: phases(r) == ready("orders"), 60)
        pids = agent.alive()
        filler = fill(agent.directory / "h1")

        told = agent.told
        assert told is not None
        await agent.assign(*told.executions, await agent.item("late"))
        driver = await driver_that_is(agent, ok=False)
        assert "No space left" in driver.reason
        await agent.beats()
        assert agent.alive() == pids, "and what ran, runs"
        assert agent.health()["session_valid"]
        assert len(agent.said()) < 200_000, "it is not said in a loop"

        filler.unlink()
        await agent.reports(lambda r: phases(r) == ready("orders", "late"), 90)
        await driver_that_is(agent, ok=True)
        report = await agent.report()
        assert report is not None
        assert {one.restarts for one in report.executions} == {0}

    async def whole() -> None:
        async with agent_on(nats_session.url, cluster_name, tmp_path) as agent:
            await body(agent)

    with small_disk(tmp_path / "h1", "4m"):
        asyncio.run(whole())


@pytest.mark.timeout(240)
def test_a_full_process_directory(nats_session: NatsServer, cluster_name: str, tmp_path: Path) -> None:
    """Nothing can be started there, and no lease be extended: what must not run on stops by itself, and is back."""

    def waits_for_room(report: Report) -> bool:
        return any(
            one.execution == "late-0-1" and one.phase is not Phase.READY and "No space left" in one.reason
            for one in report.executions
        )

    async def body(agent: AgentProcess) -> None:
        agent.start()
        await agent.assign(await agent.item("orders"))
        await agent.reports(lambda r: phases(r) == ready("orders"), 60)
        filler = fill(agent.run_dir)
        told = agent.told
        assert told is not None
        await agent.assign(*told.executions, await agent.item("late"))
        await agent.reports(waits_for_room, 60)
        await agent.beats()
        filler.unlink()

        async def answering() -> None:
            """The leader's part: a new session, if there is one, is answered."""
            while True:
                assert agent.told is not None
                if (session := await agent.session()) != agent.told.session:
                    await agent.answer(session)
                await asyncio.sleep(0.2)

        leader = asyncio.create_task(answering())
        try:
            await agent.reports(lambda r: phases(r) == ready("orders", "late"), 90)
        finally:
            leader.cancel()

    async def whole(directory: Path) -> None:
        async with agent_on(nats_session.url, cluster_name, tmp_path) as agent:
            shutil.rmtree(agent.run_dir)
            agent.run_dir = directory
            try:
                await body(agent)
            finally:
                if agent.process is not None:
                    agent.kill()
                agent.end_executions()

    with small_disk(tmp_path / "run", "2m") as directory:
        (directory / "r").mkdir()
        asyncio.run(whole(directory / "r"))


@pytest.mark.timeout(300)
def test_the_store_has_no_room(tmp_path: Path) -> None:
    with (
        NatsServer(tmp_path / "nats") as server,
        real_cluster(tmp_path / "cluster", hosts=1, schedulers=2, servers=server) as cluster,
    ):
        cluster.publish("steady", TICK, on_partition="continue")
        cluster.until_state("steady", "running")
        before = cluster.the("steady")
        cluster.nats("stream", "edit", "shoal_events", "--max-bytes=1MB", "--force")
        cluster.nats("stream", "add", "FILLER", "--subjects=filler", "--storage=file", "--defaults")
        server.max_file = "48MB"  # and that is what others have filled
        server.restart()
        cluster.until_state("steady", "running")
        with Intruder(cluster.url) as intruder:
            for _ in range(70):
                intruder.publish("filler", b"x" * 1_000_000)
        said = "insufficient resources"
        until(
            lambda: any(said in cluster.local.log(name).read_text() for name in ("scheduler-1", "scheduler-2")),
            "a scheduler says what is wrong",
        )
        assert cluster.run("doctor").returncode == 1
        assert said in cluster.local.log("host-1").read_text(), "and so does the agent"
        assert cluster.the("steady") == before
        cluster.assert_all_alive()

        cluster.nats("stream", "purge", "FILLER", "--force")
        until(cluster.leader, "somebody leads", 90)
        cluster.publish("later", TICK)
        cluster.until_state("later", "running", 90)
        cluster.until_state("steady", "running")
        assert cluster.the("steady") == before
        cluster.assert_all_alive()
