"""What the process driver refuses before anything is started."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from agent.executor import Spec
from agent.layout import Layout, Surroundings
from agent.process_executor import ProcessExecutor
from agent.process_starter import ProcessSettings
from shared.errors import CannotStart
from tests.unit.test_layout import SPEC


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image": "other:1"}, "image 'other:1' needs a host with the docker driver"),
        ({"volumes": ("/data:/elsewhere",)}, "only where it is"),
        ({"volumes": ("/data:/data",)}, "not allowed on this host"),
    ],
)
def test_what_a_process_cannot_have_is_refused_in_words(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    spec: Spec = replace(SPEC, **changes)  # type: ignore[arg-type]

    async def run() -> None:
        executor = make(tmp_path)
        with pytest.raises(CannotStart, match=words) as refused:
            await executor.ensure_running(spec)
        assert refused.value.kind == "host"
        assert await executor.list() == ()
        await executor.close()

    asyncio.run(run())
    assert list((tmp_path / "run/executions").iterdir()) == []


def test_driver_without_bento_is_not_ok(tmp_path: Path) -> None:
    async def run() -> None:
        executor = make(tmp_path)
        assert executor.driver == "process"
        found = await executor.check()
        assert not found.ok
        assert "Bento is not at" in found.reason
        await executor.close()

    asyncio.run(run())


def make(tmp_path: Path) -> ProcessExecutor:
    layout = Layout(cluster="shoal", host="h1", run_dir=tmp_path / "run", state_dir=tmp_path / "state")
    settings = ProcessSettings(runner=tmp_path, bento=tmp_path / "no-bento")
    executor = ProcessExecutor(layout, settings, Surroundings(nats_url="nats://x"))
    executor.adopt(frozenset({SPEC.store_id}))
    return executor
