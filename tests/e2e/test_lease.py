"""A real agent, real runners and real Bento, when the session of their host ends, whatever ends it.

`orders` is lease-bound, `payments` runs on for as long as it is wanted.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from agent.process_table import Identity
from runner import permits
from shared.documents import Report, Session, encode
from shared.states import Phase
from tests.support.agent_process import AgentProcess, agent_on, phases
from tests.support.engines import Engine
from tests.support.images import RUNNER_TAG
from tests.support.nats_servers import NatsServer
from tests.support.relay import Relay, relay_to

LEASE_S = 5.0
PATIENCE_S = 60.0  # for what takes lease, fence kill and poll, 7.25 s, on a machine that does something else
BOUND, FREE = "orders-0-1", "payments-0-1"
READY = {BOUND: "ready", FREE: "ready"}

Body = Callable[[AgentProcess, Relay], Awaitable[None]]


def play(url: str, cluster: str, directory: Path, body: Body) -> None:
    """Both run when the body begins. Only the agent is behind the relay."""

    async def whole() -> None:
        async with relay_to(url) as relay, agent_on(url, cluster, directory) as agent:
            agent.url = relay.url
            agent.start("--lease", str(LEASE_S))
            await agent.assign(await agent.item("orders"), replace(await agent.item("payments"), lease_bound=False))
            await agent.reports(lambda r: phases(r) == READY, within_s=PATIENCE_S)
            await body(agent, relay)

    asyncio.run(whole())


def runner_of(agent: AgentProcess, execution: str) -> Identity | None:
    return agent.executions()[execution].process


def lease_file(agent: AgentProcess) -> Path:
    return agent.run_dir / "lease" / permits.LEASE_FILE


def grants(agent: AgentProcess) -> set[str]:
    """Executions that have a grant."""
    prefix = f"{agent.cluster}-01234567-"
    return {path.name.removeprefix(prefix) for path in (agent.run_dir / "lease" / permits.GRANTS_DIR).iterdir()}


async def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not await asyncio.to_thread(holds):
        assert time.monotonic() < end, f"not within {PATIENCE_S} s"
        await asyncio.sleep(0.05)


async def only_what_is_free_runs(agent: AgentProcess) -> None:
    await until(lambda: agent.alive() == [FREE])
    assert set(agent.executions()) == {BOUND, FREE}, "what is needed to start it again is kept"


def stopped_itself(agent: AgentProcess) -> bool:
    failure = agent.health_of(BOUND)["failure"]
    return failure is not None and failure["kind"] == "lease"


def unanswered(report: Report) -> bool:
    return any("the leader has not answered session" in one.reason for one in report.executions)


async def resumes(agent: AgentProcess, before: Session, free: Identity | None) -> None:
    """In place, uncounted, and only when it is answered; the other one was never touched."""
    report = await agent.reports(lambda r: r.session != before and unanswered(r), within_s=PATIENCE_S)
    assert agent.alive() == [FREE]
    directories = sorted((agent.run_dir / "executions").iterdir())
    await agent.answer(report.session)
    report = await agent.reports(lambda r: phases(r) == READY, within_s=PATIENCE_S)
    assert [one.restarts for one in report.executions] == [0, 0]
    assert sorted((agent.run_dir / "executions").iterdir()) == directories
    assert runner_of(agent, FREE) == free


def test_an_agent_that_was_killed(nats_session: NatsServer, cluster_name: str, tmp_path: Path) -> None:
    async def body(agent: AgentProcess, _: Relay) -> None:
        session, free = await agent.session(), runner_of(agent, FREE)
        agent.kill()
        await only_what_is_free_runs(agent)
        assert stopped_itself(agent)
        agent.start("--lease", str(LEASE_S))
        await resumes(agent, session, free)

    play(nats_session.url, cluster_name, tmp_path, body)


def test_an_agent_that_was_frozen(nats_session: NatsServer, cluster_name: str, tmp_path: Path) -> None:
    async def body(agent: AgentProcess, _: Relay) -> None:
        session, free = await agent.session(), runner_of(agent, FREE)
        assert agent.process is not None
        agent.process.send_signal(signal.SIGSTOP)
        try:
            await only_what_is_free_runs(agent)
            assert stopped_itself(agent)
        finally:
            agent.process.send_signal(signal.SIGCONT)
        await resumes(agent, session, free)
        report = await agent.report()
        assert report is not None
        assert report.session == replace(session, number=session.number + 1)

    play(nats_session.url, cluster_name, tmp_path, body)


def test_nats_is_unreachable_from_this_host_only(nats_session: NatsServer, cluster_name: str, tmp_path: Path) -> None:
    async def body(agent: AgentProcess, relay: Relay) -> None:
        session, free = await agent.session(), runner_of(agent, FREE)
        relay.cut()
        await only_what_is_free_runs(agent)
        assert await agent.session() == session, "nobody else was disturbed"
        await until(lambda: grants(agent) == {FREE})
        await relay.mend()
        await resumes(agent, session, free)
        assert grants(agent) == {BOUND, FREE}

    play(nats_session.url, cluster_name, tmp_path, body)


def test_a_tombstone(nats_session: NatsServer, cluster_name: str, tmp_path: Path) -> None:
    async def body(agent: AgentProcess, _: Relay) -> None:
        session, free = await agent.session(), runner_of(agent, FREE)
        beat = await agent.heartbeat()
        assert beat is not None
        await agent.store.write(agent.keys.hosts, "h1", encode(replace(beat, dead=session)))
        await only_what_is_free_runs(agent)
        await resumes(agent, session, free)

    play(nats_session.url, cluster_name, tmp_path, body)


DAMAGES = {
    "deleted": None,
    "corrupted": "agent=",
    "of another boot": permits.lease_text(
        permits.Lease(agent="a", boot="another", number=1, deadline_s=1e9, lease_s=1e5)
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_lease_file_is_damaged(nats_session: NatsServer, cluster_name: str, tmp_path: Path, damage: str) -> None:
    """While the agent lives it is written again and nothing restarts; afterwards nobody extends anything."""

    def hurt(agent: AgentProcess) -> None:
        content = DAMAGES[damage]
        with contextlib.suppress(FileNotFoundError):
            lease_file(agent).unlink()
        if content is not None:
            lease_file(agent).write_text(content)

    async def body(agent: AgentProcess, _: Relay) -> None:
        session, running = await agent.session(), {name: runner_of(agent, name) for name in READY}

        def whole() -> bool:
            with contextlib.suppress(FileNotFoundError):
                found = permits.parse_lease(lease_file(agent).read_text())
                return found is not None and found.agent == session.agent
            return False

        hurt(agent)
        await until(whole)
        for _beat in range(3):
            await agent.beats()
        assert {name: runner_of(agent, name) for name in READY} == running
        agent.kill()
        hurt(agent)
        await only_what_is_free_runs(agent)
        assert stopped_itself(agent)
        agent.start("--lease", str(LEASE_S))
        await resumes(agent, session, running[FREE])

    play(nats_session.url, cluster_name, tmp_path, body)


def test_a_grant_that_somebody_deletes(nats_session: NatsServer, cluster_name: str, tmp_path: Path) -> None:
    """It stops, and as the session holds it is started again at once, which is no restart."""

    async def body(agent: AgentProcess, _: Relay) -> None:
        before = {name: runner_of(agent, name) for name in READY}
        for path in (agent.run_dir / "lease" / permits.GRANTS_DIR).iterdir():
            path.unlink()
        await until(lambda: runner_of(agent, BOUND) not in (None, before[BOUND]))
        report = await agent.reports(lambda r: phases(r) == READY, within_s=PATIENCE_S)
        assert [one.restarts for one in report.executions] == [0, 0]
        assert runner_of(agent, FREE) == before[FREE]

    play(nats_session.url, cluster_name, tmp_path, body)


def test_on_partition_changes_while_it_runs(nats_session: NatsServer, cluster_name: str, tmp_path: Path) -> None:
    """What has become lease-bound stops with the session; what no longer is goes on. Neither is restarted for it."""

    async def body(agent: AgentProcess, relay: Relay) -> None:
        assert agent.told is not None
        running = {name: runner_of(agent, name) for name in READY}
        orders, payments = agent.told.executions
        await agent.assign(
            replace(orders, lease_bound=False), replace(payments, lease_bound=True, bound_in=agent.plan + 1)
        )
        await agent.reports(lambda r: r.plan == agent.plan)
        assert {name: runner_of(agent, name) for name in READY} == running
        relay.cut()
        await until(lambda: agent.alive() == [BOUND])
        assert runner_of(agent, BOUND) == running[BOUND]

    play(nats_session.url, cluster_name, tmp_path, body)


@pytest.mark.docker
@pytest.mark.timeout(600)
def test_containers_of_an_agent_that_was_killed(
    nats_session: NatsServer, cluster_name: str, tmp_path: Path, engine: Engine
) -> None:
    async def whole() -> None:
        async with agent_on(nats_session.url, cluster_name, tmp_path) as agent:
            agent.executor = "docker"
            options = ("--docker-host", engine.url, "--image", RUNNER_TAG, "--lease", str(LEASE_S))
            agent.start(*options)
            await agent.assign(await agent.item("orders"), replace(await agent.item("payments"), lease_bound=False))
            before = await agent.reports(lambda r: phases(r) == READY, within_s=PATIENCE_S)

            def running() -> list[str]:
                return sorted(str(one.name).partition("-01234567-")[2] for one in engine.client().containers.list())

            assert running() == [BOUND, FREE]
            agent.kill()
            await until(lambda: running() == [FREE])
            agent.start(*options)
            report = await agent.reports(lambda r: r.session != before.session and unanswered(r), within_s=PATIENCE_S)
            await agent.answer(report.session)
            report = await agent.reports(lambda r: phases(r) == READY, within_s=PATIENCE_S)
            assert [(one.phase, one.restarts) for one in report.executions] == [(Phase.READY, 0), (Phase.READY, 0)]
            assert [one.runtime for one in report.executions] == [one.runtime for one in before.executions]
            await agent.assign()
            await agent.reports(lambda r: not r.executions and not r.problem, within_s=PATIENCE_S)

    asyncio.run(whole())
