"""What is particular to processes: identity, sessions, agents that die at a bad moment, and who is never signalled."""

import asyncio
import contextlib
import errno
import fcntl
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent import process_table
from agent.executor import Executor, Life
from runner import contract
from shared.errors import CannotStart, ExecutorUnavailable
from tests.support.components import ROOT, require
from tests.support.executor_rigs import ProcessRig, eventually, one, play, until_life, until_ready

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def rig(tmp_path: Path) -> ProcessRig:
    return ProcessRig(tmp_path, require("bento"))


def directory(rig: ProcessRig, execution: str) -> Path:
    return rig.layout.execution_dir(rig.layout.name(rig.store_id, execution))


def environment_of(pid: int) -> list[bytes]:
    return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")


def rewrite(rig: ProcessRig, execution: str, process: process_table.Identity | None) -> None:
    content = process_table.read(directory(rig, execution))
    assert content is not None
    process_table.write(directory(rig, execution), replace(content, process=process))


@pytest.mark.parametrize("how", ["stop", "remove"])
def test_children_of_bento_end_with_it(rig: ProcessRig, how: str) -> None:
    async def scenario(executor: Executor) -> None:
        spec = rig.spec("parent")
        await executor.ensure_running(spec)

        async def all_three() -> bool:
            return len(rig.processes(spec.execution)) == 3

        await eventually(all_three, "runner, Bento and its child run")
        if how == "stop":
            await executor.stop(spec.execution, rig.grace_s)
        else:
            await executor.remove(spec.execution, rig.grace_s)
        assert rig.processes(spec.execution) == {}

    play(rig, scenario)


def test_children_of_bento_end_also_if_the_runner_was_killed(rig: ProcessRig) -> None:
    async def scenario(executor: Executor) -> None:
        spec = rig.spec("parent")
        await executor.ensure_running(spec)

        async def all_three() -> bool:
            return len(rig.processes(spec.execution)) == 3

        await eventually(all_three, "runner, Bento and its child run")
        os.kill(rig.process(spec.execution, "runner"), signal.SIGKILL)
        await until_life(executor, spec.execution, Life.EXITED)
        # What holds the run lock now is what Bento left behind.
        await executor.ensure_running(spec)
        await eventually(all_three, "three again, none of the old ones")
        await executor.remove(spec.execution, rig.grace_s)
        assert rig.processes(spec.execution) == {}

    play(rig, scenario)


def test_what_was_started_while_a_list_was_made_is_not_swept(rig: ProcessRig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list that saw its log directory and no execution yet took it for the rest of one that is over."""

    async def scenario(executor: Executor) -> None:
        spec = rig.spec()
        rig.layout.log_dir(rig.layout.name(rig.store_id, spec.execution)).mkdir(parents=True)
        looked, go_on = threading.Event(), threading.Event()
        look = executor._look  # type: ignore[attr-defined]

        def slowly() -> Any:
            found = look()
            looked.set()
            assert go_on.wait(60)
            return found

        monkeypatch.setattr(executor, "_look", slowly)
        listing = asyncio.create_task(executor.list())
        assert await asyncio.to_thread(looked.wait, 60)
        await executor.ensure_running(spec)
        go_on.set()
        assert await listing == ()
        monkeypatch.undo()
        await until_ready(executor, spec.execution)
        assert directory(rig, spec.execution).is_dir()
        assert len(rig.processes(spec.execution)) == 2

    play(rig, scenario)


def test_agent_without_descriptors_knows_nothing_and_deletes_nothing(rig: ProcessRig) -> None:
    """An execution that a list leaves out counts as stopped, and is started elsewhere."""

    async def scenario(executor: Executor) -> None:
        spec = rig.spec()
        await executor.ensure_running(spec)
        await until_ready(executor, spec.execution)
        before = await one(executor, spec.execution)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))  # what is open stays open
        try:
            with pytest.raises(ExecutorUnavailable, match="Too many open files"):
                await executor.list()
            with pytest.raises(ExecutorUnavailable, match="Too many open files"):
                await executor.health({spec.execution: spec.store_id})
            with pytest.raises(OSError, match="Too many open files"):
                await executor.stop(spec.execution, 0)
            with pytest.raises(OSError, match="Too many open files"):
                await executor.ensure_running(spec)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        after = await one(executor, spec.execution)
        assert before is not None
        assert after is not None
        assert (after.runtime, after.life) == (before.runtime, Life.ALIVE)

    play(rig, scenario)


def test_start_that_cannot_be_noted_may_have_happened(rig: ProcessRig, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(executor: Executor) -> None:
        spec = rig.spec()
        write = process_table.write

        def full(where: Path, content: process_table.ProcessFile) -> None:
            if content.process is not None:
                raise OSError(errno.ENOSPC, "No space left on device")
            write(where, content)

        monkeypatch.setattr(process_table, "write", full)
        with pytest.raises(ExecutorUnavailable, match=r"was started and cannot be noted: .*No space left"):
            await executor.ensure_running(spec)
        monkeypatch.undo()
        await until_ready(executor, spec.execution)
        assert len(rig.processes(spec.execution)) == 2

    play(rig, scenario)


def test_directory_with_a_damaged_process_file_is_kept_while_something_runs_there(rig: ProcessRig) -> None:
    async def scenario(executor: Executor) -> None:
        spec = rig.spec()
        await executor.ensure_running(spec)
        await until_ready(executor, spec.execution)
        (directory(rig, spec.execution) / process_table.PROCESS_FILE).write_text("{")
        with pytest.raises(ExecutorUnavailable, match=r"process\.json makes no sense, .*run\.lock"):
            await executor.list()
        assert len(rig.processes(spec.execution)) == 2
        os.kill(rig.process(spec.execution, "runner"), signal.SIGKILL)

        async def swept() -> bool:
            with contextlib.suppress(ExecutorUnavailable):
                return await executor.list() == ()
            return False

        await eventually(swept, "nothing runs there any more, and it is deleted")
        assert rig.traces(spec.execution) == []

    play(rig, scenario)


def test_executions_are_not_gone_because_their_directory_is(rig: ProcessRig) -> None:
    async def scenario(executor: Executor) -> None:
        spec = rig.spec()
        await executor.ensure_running(spec)
        await until_ready(executor, spec.execution)
        shutil.rmtree(rig.layout.executions_dir)
        runner = rig.process(spec.execution, "runner")
        with pytest.raises(ExecutorUnavailable, match=f"was deleted while processes {runner} ran there"):
            await executor.list()
        # The next agent must not take it for an empty host either.
        with pytest.raises(ExecutorUnavailable, match=f"was deleted while processes {runner} ran there"):
            await rig.executor().list()
        # Nor must a start make room for itself, after which a list would be complete without the other.
        with pytest.raises(ExecutorUnavailable, match=f"was deleted while processes {runner} ran there"):
            await executor.ensure_running(rig.spec(slot=1))
        with pytest.raises(ExecutorUnavailable, match=f"was deleted while processes {runner} ran there"):
            await executor.list()
        os.kill(runner, signal.SIGKILL)

        async def made() -> bool:
            with contextlib.suppress(ExecutorUnavailable):
                return await executor.list() == ()
            return False

        await eventually(made, "nothing runs there any more, and the directory is made again")
        await executor.ensure_running(spec)
        await until_ready(executor, spec.execution)

    play(rig, scenario)


def test_nothing_is_left_a_zombie(rig: ProcessRig) -> None:
    async def scenario(executor: Executor) -> None:
        spec = rig.spec()
        await executor.ensure_running(spec)
        await until_ready(executor, spec.execution)
        found = await one(executor, spec.execution)
        assert found is not None
        rig.hurt(found, "runner")

        async def gone() -> bool:
            return found.runtime not in os.listdir("/proc")  # noqa: PTH208

        # Nobody lists meanwhile: its end alone is enough.
        await eventually(gone, "the runner is reaped")

    play(rig, scenario)


def test_runner_outlives_its_agent_and_the_next_one_notices_its_end(rig: ProcessRig) -> None:
    """A real agent process starts it and is gone; for us the runner is no child."""
    spec = rig.spec()
    script = f"""
import asyncio
from pathlib import Path
from agent.executor import Spec
from agent.layout import Layout, Surroundings
from agent.process_executor import ProcessExecutor
from agent.process_starter import ProcessSettings

async def main():
    run_dir, state_dir = Path({str(rig.run_dir)!r}), Path({str(rig.layout.state_dir)!r})
    layout = Layout(cluster={rig.cluster!r}, host="h1", run_dir=run_dir, state_dir=state_dir)
    settings = ProcessSettings(runner=Path({str(rig.settings.runner)!r}), bento=Path({str(rig.settings.bento)!r}))
    executor = ProcessExecutor(layout, settings, Surroundings(nats_url="nats://x"))
    executor.adopt(frozenset({{{rig.store_id!r}}}))
    await executor.ensure_running({spec!r})

asyncio.run(main())
"""
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, timeout=60)

    async def scenario(executor: Executor) -> None:
        await until_ready(executor, spec.execution)
        found = await one(executor, spec.execution)
        assert found is not None
        assert found.life is Life.ALIVE
        await executor.ensure_running(spec)
        woken = asyncio.Event()

        async def listen() -> None:
            async for _ in executor.events():
                woken.set()

        task = asyncio.create_task(listen(), name="listen")
        await asyncio.sleep(0)
        os.kill(rig.process(spec.execution, "bento"), signal.SIGTERM)
        async with asyncio.timeout(5):
            await woken.wait()
        ended = await until_life(executor, spec.execution, Life.EXITED)
        # Not our child: its code is what the runner wrote.
        assert ended.exit_code == 0
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    play(rig, scenario)


def test_runner_of_an_agent_that_died_before_it_noted_its_number_is_found(rig: ProcessRig) -> None:
    async def scenario(executor: Executor) -> None:
        spec = rig.spec()
        await executor.ensure_running(spec)
        await until_ready(executor, spec.execution)
        before = await one(executor, spec.execution)
        rewrite(rig, spec.execution, None)
        following = rig.executor()
        after = await one(following, spec.execution)
        assert before is not None
        assert after is not None
        assert (after.life, after.runtime) == (Life.ALIVE, before.runtime)
        rewrite(rig, spec.execution, None)
        await rig.executor().ensure_running(spec)
        assert len(rig.processes(spec.execution)) == 2
        rewrite(rig, spec.execution, None)
        await rig.executor().remove(spec.execution, rig.grace_s)
        assert rig.traces(spec.execution) == []

    play(rig, scenario)


def test_process_that_got_the_number_of_a_dead_runner_is_never_signalled(rig: ProcessRig) -> None:
    stranger = subprocess.Popen(["sleep", "100"], start_new_session=True)
    try:

        async def scenario(executor: Executor) -> None:
            spec = rig.spec()
            await executor.ensure_running(spec)
            await executor.stop(spec.execution, rig.grace_s)
            theirs = process_table.identify(stranger.pid)
            assert theirs is not None
            for identity in (replace(theirs, ticks=theirs.ticks - 1), replace(theirs, boot="an earlier boot")):
                rewrite(rig, spec.execution, identity)
                found = await one(executor, spec.execution)
                assert found is not None
                assert found.life is Life.EXITED
                await executor.stop(spec.execution, 0)
            await executor.ensure_running(spec)
            await until_ready(executor, spec.execution)
            await executor.remove(spec.execution, rig.grace_s)
            assert stranger.poll() is None

        play(rig, scenario)
    finally:
        stranger.kill()
        stranger.wait()


def test_start_is_refused_while_somebody_unknown_holds_the_run_lock(rig: ProcessRig) -> None:
    async def scenario(executor: Executor) -> None:
        spec = rig.spec()
        await executor.ensure_running(spec)
        await executor.stop(spec.execution, rig.grace_s)
        with (directory(rig, spec.execution) / contract.LOCK_FILE).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with pytest.raises(CannotStart, match=r"holds .*run\.lock") as refused:
                await executor.ensure_running(spec)
            assert refused.value.kind == "host"
        await executor.ensure_running(spec)
        await until_ready(executor, spec.execution)

    play(rig, scenario)


def test_credentials_in_the_agents_environment_do_not_reach_pipelines(
    rig: ProcessRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_OF_THE_AGENT", "secret")

    async def scenario(executor: Executor) -> None:
        spec = rig.spec(env={"COLOUR": "record"})
        await executor.ensure_running(spec)
        await until_ready(executor, spec.execution)
        environment = environment_of(rig.process(spec.execution, "bento"))
        assert b"COLOUR=record" in environment
        assert b"REGION=north" in environment
        assert b"NATS_URL=nats://127.0.0.1:4222" in environment
        assert not [line for line in environment if b"SECRET" in line or b"SHOAL_RUNNER_" in line]

    play(rig, scenario)


def test_what_is_left_of_an_earlier_boot_is_swept(rig: ProcessRig) -> None:
    async def scenario(executor: Executor) -> None:
        spec = rig.spec()
        await executor.ensure_running(spec)
        logs = rig.layout.log_dir(rig.layout.name(rig.store_id, "gone-0-1"))
        logs.mkdir()
        (logs / "output.log").write_text("words\n")
        half = directory(rig, "half-0-1")
        half.mkdir()
        stranger = rig.layout.logs_dir / "elsewhere-12345678-runs-0-1"
        stranger.mkdir()
        assert [found.execution for found in await executor.list()] == [spec.execution]
        assert not logs.exists()
        assert not half.exists()
        assert stranger.exists()

    play(rig, scenario)


def test_runner_that_breaks_leaves_its_words(rig: ProcessRig, tmp_path: Path) -> None:
    broken = tmp_path / "runner"
    broken.mkdir()
    (broken / "__main__.py").write_text("raise SystemExit('no good')")
    rig.settings = replace(rig.settings, runner=broken)

    async def scenario(executor: Executor) -> None:
        spec = rig.spec()
        await executor.ensure_running(spec)
        found = await until_life(executor, spec.execution, Life.EXITED)
        assert found.exit_code == 1
        assert "no good" in (directory(rig, spec.execution) / "runner.stderr").read_text()

    play(rig, scenario)
