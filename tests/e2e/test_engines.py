"""What is particular to Docker: engines that die, hang or refuse, missing images, and how containers are made."""

import asyncio
import contextlib
import io
import json
import tarfile
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import docker
import pytest
import uvloop

from agent.docker_executor import DockerExecutor, lifecycle, threads
from agent.executor import Executor, Life
from runner import contract
from shared.documents import Driver
from shared.errors import CannotStart, ExecutorUnavailable
from tests.support.components import require
from tests.support.engines import Engine
from tests.support.executor_rigs import DockerRig, eventually, one, opened, play, until_life, until_ready
from tests.support.images import RUNNER_TAG
from tests.support.registry import Registry

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(600)]

REPORTS = """
input: {generate: {interval: 50ms, mapping: 'root = "tick"'}}
pipeline:
  processors:
    - mapping: |
        root = [env("REGION"), env("COLOUR"), env("NATS_URL"), env("SHOAL_SLOT"), env("SHOAL_HOST")].join(" ")
output: {stdout: {}}
"""


@pytest.fixture
def rig(tmp_path: Path, engines_session: list[Engine]) -> DockerRig:
    return DockerRig(tmp_path, engines_session[0])


def container(rig: DockerRig, execution: str) -> Any:
    return rig.engine.client().containers.get(rig.layout.name(rig.store_id, execution))


# --- how a container is made


def test_container_is_locked_down_labelled_and_limited(rig: DockerRig) -> None:
    async def scenario(executor: Executor) -> None:
        spec = rig.spec(cpu=0.5, memory_bytes=256 * 1024 * 1024)
        await executor.ensure_running(spec)
        await until_ready(executor, spec.execution)
        made = container(rig, spec.execution)
        host, shape = made.attrs["HostConfig"], made.attrs["Config"]
        assert host["CapDrop"] == ["ALL"]
        assert host["CapAdd"] in (None, [])
        assert host["SecurityOpt"] == ["no-new-privileges"]
        assert host["Privileged"] is False
        assert host["ReadonlyRootfs"] is True
        assert host["RestartPolicy"]["Name"] == "no"
        assert host["NetworkMode"] == "host"
        assert host["Init"] in (None, False)
        assert (host["Memory"], host["NanoCpus"], host["PidsLimit"]) == (256 * 1024 * 1024, 500_000_000, 512)
        assert host["LogConfig"] == {"Type": "json-file", "Config": {"max-size": "10m", "max-file": "3"}}
        assert shape["User"] == "10001:10001"
        assert shape["StopTimeout"] == rig.grace_s
        assert {name: text for name, text in shape["Labels"].items() if name.startswith("shoal.")} == {
            "shoal.cluster": rig.cluster,
            "shoal.store": rig.store_id,
            "shoal.host": "h1",
            "shoal.pipeline": "runs",
            "shoal.slot": "0",
            "shoal.version": "1",
            "shoal.execution": spec.execution,
            "shoal.digest": spec.digest,
        }
        writable = {mount["Destination"]: mount["RW"] for mount in made.attrs["Mounts"] if mount["Type"] == "bind"}
        assert writable == {"/shoal/run": True, "/shoal/lease": False, "/shoal/bundle": False}
        status = made.exec_run(["cat", "/proc/1/status"]).output.decode()
        assert "NoNewPrivs:\t1" in status
        assert "CapEff:\t0000000000000000" in status
        # The configuration that runs is the one that was published.
        inside = made.exec_run(
            ["sha256sum", "/shoal/run/files/pipeline.yaml", "/shoal/bundle/bundle.tar"]
        ).output.decode()
        assert spec.digest in inside
        refused = made.exec_run(["touch", "/shoal/lease/x", "/shoal/bundle/x", "/x"]).output.decode()
        assert refused.count("Read-only file system") == 3

    play(rig, scenario)


def test_environment_of_record_wins_over_agent_and_names_of_ours_are_not_overridden(rig: DockerRig) -> None:
    async def scenario(executor: Executor) -> None:
        env = {"COLOUR": "record", "SHOAL_SLOT": "99", "SHOAL_RUNNER_BENTO": "/bin/false"}
        spec = rig.with_bundle(rig.spec(slot=3, env=env), REPORTS)
        await executor.ensure_running(spec)
        await until_ready(executor, spec.execution)

        async def said() -> bool:
            text = b"".join([chunk async for chunk in executor.logs(spec.execution, tail=5, follow=False)])
            return b"north record nats://127.0.0.1:4222 3 h1" in text

        await eventually(said, "the environment is in the logs")

    play(rig, scenario)


def test_volumes_are_mounted_only_where_the_agent_allows_it(rig: DockerRig, tmp_path: Path) -> None:
    allowed, secret = tmp_path / "allowed", tmp_path / "secret"
    for directory in (allowed, secret):
        directory.mkdir()
        directory.chmod(0o777)
        (directory / "file").write_text("content")
    (allowed / "way-out").symlink_to(secret)
    rig.settings = replace(rig.settings, volumes=(allowed,))

    async def scenario(executor: Executor) -> None:
        for source in (secret, allowed / "way-out", allowed / ".." / "secret", Path("/")):
            with pytest.raises(CannotStart, match="not allowed") as refused:
                await executor.ensure_running(rig.spec(volumes=(f"{source}:/data",)))
            assert refused.value.kind == "host"
        with pytest.raises(CannotStart, match="does not exist") as missing:
            await executor.ensure_running(rig.spec(volumes=(f"{allowed}/nothing:/data:ro",)))
        assert missing.value.kind == "host"
        assert await executor.list() == ()
        spec = rig.spec(slot=1, volumes=(f"{allowed}:/data:ro",))
        await executor.ensure_running(spec)
        await until_ready(executor, spec.execution)
        made = container(rig, spec.execution)
        assert made.exec_run(["cat", "/data/file"]).output == b"content"
        assert b"Read-only" in made.exec_run(["touch", "/data/new"]).output
        # What never got a container leaves no directory either.
        await executor.list()
        assert [path.name.rpartition("-runs-")[2] for path in rig.layout.executions_dir.iterdir()] == ["1-1"]

    play(rig, scenario)


def test_execution_without_memory_ends_as_out_of_memory(rig: DockerRig) -> None:
    hungry = "input: {generate: {interval: 1ms, mapping: 'root = range(0, 3000000)'}}\noutput: {drop: {}}"

    async def scenario(executor: Executor) -> None:
        spec = rig.with_bundle(rig.spec(memory_bytes=96 * 1024 * 1024), hungry)
        await executor.ensure_running(spec)
        found = await until_life(executor, spec.execution, Life.EXITED)
        assert (found.oom, found.exit_code) == (True, 137)

    play(rig, scenario)


# --- whose containers


def test_foreign_container_with_our_name_is_left_alone(rig: DockerRig) -> None:
    async def scenario(executor: Executor) -> None:
        spec = rig.spec()
        name = rig.layout.name(rig.store_id, spec.execution)
        client = rig.engine.client()
        foreign = client.containers.create(RUNNER_TAG, entrypoint=["sleep", "100"], network_mode="host", name=name)
        try:
            with pytest.raises(CannotStart, match=f"container named {name} exists") as refused:
                await executor.ensure_running(spec)
            assert refused.value.kind == "host"
            assert await executor.list() == ()
            await executor.stop(spec.execution, 0)
            await executor.remove(spec.execution, 0)
            foreign.reload()
            assert foreign.status == "created"
        finally:
            foreign.remove(force=True)

    play(rig, scenario)


def test_two_agents_share_an_engine(rig: DockerRig) -> None:
    """As in the compose file: three agents, each with directories of its own, on one engine."""

    async def scenario(executor: Executor) -> None:
        spec = rig.spec()
        await executor.ensure_running(spec)
        layout = replace(rig.layout, host="h2", run_dir=rig.run_dir / "h2")
        other = DockerExecutor(layout, rig.settings, rig.surroundings)
        other.adopt(frozenset({rig.store_id}))
        try:
            assert await other.list() == ()
            await other.remove(spec.execution, 0)
            with pytest.raises(CannotStart, match="not this agent's"):
                await other.ensure_running(spec)
            assert (await until_life(executor, spec.execution, Life.ALIVE)).runtime
        finally:
            await other.close()

    play(rig, scenario)


def test_container_made_by_a_call_that_was_cut_off_is_started(rig: DockerRig) -> None:
    async def scenario(executor: Executor) -> None:
        spec = rig.spec()
        await executor.ensure_running(spec)
        made = container(rig, spec.execution)
        body = {"labels": made.labels, "environment": made.attrs["Config"]["Env"], "user": "10001:10001"}
        mounts = [docker.types.Mount(m["Destination"], m["Source"], type="bind") for m in made.attrs["Mounts"]]
        made.remove(force=True)
        # As an agent leaves it that died between create and start.
        half = rig.engine.client().containers.create(
            RUNNER_TAG, name=made.name, network_mode="host", mounts=mounts, **body
        )
        following = rig.executor()
        found = await one(following, spec.execution)
        assert found is not None
        assert found.life is Life.CREATED
        # And as an agent meets it that has not listed yet.
        await rig.executor().ensure_running(spec)
        assert (await until_life(following, spec.execution, Life.ALIVE)).runtime == half.id

    play(rig, scenario)


def test_directories_without_a_container_are_swept_and_others_kept(rig: DockerRig) -> None:
    async def scenario(executor: Executor) -> None:
        spec = rig.spec()
        await executor.ensure_running(spec)
        orphan = rig.layout.execution_dir(rig.layout.name(rig.store_id, "gone-0-1"))
        stranger = rig.layout.executions_dir / "elsewhere-12345678-runs-0-1"
        for directory in (orphan, stranger):
            directory.mkdir()
            (directory / "file").touch()
        await executor.list()
        assert not orphan.exists()
        assert stranger.exists()
        assert rig.layout.execution_dir(rig.layout.name(rig.store_id, spec.execution)).exists()
        stranger.joinpath("file").unlink()

    play(rig, scenario)


def test_engine_on_another_kernel_is_noticed(rig: DockerRig) -> None:
    async def scenario(executor: Executor) -> None:
        spec = rig.spec()
        await executor.ensure_running(spec)
        await until_ready(executor, spec.execution)
        await executor.list()
        assert await executor.check() == Driver(True)
        health = rig.layout.execution_dir(rig.layout.name(rig.store_id, spec.execution)) / contract.HEALTH_FILE

        async def noticed() -> str:
            # Again and again: the runner writes its own whenever something changes.
            health.write_text(json.dumps({"boot_id": "another", "ready": True}))
            await executor.list()
            return (await executor.check()).unbound

        assert "another kernel" in await eventually(noticed, "the other boot id is seen")
        assert (await executor.check()).ok

    play(rig, scenario)


# --- images


def test_missing_image_is_pulled_and_the_engines_words_are_passed_on(rig: DockerRig) -> None:
    async def scenario(executor: Executor) -> None:
        spec = rig.spec(image="localhost:1/no/such-image:1")
        with pytest.raises(CannotStart, match=r"localhost:1/no/such-image:1 cannot be pulled: .*refused") as refused:
            await executor.ensure_running(spec)
        assert refused.value.kind == "image"
        both = await asyncio.gather(
            executor.ensure_running(spec),
            executor.ensure_running(replace(spec, execution="runs-1-1")),
            return_exceptions=True,
        )
        assert [type(result) for result in both] == [CannotStart, CannotStart]
        assert await executor.list() == ()

    play(rig, scenario)


def test_image_that_can_be_pulled_is_pulled_once_for_all_who_wait(rig: DockerRig, tmp_path: Path) -> None:
    """With a small image that only ends: pushing and pulling the runner's would take half a minute."""
    engine, client = rig.engine, rig.engine.client()
    archive = tmp_path / "image.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(require("nats-server").resolve(), arcname="nats-server")
    with Registry() as registry:
        name = f"localhost:{registry.port}/ends/at-once:1"
        engine.cli("import", "--change", 'ENTRYPOINT ["/nats-server", "--version"]', archive, name)
        engine.cli("push", name)
        engine.cli("rmi", name)

        async def scenario(executor: Executor) -> None:
            specs = [rig.spec(slot=slot, image=name) for slot in range(3)]
            await asyncio.gather(*(executor.ensure_running(spec) for spec in specs))
            for spec in specs:
                assert (await until_life(executor, spec.execution, Life.EXITED)).exit_code == 0
            assert registry.pulled.count("1") <= 1
            await asyncio.gather(*(executor.remove(spec.execution, rig.grace_s) for spec in specs))

        play(rig, scenario)
        client.images.remove(name)


def test_image_that_is_no_runner_is_said_to_be_the_problem(rig: DockerRig) -> None:
    client = rig.engine.client()
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("empty"))
    client.api.import_image_from_data(archive.getvalue(), repository="empty", tag="1")

    async def scenario(executor: Executor) -> None:
        with pytest.raises(CannotStart, match=r"(?i)no command specified") as refused:
            await executor.ensure_running(rig.spec(image="empty:1"))
        assert refused.value.kind == "image"

    play(rig, scenario)
    client.images.remove("empty:1")


# --- engines that fail


def test_killed_engine_is_unavailable_and_recovers_with_its_containers(live_engine: Engine, tmp_path: Path) -> None:
    rig = DockerRig(tmp_path / "rig", live_engine)

    async def scenario(executor: Executor) -> None:
        spec = rig.spec()
        await executor.ensure_running(spec)
        await until_ready(executor, spec.execution)
        before = await one(executor, spec.execution)
        assert before is not None
        async with waking(executor) as woken:
            woken.clear()
            live_engine.kill()
            async with asyncio.timeout(10):
                await woken.wait()
            with pytest.raises(ExecutorUnavailable):
                await executor.list()
            with pytest.raises(ExecutorUnavailable):
                await executor.ensure_running(rig.spec(slot=1))
            assert not (await executor.check()).ok
            # Health needs no engine.
            assert (await executor.health({spec.execution: spec.store_id}))[spec.execution]["ready"]
            await asyncio.to_thread(live_engine.restart, crash=True)
            assert (await executor.check()).ok
            after = await one(executor, spec.execution)
            assert after is not None
            assert (after.runtime, after.life, after.started_s) == (before.runtime, Life.ALIVE, before.started_s)
            # The event stream is open again.
            await asyncio.sleep(lifecycle.REOPEN_MAX_S)
            woken.clear()
            rig.hurt(after, "bento")
            async with asyncio.timeout(10):
                await woken.wait()

    play(rig, scenario)


def test_restarted_engine_stops_containers_which_then_resume(engine: Engine, tmp_path: Path) -> None:
    rig = DockerRig(tmp_path / "rig", engine)

    async def scenario(executor: Executor) -> None:
        spec = rig.spec()
        await executor.ensure_running(spec)
        await until_ready(executor, spec.execution)
        before = await one(executor, spec.execution)
        await asyncio.to_thread(engine.restart)
        found = await until_life(executor, spec.execution, Life.EXITED)
        assert before is not None
        assert found.runtime == before.runtime
        await executor.ensure_running(spec)
        await until_ready(executor, spec.execution)
        # A machine that lost power comes back without what was on tmpfs.
        await asyncio.to_thread(engine.power_off)
        for path in rig.layout.executions_dir.iterdir():
            for inside in sorted(path.rglob("*"), reverse=True):
                inside.rmdir() if inside.is_dir() else inside.unlink()
            path.rmdir()
        await asyncio.to_thread(engine.restart)
        await executor.ensure_running(spec)
        await until_ready(executor, spec.execution)
        assert (await until_life(executor, spec.execution, Life.ALIVE)).runtime == before.runtime

    play(rig, scenario)


def test_hanging_engine_delays_only_its_own_calls_and_loses_no_thread(
    engine: Engine, tmp_path: Path, engines_session: list[Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "LOOK_TIMEOUT_S", 1.0)
    monkeypatch.setattr(threads, "START_TIMEOUT_S", 2.0)
    monkeypatch.setattr(threads, "END_TIMEOUT_S", 2.0)
    hanging, healthy = DockerRig(tmp_path / "a", engine), DockerRig(tmp_path / "b", engines_session[0])

    async def scenario(executor: Executor) -> None:
        spec = hanging.spec()
        await executor.ensure_running(spec)
        await executor.list()
        async with opened(healthy) as other:
            engine.pause()
            try:
                calls = [executor.ensure_running(hanging.spec(slot=slot)) for slot in range(1, 40)]
                calls += [executor.stop(spec.execution, 0.0), executor.remove(spec.execution, 0.0)]
                stuck = asyncio.gather(*calls, *(executor.list() for _ in range(10)), return_exceptions=True)
                started = asyncio.get_running_loop().time()
                await other.ensure_running(healthy.spec())
                await until_ready(other, healthy.spec().execution)
                assert not stuck.done()
                async with asyncio.timeout(20):
                    results = await stuck
                assert {type(result) for result in results} == {ExecutorUnavailable}, results
                assert asyncio.get_running_loop().time() - started < 20
                assert not (await executor.check()).ok
            finally:
                engine.resume()
        monkeypatch.undo()
        # What it was asked while it hung may happen now; nothing of it may be in the way.
        await eventually(lambda: _listed(executor), "the engine answers again")
        fresh = hanging.spec(slot=99)
        await executor.ensure_running(fresh)
        await until_ready(executor, fresh.execution)

    play(hanging, scenario)


def test_three_engines_are_three_hosts(tmp_path: Path, engines_session: list[Engine]) -> None:
    rigs = [DockerRig(tmp_path / engine.name, engine) for engine in engines_session]
    for rig in rigs:
        rig.cluster = rigs[0].cluster
        rig.store_id = rigs[0].store_id
        rig.layout = replace(rig.layout, cluster=rig.cluster, host=rig.engine.name)

    async def run() -> None:
        async with contextlib.AsyncExitStack() as stack:
            executors = [await stack.enter_async_context(opened(rig)) for rig in rigs]
            specs = [rig.spec(slot=slot) for slot, rig in enumerate(rigs)]
            await asyncio.gather(*(e.ensure_running(s) for e, s in zip(executors, specs, strict=True)))
            for executor, spec in zip(executors, specs, strict=True):
                await until_ready(executor, spec.execution)
                assert [found.execution for found in await executor.list()] == [spec.execution]

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


async def _listed(executor: Executor) -> bool:
    try:
        await executor.list()
    except ExecutorUnavailable:
        return False
    return True


@contextlib.asynccontextmanager
async def waking(executor: Executor) -> AsyncIterator[asyncio.Event]:
    """An event that is set by every wake-up, once the stream is open."""
    woken = asyncio.Event()

    async def listen() -> None:
        async for _ in executor.events():
            woken.set()

    task = asyncio.create_task(listen(), name="listen to events")
    try:
        async with asyncio.timeout(10):
            await woken.wait()
        yield woken
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
