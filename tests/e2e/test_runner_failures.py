"""What cannot run, and what gets in the way, with the real runner and the real Bento."""

import asyncio
import json
import signal
import socket
from pathlib import Path
from typing import Any

import nats
import pytest

from runner import contract
from tests.e2e.test_runner_rig import STEADY, Execution, eventually
from tests.support.components import require
from tests.support.nats_servers import NatsServer
from tests.support.processes import free_port

REFUSED = {
    "unknown field": "input: {generate: {intervall: 1s, mapping: 'root = 1'}}\noutput: {drop: {}}\n",
    "unknown input": "input: {nope: {}}\noutput: {drop: {}}\n",
    "no YAML": "input: [",
    "missing variable": "input: {generate: {mapping: 'root = 1'}}\noutput: {file: {path: '${NOWHERE}'}}\n",
    "missing file": STEADY + "pipeline: {processors: [{json_schema: {schema_path: 'file://./none.json'}}]}\n",
}


@pytest.mark.parametrize("config", REFUSED.values(), ids=REFUSED)
def test_a_configuration_that_bento_refuses(tmp_path: Path, config: str) -> None:
    with Execution(tmp_path, config) as execution:
        code, health = execution.ended(execution.start())
        assert (code, health["exit"]["code"]) == (1, 1), "Bento's own exit code"
        assert health["failure"]["kind"] == "config"
        assert health["failure"]["message"]
        assert health["last_words"]


def test_two_runners_on_one_directory(tmp_path: Path) -> None:
    with Execution(tmp_path) as execution:
        first = execution.start_ready()
        before = execution.health
        assert before is not None
        second = execution.start()
        assert second.wait(30) == contract.EXIT_ALREADY_RUNNING
        after = execution.health
        assert after is not None
        assert (first.poll(), after["runner_pid"]) == (None, first.pid), "the first one's file is its own"
        first.send_signal(signal.SIGTERM)
        assert first.wait(30) == 0
        execution.start_ready()


def test_bento_holds_the_lock_while_it_lives(tmp_path: Path) -> None:
    """A runner that was stopped alone (SIGSTOP) and whose directory is started again must not give a second copy."""
    with Execution(tmp_path) as execution:
        first = execution.start_ready()
        first.send_signal(signal.SIGSTOP)
        assert execution.start().wait(30) == contract.EXIT_ALREADY_RUNNING


@pytest.mark.parametrize(
    ("change", "code", "kind"),
    [
        pytest.param({contract.DIGEST: "0" * 64}, contract.EXIT_DIGEST, "digest", id="other digest"),
        pytest.param({contract.BUNDLE: "/nowhere/b.tar"}, contract.EXIT_BUNDLE, "bundle", id="no bundle, no fetch"),
        pytest.param({contract.BENTO: "/nowhere/bento"}, contract.EXIT_BENTO_MISSING, "bento-missing", id="no bento"),
        pytest.param({contract.BENTO: "/etc"}, contract.EXIT_BENTO_MISSING, "bento-missing", id="no program"),
        pytest.param({contract.LOG: "/dev/null/x/y"}, contract.EXIT_HOST, "host", id="no place for the log"),
    ],
)
def test_failures_of_the_runner_itself(tmp_path: Path, change: dict[str, str], code: int, kind: str) -> None:
    with Execution(tmp_path) as execution:
        execution.env |= change
        found, health = execution.ended(execution.start())
        assert (found, health["failure"]["kind"], health["phase"]) == (code, kind, "exited")
        assert health["failure"]["message"]


def test_a_program_that_cannot_be_executed(tmp_path: Path) -> None:
    program = tmp_path / "bento"
    program.write_bytes(b"\x7fELF nonsense")
    program.chmod(0o755)
    with Execution(tmp_path) as execution:
        execution.env[contract.BENTO] = str(program)
        code, health = execution.ended(execution.start())
        assert (code, health["failure"]["kind"]) == (contract.EXIT_BENTO_MISSING, "bento-missing")


def test_a_wrong_environment(tmp_path: Path) -> None:
    with Execution(tmp_path) as execution:
        del execution.env[contract.STOP_GRACE_S]
        assert execution.start().wait(30) == contract.EXIT_SETTINGS


def slow_bento(tmp_path: Path) -> Path:
    """The real Bento, started when the file `go` appears: time to get in its way."""
    script = tmp_path / "slow-bento"
    script.write_text(f'#!/bin/sh\nwhile [ ! -e "{tmp_path}/go" ]; do sleep 0.02; done\nexec {require("bento")} "$@"\n')
    script.chmod(0o755)
    return script


@pytest.mark.parametrize("answers", [True, False], ids=["stranger speaks HTTP", "stranger is silent"])
def test_a_port_that_is_taken_in_between_is_left(tmp_path: Path, answers: bool) -> None:
    with Execution(tmp_path) as execution:
        execution.env[contract.BENTO] = str(slow_bento(tmp_path))
        runner = execution.start()
        taken = execution.wait(lambda health: health["http"] != "")["http"]
        with socket.create_server(("127.0.0.1", int(taken.rpartition(":")[2]))) as thief:
            thief.settimeout(30)
            (tmp_path / "go").touch()
            if answers:
                connection, _ = thief.accept()
                with connection:
                    connection.recv(1000)
                    connection.sendall(b"HTTP/1.0 404 Not Found\r\n\r\nno")
            health = execution.wait(lambda health: bool(health["ready"]))
        assert health["http"] != taken
        assert runner.poll() is None
        assert (health["exit"], health["failure"]) == (None, None)


def test_a_stated_address_that_is_taken_is_said(tmp_path: Path) -> None:
    """Bento goes on without its HTTP server; the stranger there answers 200 and must not be believed."""
    port = free_port()
    address = f"127.0.0.1:{port}"
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    config = f"http: {{address: '{address}'}}\n{STEADY}"
    with Execution(tmp_path / "a", config) as first, Execution(tmp_path / "b", config) as second:
        first.env[contract.HTTP] = second.env[contract.HTTP] = address
        first.start_ready()
        second.start()
        health = second.wait(lambda health: health["not_ready_reason"] != "")
        assert (health["phase"], str(port) in health["not_ready_reason"]) == ("running", True)


# --- the bundle is not on the host


def put(server: NatsServer, bucket: str, name: str, data: bytes, *, lose_chunks: bool = False) -> None:
    async def run() -> None:
        client = await nats.connect(server.url)
        stream = client.jetstream()
        store = await stream.create_object_store(bucket)
        await store.put(name, data)
        if lose_chunks:
            await stream.purge_stream(f"OBJ_{bucket}", subject=f"$O.{bucket}.C.>")
        await client.close()

    asyncio.run(run())


def fetch_options(server: NatsServer, bucket: str, **more: Any) -> str:
    return json.dumps({"servers": ["nats://127.0.0.1:1", server.url], "bucket": bucket, **more})


def test_a_missing_bundle_is_fetched(tmp_path: Path, nats_session: NatsServer, cluster_name: str) -> None:
    with Execution(tmp_path) as execution:
        put(nats_session, cluster_name, execution.digest, execution.data)
        execution.bundle.unlink()
        execution.env[contract.FETCH] = fetch_options(nats_session, cluster_name)
        runner = execution.start()
        assert execution.wait(lambda health: health["phase"] != "")["phase"] == "fetching"
        execution.wait(lambda health: bool(health["ready"]))
        runner.send_signal(signal.SIGTERM)
        assert runner.wait(30) == 0
        # Fetched once: the next start needs no store.
        execution.env[contract.FETCH] = json.dumps({"servers": ["nats://127.0.0.1:1"], "bucket": "x"})
        execution.start_ready()


def test_a_bundle_that_is_nowhere(tmp_path: Path, nats_session: NatsServer, cluster_name: str) -> None:
    with Execution(tmp_path) as execution:
        put(nats_session, cluster_name, "another", b"x")
        execution.env |= {contract.BUNDLE: "", contract.FETCH: fetch_options(nats_session, cluster_name)}
        code, health = execution.ended(execution.start())
        assert (code, health["failure"]["kind"]) == (contract.EXIT_BUNDLE, "bundle")
        assert "not found" in health["failure"]["message"]


def test_an_object_with_other_content(tmp_path: Path, nats_session: NatsServer, cluster_name: str) -> None:
    with Execution(tmp_path) as execution:
        put(nats_session, cluster_name, execution.digest, b"something else")
        execution.env |= {contract.BUNDLE: "", contract.FETCH: fetch_options(nats_session, cluster_name)}
        code, health = execution.ended(execution.start())
        assert (code, "digest" in health["failure"]["message"]) == (contract.EXIT_BUNDLE, True)


@pytest.mark.slow
def test_an_object_without_its_chunks_does_not_hang(
    tmp_path: Path, nats_session: NatsServer, cluster_name: str
) -> None:
    with Execution(tmp_path) as execution:
        put(nats_session, cluster_name, execution.digest, execution.data, lose_chunks=True)
        execution.env |= {contract.BUNDLE: "", contract.FETCH: fetch_options(nats_session, cluster_name)}
        code, health = execution.ended(execution.start())
        assert (code, "not complete" in health["failure"]["message"]) == (contract.EXIT_BUNDLE, True)


def test_stopping_while_it_fetches(tmp_path: Path, nats_server: NatsServer, cluster_name: str) -> None:
    with Execution(tmp_path) as execution:
        put(nats_server, cluster_name, execution.digest, execution.data, lose_chunks=True)
        execution.env |= {contract.BUNDLE: "", contract.FETCH: fetch_options(nats_server, cluster_name)}
        runner = execution.start()
        execution.wait(lambda health: health["phase"] == "fetching")
        runner.send_signal(signal.SIGTERM)
        code, health = execution.ended(runner)
        assert (code, health["failure"], health["bento_pid"]) == (143, None, None)


def test_no_store_to_fetch_from(tmp_path: Path) -> None:
    with Execution(tmp_path) as execution:
        options = json.dumps({"servers": ["nats://127.0.0.1:1"], "bucket": "b"})
        execution.env |= {contract.BUNDLE: "", contract.FETCH: options}
        code, health = execution.ended(execution.start())
        assert (code, health["failure"]["kind"]) == (contract.EXIT_BUNDLE, "bundle")
        assert "127.0.0.1:1" in health["failure"]["message"]
        eventually(lambda: execution.log.read_text() or None, "the log says it too")
