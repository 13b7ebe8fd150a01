"""One execution from start to end, with the real runner and the real Bento."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner import contract
from tests.e2e.test_runner_rig import STEADY, Execution, eventually, start_time
from tests.support.components import ROOT, require_root, unavailable
from tests.support.processes import free_port


@pytest.fixture
def steady(tmp_path: Path) -> Iterator[Execution]:
    with Execution(tmp_path) as execution:
        yield execution


def test_becomes_ready_counts_and_drains_on_sigterm(steady: Execution) -> None:
    runner = steady.start_ready()
    health = steady.wait(lambda health: health["counters"].get("output_sent", 0) > 0)
    assert (health["phase"], health["runner_pid"], health["failure"]) == ("ready", runner.pid, None)
    assert health["started_boot_s"] <= health["ready_boot_s"] <= health["updated_boot_s"]
    assert health["counters"]["input_connection_up"] == 1
    assert set(health["counters"]) <= set(contract.COUNTERS)
    assert os.getpgid(health["bento_pid"]) == runner.pid, "one group, so that killing it leaves nothing"
    with urllib.request.urlopen(f"http://{health['http']}/ready", timeout=10) as answer:
        assert answer.status == 200
    runner.send_signal(signal.SIGTERM)
    code, health = steady.ended(runner)
    assert (code, health["phase"], health["ready"]) == (0, "exited", False)
    assert health["exit"] == {"code": 0, "signal": None, "killed_after_grace": False}
    assert any("SIGTERM" in line for line in health["last_words"])


def test_ends_with_its_input_and_nothing_of_the_output_is_missing(tmp_path: Path) -> None:
    config = """
    input: {generate: {count: 3000, interval: "", mapping: 'root = "message %06d".format(counter())'}}
    output: {stdout: {}}
    """
    with Execution(tmp_path, config) as execution:
        code, health = execution.ended(execution.start())
        assert (code, health["phase"], health["failure"]) == (0, "exited", None)
        # Not by line: Bento writes a message and its line end apart, and may log in between.
        found = re.findall(r"message \d{6}", execution.log.read_text())
        assert found == [f"message {number:06d}" for number in range(1, 3001)]


def test_a_short_pipeline_runs_exactly_once(tmp_path: Path) -> None:
    """It ends while it is being asked for the first time; that must not look like a port that was taken."""
    config = """
    input: {generate: {count: 5, interval: "", mapping: 'root = "hello"'}}
    output: {stdout: {}}
    """
    for number in range(15):
        with Execution(tmp_path / str(number), config) as execution:
            code, _ = execution.ended(execution.start())
            assert (code, execution.log.read_text().count("hello")) == (0, 5)


def test_what_bento_sees(tmp_path: Path) -> None:
    """Working directory, files of the bundle by relative path, environment without the runner's own names."""
    config = """
    input: {file: {paths: [data.txt], scanner: {lines: {}}}}
    pipeline:
      processors:
        - mapping: 'root = "%v %v [%v]".format(content().string(), env("SHOAL_SLOT"), env("SHOAL_RUNNER_DIR").or(""))'
    output: {file: {path: ./out.txt, codec: lines}}
    """
    with Execution(tmp_path, config, data__txt="hello\n") as execution:
        code, _ = execution.ended(execution.start())
        assert code == 0
        assert (execution.directory / "files/out.txt").read_text() == "hello 3 []\n"
        # Fresh at each start.
        (execution.directory / "files/stale").write_text("x")
        execution.ended(execution.start())
        assert not (execution.directory / "files/stale").exists()


def test_without_a_log_output_goes_to_standard_output(tmp_path: Path) -> None:
    config = "input: {generate: {count: 5, interval: '', mapping: 'root = \"hello\"'}}\noutput: {stdout: {}}\n"
    with Execution(tmp_path, config) as execution:
        del execution.env[contract.LOG]
        read, write = os.pipe()
        runner = execution.start(stdout=write)
        os.close(write)
        with os.fdopen(read, "rb") as output:
            text = output.read().decode()
        assert runner.wait(10) == 0
        assert text.count("hello") == 5


def test_a_bento_that_does_not_drain_is_killed_after_the_grace(tmp_path: Path) -> None:
    config = """
    shutdown_timeout: 600s
    input: {generate: {interval: 20ms, mapping: 'root = "x"'}}
    pipeline: {processors: [{sleep: {duration: 600s}}]}
    output: {drop: {}}
    """
    with Execution(tmp_path, config) as execution:
        execution.env[contract.STOP_GRACE_S] = "0.5"
        runner = execution.start_ready()
        runner.send_signal(signal.SIGTERM)
        code, health = execution.ended(runner)
        assert code == 128 + signal.SIGKILL
        assert health["exit"] == {"code": 137, "signal": 9, "killed_after_grace": True}


def test_a_killed_runner_takes_bento_along(steady: Execution) -> None:
    runner = steady.start_ready()
    bento = steady.wait(lambda health: bool(health["ready"]))["bento_pid"]
    born = start_time(bento)
    assert born is not None
    runner.kill()
    runner.wait()
    eventually(lambda: start_time(bento) != born, "Bento is gone")


def test_a_bento_that_is_killed_from_outside(steady: Execution) -> None:
    runner = steady.start_ready()
    os.kill(steady.wait(lambda health: bool(health["ready"]))["bento_pid"], signal.SIGKILL)
    code, health = steady.ended(runner)
    assert code == 137
    assert health["exit"] == {"code": 137, "signal": 9, "killed_after_grace": False}


def test_not_ready_says_why_in_bentos_words(tmp_path: Path) -> None:
    config = """
    input: {nats: {urls: ["nats://127.0.0.1:1"], subject: x}}
    output: {drop: {}}
    """
    with Execution(tmp_path, config) as execution:
        execution.start()
        health = execution.wait(lambda health: health["not_ready_reason"] != "")
        assert (health["phase"], health["ready"]) == ("running", False)
        assert "input not connected" in health["not_ready_reason"]


def test_the_log_rotates(tmp_path: Path) -> None:
    config = "input: {generate: {interval: 1ms, mapping: 'root = \"y\".repeat(2000)'}}\noutput: {stdout: {}}\n"
    with Execution(tmp_path, config.replace('"y".repeat(2000)', f'"{"y" * 2000}"')) as execution:
        execution.env[contract.LOG_BYTES_MAX] = "65536"
        execution.start()
        older = execution.log.with_suffix(".log.1")
        eventually(older.exists, "a rotated log")
        first = older.stat().st_ino
        eventually(lambda: older.stat().st_ino != first, "rotated again")
        assert older.stat().st_size <= 65536
        assert sorted(path.name for path in execution.log.parent.iterdir()) == ["output.log", "output.log.1"]


def test_an_address_that_the_configuration_states_is_kept(tmp_path: Path) -> None:
    port = free_port()
    config = f"http: {{address: '0.0.0.0:{port}', root_path: /mine}}\n" + STEADY
    with Execution(tmp_path, config) as execution:
        execution.env |= {contract.HTTP: "0.0.0.0:${PORT:1}", "PORT": str(port)}
        execution.start()
        health = execution.wait(lambda health: bool(health["counters"]) and health["ready"])
        with urllib.request.urlopen(f"http://{health['http']}/mine/ready", timeout=10) as answer:
            assert answer.status == 200


@pytest.mark.parametrize(
    "http",
    [
        "http: {enabled: false}",
        "http: {address: '0.0.0.0:4195', basic_auth: {enabled: true, username: u, password_hash: aGFzaA==, salt: ''}}",
        "http: {cert_file: missing.pem, key_file: missing.key}",
        "http:",
    ],
)
def test_whatever_the_configuration_says_of_http_auto_gets_an_answer(tmp_path: Path, http: str) -> None:
    with Execution(tmp_path, f"{http}\n{STEADY}") as execution:
        execution.start()
        execution.wait(lambda health: health["ready"] and health["counters"].get("output_sent", 0) >= 0)


def test_many_on_one_host_have_ports_of_their_own(tmp_path: Path) -> None:
    executions = [Execution(tmp_path / str(number)) for number in range(6)]
    try:
        for execution in executions:
            execution.start()
        seen = {execution.wait(lambda health: bool(health["ready"]))["http"] for execution in executions}
        assert len(seen) == 6
    finally:
        for execution in executions:
            execution.__exit__()


def test_memory(steady: Execution) -> None:
    """At most 8 MB of its own."""
    runner = steady.start_ready()
    steady.wait(lambda health: health["counters"].get("output_sent", 0) > 0)
    rollup = Path(f"/proc/{runner.pid}/smaps_rollup").read_text()
    private = sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Private_"))
    assert private <= 8 * 1024, rollup


def test_health_is_always_a_whole_document(steady: Execution) -> None:
    runner = steady.start()
    path = steady.directory / contract.HEALTH_FILE
    eventually(path.exists, "health")
    phases = []
    while runner.poll() is None:
        phase = json.loads(path.read_bytes())["phase"]
        if phase not in phases:
            phases.append(phase)
        if phase == "ready":
            runner.send_signal(signal.SIGTERM)
    assert phases[0] in ("starting", "running", "ready")
    order = ["starting", "running", "ready", "stopping", "exited"]
    assert phases == sorted(phases, key=order.index)


def test_as_process_1_it_reaps_orphans_and_obeys(tmp_path: Path) -> None:
    """As in a container: no init in front."""
    require_root("a namespace of process ids is made")
    unshare = shutil.which("unshare")
    if unshare is None:
        unavailable("unshare (util-linux) is not installed")
    config = """
    input: {generate: {interval: 50ms, mapping: 'root = "x"'}}
    pipeline: {processors: [{command: {name: sh, args_mapping: '["-c", "(sleep 0.05 & echo y)"]'}}]}
    output: {drop: {}}
    """
    with Execution(tmp_path, config) as execution:
        inside = [sys.executable, "-I", "-S", str(ROOT / "runner")]
        command = [unshare, "--pid", "--fork", "--kill-child", "--mount-proc", *inside]
        outer = subprocess.Popen(command, env=execution.env, start_new_session=True)
        execution.runners.append(outer)
        execution.wait(lambda health: health["counters"].get("output_sent", 0) > 20)
        assert execution.wait(lambda health: True)["runner_pid"] == 1
        runner = int(Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text().split()[0])

        def zombies() -> int:
            children = Path(f"/proc/{runner}/task/{runner}/children").read_text().split()
            return sum(start_time(int(child)) is None for child in children)

        # Orphans end all the time; a runner that did not reap would have dozens of them by now.
        assert min(zombies() for _ in range(20)) <= 2
        os.kill(runner, signal.SIGTERM)
        code, health = execution.ended(outer)
        assert (code, health["phase"]) == (0, "exited")
