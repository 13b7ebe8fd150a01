"""A real agent with real NATS, the process executor and real Bento, told what to do by hand-written assignments."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from agent import process_table
from shared.documents import encode
from shared.log_stream import LOG_DATA, LogRequest
from shared.states import Phase, Wanted
from tests.support import processes
from tests.support.agent_process import AgentProcess, agent_on, phases
from tests.support.nats_servers import NatsServer

READY = {"orders-0-1": "ready"}
Body = Callable[[AgentProcess], Awaitable[None]]


def play(url: str, cluster: str, directory: Path, body: Body) -> None:
    async def whole() -> None:
        async with agent_on(url, cluster, directory) as agent:
            await body(agent)

    asyncio.run(whole())


def test_run_pause_resume_remove(nats_session: NatsServer, cluster_name: str, tmp_path: Path) -> None:
    async def body(agent: AgentProcess) -> None:
        agent.start("--label", "zone=a", "--cpu", "3", "--memory", "2GiB")
        beat = await agent.beats()
        assert (beat.cpu, beat.memory_bytes, beat.labels) == (3.0, 2 * 2**30, {"zone": "a", "host": "h1"})
        assert (beat.lease_s, beat.store_id) == (8.0, "")
        orders = await agent.item("orders")
        await agent.assign(orders)
        report = await agent.reports(lambda r: phases(r) == READY)
        assert agent.alive() == ["orders-0-1"]
        assert report.executions[0].runtime == str(agent.executions()["orders-0-1"].process.pid)  # type: ignore[union-attr]
        assert (await agent.beats()).drivers["process"].ok

        await agent.assign(replace(orders, wanted=Wanted.PAUSE))
        await agent.reports(lambda r: phases(r) == {"orders-0-1": "stopped"})
        assert agent.alive() == []
        assert list(agent.executions()) == ["orders-0-1"], "kept, to be started again"
        await agent.assign(orders)
        resumed = await agent.reports(lambda r: phases(r) == READY)
        assert resumed.executions[0].restarts == 0

        process = agent.executions()["orders-0-1"].process
        assert process is not None
        await agent.assign()
        await agent.reports(lambda r: r.plan == 4 and not r.executions)
        assert not process_table.alive(process)
        await _until(lambda: not list((tmp_path / "h1" / "bundles").iterdir()))
        assert list((agent.run_dir / "executions").iterdir()) == []
        assert list((tmp_path / "h1" / "logs").iterdir()) == []

    play(nats_session.url, cluster_name, tmp_path, body)


def test_a_killed_agent_is_followed_by_one_that_adopts(
    nats_session: NatsServer, cluster_name: str, tmp_path: Path
) -> None:
    async def body(agent: AgentProcess) -> None:
        agent.start()
        await agent.assign(await agent.item("orders"), await agent.item("payments"))
        before = await agent.reports(lambda r: set(phases(r).values()) == {"ready"} and len(r.executions) == 2)
        running = {name: content.process for name, content in agent.executions().items()}
        agent.kill()
        assert agent.alive() == ["orders-0-1", "payments-0-1"]
        agent.start()
        beat = await agent.beats()
        assert beat.session == before.session, "back within the lease: the same session"
        await _until(lambda: agent.health().get("ready") == 2)
        assert {name: content.process for name, content in agent.executions().items()} == running
        # What it adopted it also stops, and what it adopted it also restarts.
        process = running["orders-0-1"]
        assert process is not None
        process_table.send(process, signal.SIGKILL)
        report = await agent.reports(
            lambda r: any(one.restarts == 1 and one.phase is Phase.READY for one in r.executions)
        )
        assert report.executions[0].reason == ""
        await agent.assign()
        await agent.reports(lambda r: not r.executions)
        assert agent.alive() == []

    play(nats_session.url, cluster_name, tmp_path, body)


def test_an_agent_that_starts_without_nats_keeps_what_runs_running(
    nats_server: NatsServer, cluster_name: str, tmp_path: Path
) -> None:
    async def body(agent: AgentProcess) -> None:
        agent.start()
        both = [replace(await agent.item(name), lease_bound=False) for name in ("orders", "payments")]
        await agent.assign(*both)
        await agent.reports(lambda r: list(phases(r).values()) == ["ready", "ready"])
        running = {name: content.process for name, content in agent.executions().items()}
        memories = tmp_path / "h1" / "restarts.json"
        await _until(lambda: memories.read_text().count('"alive":true') == 2)
        agent.kill()
        nats_server.stop()
        crashed = running["orders-0-1"]
        assert crashed is not None
        process_table.send(crashed, signal.SIGKILL)
        agent.start()
        await _until(lambda: "NATS cannot be reached" in agent.said())
        await _until(lambda: agent.alive() == ["orders-0-1", "payments-0-1"], within_s=30)
        assert agent.executions()["payments-0-1"].process == running["payments-0-1"], "adopted"
        assert agent.executions()["orders-0-1"].process != crashed, "started again from the last assignment"
        assert agent.health()["ok"] is False
        nats_server.start()
        report = await agent.reports(
            lambda r: list(phases(r).values()) == ["ready", "ready"] and r.executions[0].restarts == 1, within_s=40
        )
        assert report.executions[1].restarts == 0
        assert agent.executions()["payments-0-1"].process == running["payments-0-1"]

    play(nats_server.url, cluster_name, tmp_path, body)


def test_a_restart_of_nats_loses_nothing_and_moves_nothing(
    nats_server: NatsServer, cluster_name: str, tmp_path: Path
) -> None:
    async def body(agent: AgentProcess) -> None:
        agent.start()
        orders = await agent.item("orders")
        await agent.assign(orders)
        before = await agent.reports(lambda r: phases(r) == READY)
        running = agent.executions()["orders-0-1"].process
        nats_server.restart(crash=True)
        beat = await agent.beats()
        assert beat.session == before.session, "shorter than the lease"
        await agent.assign(orders, await agent.item("payments"))
        await agent.reports(lambda r: list(phases(r).values()) == ["ready", "ready"])
        assert agent.executions()["orders-0-1"].process == running

    play(nats_server.url, cluster_name, tmp_path, body)


def test_ends_are_counted_delayed_and_explained(nats_session: NatsServer, cluster_name: str, tmp_path: Path) -> None:
    """A configuration that Bento refuses, one that finishes, and one that is fine beside them."""

    async def body(agent: AgentProcess) -> None:
        agent.start()
        refused = await agent.item(
            "refused", "input: {generate: {mapping: 'root = 1', nonsense: 5}}\noutput: {drop: {}}\n"
        )
        finished = await agent.item(
            "finished", "input: {generate: {count: 1, mapping: 'root = 1'}}\noutput: {drop: {}}\n"
        )
        await agent.assign(finished, await agent.item("orders"), refused)
        report = await agent.reports(
            lambda r: len(r.executions) == 3 and r.executions[0].restarts >= 2 and r.executions[2].phase is Phase.FAILED
        )
        done, fine, bad = report.executions
        assert fine.phase is Phase.READY
        assert (fine.restarts, fine.last_words) == (0, ())
        assert (bad.exit_code, bad.restarts) == (1, 0)
        assert "Bento refuses the configuration" in bad.reason
        assert any("nonsense" in line for line in bad.last_words)
        assert done.exit_code == 0
        seen: set[float] = set()
        end = time.monotonic() + 30
        while len(seen) < 4 and time.monotonic() < end:
            seen = {float(line.partition("delay_s=")[2].split()[0]) for line in _ends(agent, "finished-0-1")}
            await asyncio.sleep(0.05)
        assert seen == {0.5, 1.0, 2.0, 4.0}
        backing_off = await agent.reports(lambda r: r.executions[0].phase is Phase.BACKOFF)
        assert backing_off.executions[0].reason == "it ended by itself (exit code 0); a service must go on"

    play(nats_session.url, cluster_name, tmp_path, body)


def test_a_second_agent_of_the_same_name_is_refused_while_the_first_lives(
    nats_session: NatsServer, cluster_name: str, tmp_path: Path
) -> None:
    async def body(agent: AgentProcess) -> None:
        agent.start()
        await agent.assign(await agent.item("orders"))
        first = await agent.reports(lambda r: phases(r) == READY)
        (tmp_path / "second").mkdir()
        async with agent_on(nats_session.url, cluster_name, tmp_path / "second") as second:
            second.start()
            await _until(
                lambda: "is alive: give one of the two hosts another name" in second.health().get("waiting", "")
            )
            await asyncio.sleep(3)  # longer than the four reads after which a silent name is taken
            assert second.health()["ok"] is False
            assert second.alive() == []
            beat = await agent.heartbeat()
            assert beat is not None
            assert beat.session == first.session
            # The first one leaves; now the name is free.
            agent.terminate()
            await _until(lambda: bool(second.health().get("ok")), within_s=20)
            beat = await second.beats()
            assert beat.session.agent != first.session.agent

    play(nats_session.url, cluster_name, tmp_path, body)


def test_two_agents_never_share_a_directory(nats_session: NatsServer, cluster_name: str, tmp_path: Path) -> None:
    async def body(agent: AgentProcess) -> None:
        agent.start()
        await agent.beats()
        first, agent.process = agent.process, None
        assert first is not None
        try:
            agent.start()
            assert agent.process is not None
            assert await asyncio.to_thread(agent.process.wait, 30) == 1
            assert "in use by another agent" in agent.said()
        finally:
            processes.kill(first)

    play(nats_session.url, cluster_name, tmp_path, body)


def test_sigterm_leaves_executions_running_and_stop_on_exit_removes_them(
    nats_session: NatsServer, cluster_name: str, tmp_path: Path
) -> None:
    async def body(agent: AgentProcess) -> None:
        agent.start()
        await agent.assign(await agent.item("orders"))
        await agent.reports(lambda r: phases(r) == READY)
        running = agent.executions()["orders-0-1"].process
        assert agent.terminate() == 0
        assert agent.alive() == ["orders-0-1"]
        agent.start("--stop-on-exit")
        await _until(lambda: agent.health().get("ready") == 1)
        assert agent.executions()["orders-0-1"].process == running
        assert agent.terminate() == 0
        assert agent.alive() == []
        assert list((agent.run_dir / "executions").iterdir()) == []
        agent.start()
        await _until(lambda: agent.health().get("ready") == 1)
        report = await agent.reports(lambda r: phases(r) == READY)
        assert report.executions[0].restarts == 0, "that was no crash"

    play(nats_session.url, cluster_name, tmp_path, body)


def test_logs_metrics_and_health(nats_session: NatsServer, cluster_name: str, tmp_path: Path) -> None:
    chatty = "input: {generate: {interval: 10ms, mapping: 'root = count(\"n\")'}}\noutput: {stdout: {}}\n"

    async def body(agent: AgentProcess) -> None:
        agent.start()
        await agent.assign(await agent.item("orders", chatty))
        await agent.reports(lambda r: phases(r) == READY)
        await asyncio.sleep(0.5)

        async def read(request: LogRequest, lines: int) -> list[int]:
            text = b""
            stream = await agent.store.request_many(agent.keys.logs("h1"), encode(request), idle_timeout=10.0)
            async for message in stream:
                if message[:1] == LOG_DATA:
                    text += message[1:]
                if text.count(b"\n") >= lines:
                    break
            return [int(line) for line in text.split(b"\n")[:lines] if line.isdigit()]

        tail = await read(LogRequest(execution="orders-0-1", tail=5), 5)
        assert len(tail) == 5
        assert tail == list(range(tail[0], tail[0] + 5))
        followed = await read(LogRequest(execution="orders-0-1", tail=1, follow=True, stream="s"), 200)
        assert followed == list(range(followed[0], followed[0] + 200)), "whole and in order"

        metrics = await asyncio.to_thread(agent.metrics)
        assert 'shoal_agent_executions{phase="ready"} 1.0' in metrics
        assert 'shoal_agent_heartbeats_total{outcome="acknowledged"}' in metrics
        assert 'shoal_agent_executor_call_seconds_count{call="start",outcome="ok"} 1.0' in metrics
        health = await asyncio.to_thread(agent.health)
        assert health["ok"] is True
        assert health["heartbeat_age_s"] < 5
        assert (health["applied_plan"], health["ready"]) == (1, 1)

    play(nats_session.url, cluster_name, tmp_path, body)


@pytest.mark.cluster
def test_a_frozen_server_is_left_within_the_lease(nats_cluster: object, cluster_name: str, tmp_path: Path) -> None:
    """Its client notices nothing by itself: connections stay open, and nothing answers."""
    from tests.support.nats_servers import NatsCluster

    assert isinstance(nats_cluster, NatsCluster)

    async def body(agent: AgentProcess) -> None:
        agent.start()
        await agent.assign(await agent.item("orders"))
        before = await agent.reports(lambda r: phases(r) == READY)
        beat = await agent.beats()
        assert beat.lease_s == 12.0, "replicated"
        leader = nats_cluster.stream_leader(f"KV_{agent.keys.hosts}")
        frozen = next(server for server in nats_cluster.servers if server is not leader)
        frozen.pause()
        try:
            end = time.monotonic() + 12
            while time.monotonic() < end:
                assert agent.health()["session_valid"]
                await asyncio.sleep(0.2)
            after = await asyncio.to_thread(agent.health)
            assert after["session"] == str(before.session)
            assert after["heartbeat_age_s"] < 5
        finally:
            frozen.resume()

    play(nats_cluster.url, cluster_name, tmp_path, body)


def _ends(agent: AgentProcess, execution: str) -> list[str]:
    return [
        line.replace('"', "").replace(": ", "=").replace(",", " ")
        for line in agent.said().splitlines()
        if "ended by itself" in line and execution in line
    ]


async def _until(holds: Callable[[], bool], within_s: float = 30.0) -> None:
    """Wait until it holds; looked at in a thread, because it may ask the agent."""
    end = time.monotonic() + within_s
    while not await asyncio.to_thread(holds):
        assert time.monotonic() < end, f"not within {within_s} s"
        await asyncio.sleep(0.05)
