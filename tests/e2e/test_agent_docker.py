"""A real agent with the docker executor on a real engine that restarts, hangs and dies under it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from shared.states import Phase
from tests.support.agent_process import AgentProcess, agent_on, phases
from tests.support.engines import Engine
from tests.support.images import RUNNER_TAG
from tests.support.nats_servers import NatsServer

pytestmark = pytest.mark.docker

Body = Callable[[AgentProcess, Engine], Awaitable[None]]
BOTH_READY = {"orders-0-1": "ready", "payments-0-1": "ready"}


def play(url: str, cluster: str, directory: Path, engine: Engine, body: Body) -> None:
    async def whole() -> None:
        async with agent_on(url, cluster, directory) as agent:
            agent.executor = "docker"
            await body(agent, engine)

    asyncio.run(whole())


def start(agent: AgentProcess, engine: Engine) -> None:
    agent.start("--docker-host", engine.url, "--image", RUNNER_TAG)


def started(engine: Engine) -> dict[str, tuple[str, str]]:
    """(container id, start time) of every running container, by name."""
    found = engine.client().containers.list()
    return {str(one.name): (str(one.id), str(one.attrs["State"]["StartedAt"])) for one in found}


async def both(agent: AgentProcess) -> None:
    await agent.assign(await agent.item("orders"), await agent.item("payments"))
    await agent.reports(lambda r: phases(r) == BOTH_READY, within_s=60)


def test_an_engine_that_restarts_is_recovered_from(
    nats_session: NatsServer, cluster_name: str, tmp_path: Path, engine: Engine
) -> None:
    """An engine takes its containers along; a second agent life in between adopts what runs."""

    async def body(agent: AgentProcess, engine: Engine) -> None:
        start(agent, engine)
        await both(agent)
        before = started(engine)
        assert len(before) == 2
        agent.kill()
        start(agent, engine)
        await agent.beats()
        await agent.reports(lambda r: phases(r) == BOTH_READY, within_s=60)
        assert started(engine) == before, "adopted"

        await asyncio.to_thread(engine.restart)
        report = await agent.reports(
            lambda r: phases(r) == BOTH_READY and all(one.restarts >= 1 for one in r.executions), within_s=90
        )
        assert {name: key for name, (key, _) in started(engine).items()} == {
            name: key for name, (key, _) in before.items()
        }, "the same containers, started again"
        assert not report.problem
        await agent.assign()
        await agent.reports(lambda r: not r.executions and not r.problem, within_s=60)
        assert engine.client().containers.list(all=True) == []

    play(nats_session.url, cluster_name, tmp_path, engine, body)


def test_an_engine_that_hangs_delays_no_heartbeat_and_confirms_nothing(
    nats_session: NatsServer, cluster_name: str, tmp_path: Path, live_engine: Engine
) -> None:
    async def body(agent: AgentProcess, engine: Engine) -> None:
        start(agent, engine)
        await both(agent)
        before = started(engine)
        engine.pause()
        try:
            await agent.assign()
            end = time.monotonic() + 15
            while time.monotonic() < end:
                health = await asyncio.to_thread(agent.health)
                assert health["session_valid"]
                assert health["heartbeat_age_s"] < 4
                report = await agent.report()
                assert report is not None
                assert len(report.executions) == 2, "still listed: nobody knows better"
                await asyncio.sleep(0.5)
            report = await agent.reports(lambda r: r.problem != "", within_s=30)
            assert {one.phase for one in report.executions} == {Phase.STOPPING}
        finally:
            engine.resume()
        await agent.reports(lambda r: not r.executions and not r.problem, within_s=60)
        assert started(engine) == {}
        assert len(before) == 2

    play(nats_session.url, cluster_name, tmp_path, live_engine, body)
