"""The command line on a running cluster: every command and format, exit codes, and errors that name what is next."""

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.real import TICK, RealCluster, real_cluster, until

# Says where it is, so that a reader of its logs sees it move.
TALKING = b"""input:
  generate:
    interval: 100ms
    mapping: root = "line %v from ${SHOAL_HOST} by ${SHOAL_EXECUTION}".format(counter())
output:
  stdout: {}
"""
NOWHERE = "{required: {zone: moon}}"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealCluster]:
    with real_cluster(tmp_path_factory.mktemp("cluster"), hosts=2) as running:
        for pipeline, data in (("alone", TICK), ("talking", TALKING)):
            running.publish(pipeline, data, name=f"Pipeline {pipeline}")
        for pipeline in ("alone", "talking"):
            running.until_state(pipeline, "running")
        yield running


@pytest.fixture
def manifest(tmp_path: Path) -> Callable[..., Path]:
    """Writes a manifest: a configuration and a record in one file."""

    def write(pipeline: str, data: bytes = TICK, directory: Path = tmp_path, **fields: str) -> Path:
        directory.mkdir(exist_ok=True)
        path = directory / f"{pipeline}.yaml"
        lines = "".join(f"{key}: {value}\n" for key, value in {"id": pipeline, **fields}.items())
        path.write_bytes(data + b"\n---\n" + lines.encode())
        return path

    return write


def plain(*arguments: str, env: dict[str, str] | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
    """`shoal` with nothing but these arguments and this environment."""
    command = [sys.executable, "-m", "cli.main", *arguments]
    known = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=90, check=False, env={**known, **(env or {})}, **options
    )


@contextmanager
def reading(cluster: RealCluster, *arguments: str) -> Iterator[Callable[[], str]]:
    """Run a command that does not end by itself; gives what it has written so far."""
    with subprocess.Popen(cluster.command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        seen = b""

        def read() -> str:
            nonlocal seen
            assert process.stdout is not None
            seen += process.stdout.read() or b""
            return seen.decode()

        try:
            yield read
            assert process.poll() is None, f"it goes on until it is told to end: {read()}"
        finally:
            process.kill()


# --- formats

MANY = {
    "ls": ("PIPELINE", "STATE", "REASON"),
    "get alone talking": ("PIPELINE", "STATE", "REASON"),
    "executions": ("EXECUTION", "HOST", "STATE"),
    "executions alone": ("EXECUTION", "HOST", "STATE"),
    "hosts": ("HOST", "EXECUTIONS", "LABELS"),
    "events": ("TIME", "KIND", "WHAT"),
    "events alone --last 3": ("TIME", "KIND", "WHAT"),
    "doctor": ("CHECK", "STATE", "WHAT"),
}
ONE = {"describe alone": "alone", "leader": "scheduler-1", "version": "shoal"}


@pytest.mark.parametrize("line", MANY)
def test_what_shows_many_has_every_format_and_no_colours_in_a_pipe(cluster: RealCluster, line: str) -> None:
    command = line.split()
    rows = json.loads(cluster.shoal(*command, "-o", "json"))
    assert rows
    assert len({tuple(row) for row in rows}) == 1, "every row has the same fields"
    documents = yaml.safe_load(cluster.shoal(*command, "--output=yaml"))
    assert [set(document) for document in documents] == [set(row) for row in rows]
    names = cluster.shoal(*command, "-o", "name")
    assert len(names.splitlines()) == len(rows)
    table, wide = cluster.shoal(*command), cluster.shoal(*command, "-o", "wide")
    for title in MANY[line]:
        assert title in table.splitlines()[0]
    assert len(table.splitlines()) == len(rows) + 1, "in a pipe nothing is folded"
    assert len(wide.splitlines()[0]) >= len(table.splitlines()[0])
    assert "\x1b" not in table + wide + names


@pytest.mark.parametrize("line", ONE)
def test_what_shows_one_has_every_format(cluster: RealCluster, line: str) -> None:
    command = line.split()
    row = json.loads(cluster.shoal(*command, "-o", "json"))
    assert set(yaml.safe_load(cluster.shoal(*command, "-o", "yaml"))) == set(row)
    assert cluster.shoal(*command, "-o", "name").strip() in row.values()
    text = cluster.shoal(*command)
    assert ONE[line] in text
    assert "\x1b" not in text


def test_executions_say_at_least_what_programs_need(cluster: RealCluster) -> None:
    (row,) = cluster.json("executions", "alone")
    found = cluster.the("alone")
    wanted = {"pipeline": "alone", "slot": 0, "execution": found.execution, "host": found.host, "version": "1"}
    assert row | wanted | {"state": "ready", "runtime": found.runtime} == row


def _in_terminal(cluster: RealCluster, columns: int, *arguments: str) -> str:
    """Run a command on a terminal of so many columns; all that it shows."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
    with subprocess.Popen(
        cluster.command(*arguments), stdout=slave, stderr=slave, stdin=slave, env={**environment, "TERM": "xterm"}
    ) as process:
        os.close(slave)
        shown = b""
        try:
            while data := os.read(master, 65536):
                shown += data
        except OSError:
            pass  # the other end is closed: it has ended
        os.close(master)
    assert process.returncode == 0, shown
    return shown.decode()


@pytest.mark.parametrize("line", ["ls", "executions", "hosts", "doctor", "describe alone", "events"])
def test_a_terminal_of_80_columns_holds_every_table(cluster: RealCluster, line: str) -> None:
    shown = _in_terminal(cluster, 80, *line.split())
    if line != "events":
        assert "\x1b[" in shown, "with colours"
    lines = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", shown).splitlines()
    assert len(lines) > 1
    if line != "describe alone":  # sentences, which a terminal folds
        assert [text for text in lines if len(text) > 80] == []
    if line == "executions":
        assert any(cluster.the("alone").execution in text for text in lines), "names are not cut"


# --- exit codes and errors

ERRORS: tuple[tuple[str, int, str], ...] = (
    ("get nobody", 1, "`shoal ls` shows all"),
    ("describe nobody", 1, "`shoal ls` shows all"),
    ("pause nobody", 1, "`shoal ls` shows all; `shoal apply -f FILE` makes one"),
    ("delete nobody", 1, "`shoal ls` shows all"),
    ("restart nobody", 1, "`shoal ls` shows all"),
    ("logs nobody", 1, "`shoal describe nobody` says why"),
    ("config nobody", 1, "name one with --version"),
    ("config alone --version 9", 1, "`shoal describe alone`"),
    ("resume alone", 1, "not paused; `shoal publish alone` runs a pipeline"),
    ("publish alone --version 9", 1, "versions there: 1). Put it with `shoal apply -f FILE` or `nats object put"),
    ("publish alone --version a/b", 1, "version is 'a/b': use 1 to 63 letters"),
    ("hosts cordon nobody", 1, "there is no host 'nobody' (known: host-1, host-2)"),
    ("hosts cordon No!", 1, "host is 'No!': use 1 to 63 lower-case"),
    ("hosts forget host-1", 1, "`shoal hosts drain host-1 --wait`"),
    ("store accept 0000", 1, "the store that answers here is "),
    ("--cluster other ls", 1, "Start one with `shoal scheduler`"),
    ("--cluster other executions", 1, "Start one with `shoal scheduler`"),
    ("--cluster other hosts", 1, "Start one with `shoal scheduler`"),
    ("--cluster other events", 1, "Start one with `shoal scheduler`"),
    ("--cluster other leader", 1, "Start one with `shoal scheduler`"),
    ("--cluster other publish alone --version 1", 1, "Start one with `shoal scheduler`"),
    ("--cluster No! ls", 1, "cluster is 'No!'"),
    ("--server nats://127.0.0.1:9 ls", 1, "name it with --server, NATS_URL or a `nats` context"),
    ("--context nobody ls", 1, "--context"),
    ("apply -f /nowhere.yaml", 1, "name a readable file or directory"),
    ("wait alone --for gone --timeout 300ms", 3, "alone is running and not gone after 0.3 s. `shoal describe alone`"),
    ("wait alone --for paused --timeout 1s", 3, "alone is running and not paused after 1 s"),
    ("wait nobody --timeout 300ms", 3, "`shoal ls` shows the records"),
    ("wait alone --timeout soon", 2, "write 60s, 2m or 1h"),
    ("wait alone --for ever", 2, "'running', 'paused', 'gone'"),
    ("ls -o xml", 2, "json"),
    ("frobnicate", 2, "frobnicate"),
    ("pause", 2, "ID"),
    ("apply", 2, "--file"),
    ("ls --frob", 2, "--frob"),
    ("executions No!", 1, "id is 'No!': use 1 to 63 lower-case"),
    ("wait No!", 1, "id is 'No!': use 1 to 63 lower-case"),
    ("config alone --version ../x", 1, "version is '../x': use 1 to 63 letters"),
    ("config alone --directory /dev/null", 1, "/dev/null/pipeline.yaml cannot be written"),
    ("config alone --directory /proc/x", 1, "/proc/x/pipeline.yaml cannot be written"),
    ("events >", 1, "ID|HOST is '>': use 1 to 63 lower-case"),
    ("scheduler --no-lint --metrics 192.0.2.1:1", 1, "name an address of this machine that is free"),
    ("up --data /dev/null", 1, "nothing can be kept in /dev/null"),
    ("up --data /proc/x", 1, "nothing can be kept in /proc/x"),
    ("up --executor magic", 2, "use process or docker"),
    ("agent --host a --executor magic", 2, "use docker or process"),
)


@pytest.mark.parametrize(("line", "code", "words"), ERRORS, ids=[case[0] for case in ERRORS])
def test_errors_have_a_code_and_name_what_is_next(cluster: RealCluster, line: str, code: int, words: str) -> None:
    done = cluster.run(*line.split())
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert words in " ".join(done.stderr.replace("│", " ").split())
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("line", ["executions nobody", "events nobody"])
def test_an_empty_list_says_what_it_was_asked_for(cluster: RealCluster, line: str) -> None:
    done = cluster.run(*line.split())
    assert (done.returncode, done.stdout) == (0, "")
    assert "'nobody'" in done.stderr


@pytest.mark.parametrize("key", ["half-written", "No.id"])
def test_what_is_no_record_can_be_looked_at_and_deleted(cluster: RealCluster, key: str) -> None:
    cluster.put_raw(key, b"{")
    until(lambda: cluster.json("describe", key)["state"] == "refused", "it is refused")
    cluster.shoal("delete", key, "--wait")
    assert key not in cluster.shoal("ls", "-o", "name").split()


# --- reaching the cluster


def test_global_options_may_stand_anywhere(cluster: RealCluster) -> None:
    for arguments in (
        ("ls", "-o", "name", "--server", cluster.url, "-c", "shoal"),
        ("-s", cluster.url, "ls", "--cluster=shoal", "-o", "name"),
        ("hosts", "-o", "name", "-s", cluster.url),
    ):
        done = plain(*arguments)
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() in (["alone", "talking"], ["host-1", "host-2"])
    assert plain("ls", "-o", "name", env={"NATS_URL": cluster.url, "SHOAL_CLUSTER": "shoal"}).returncode == 0
    assert plain("ls", env={"NATS_URL": cluster.url, "SHOAL_CLUSTER": "other"}).returncode == 1


def test_contexts_of_the_nats_cli(cluster: RealCluster, tmp_path: Path) -> None:
    env = {"XDG_CONFIG_HOME": str(tmp_path), "HOME": str(tmp_path)}
    cluster_env = {**os.environ, **env}
    nats = str(cluster.nats_cli())
    for command in (
        ["context", "save", "mine", "--server", cluster.url],
        ["context", "save", "dead", "--server", "x:9"],
    ):
        subprocess.run([nats, *command], env=cluster_env, check=True, capture_output=True, timeout=60)
    assert plain("ls", "-o", "name", "--context", "mine", env=env).stdout.split() == ["alone", "talking"]
    assert plain("ls", "-o", "name", env={**env, "NATS_CONTEXT": "mine"}).stdout.split() == ["alone", "talking"]
    subprocess.run([nats, "context", "select", "mine"], env=cluster_env, check=True, capture_output=True, timeout=60)
    assert plain("ls", "-o", "name", env=env).stdout.split() == ["alone", "talking"]
    assert plain("ls", "--context", "dead", env=env).returncode == 1


def test_completion_for_a_shell() -> None:
    program = Path(sys.executable).parent / "shoal"
    for shell, line in (
        ("bash", "complete -o default -F _shoal_completion shoal"),
        ("zsh", "compdef _shoal_completion shoal"),
        ("fish", "complete --command shoal"),
    ):
        shown = subprocess.run([program, "completion", shell], capture_output=True, text=True, timeout=60, check=True)
        assert line in shown.stdout
    for words, number, completed in (("shoal pau", "1", "pause"), ("shoal hosts dr", "2", "drain")):
        env = {**os.environ, "_SHOAL_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": number}
        asked = subprocess.run([program], env=env, capture_output=True, text=True, timeout=60, check=True)
        assert asked.stdout.split() == [completed]


# --- apply


def test_apply_files_directories_and_standard_input(
    cluster: RealCluster, manifest: Callable[..., Path], tmp_path: Path
) -> None:
    one, two = manifest("one", name="One"), manifest("two", directory=tmp_path / "more")
    (tmp_path / "more" / "three").mkdir()
    (tmp_path / "more" / "three" / "pipeline.yaml").write_bytes(TICK + b"---\nstatus: draft\n")
    (tmp_path / "more" / "three" / "extra.txt").write_text("a file that goes along")

    def results(*arguments: str, **options: Any) -> dict[str, str]:
        return {r["pipeline"]: r["result"] for r in json.loads(cluster.shoal(*arguments, "-o", "json", **options))}

    apply = ("apply", "-f", str(one), "-f", str(tmp_path / "more"))
    assert results(*apply, "--dry-run") == dict.fromkeys(("one", "two", "three"), "created (dry run)")
    assert cluster.run("get", "one").returncode == 1, "nothing was changed"
    assert results(*apply, "--wait") == dict.fromkeys(("one", "two", "three"), "created")
    assert cluster.the("one").alive
    assert cluster.the("two").alive
    assert cluster.found("three") == []
    assert results(*apply, "--wait") == dict.fromkeys(("one", "two", "three"), "unchanged")
    from_input = two.read_bytes().decode().replace("1s", "2s")
    assert results("apply", "-f", "-", "--wait", input=from_input) == {"two": "updated"}
    rows = {r["pipeline"]: r for r in cluster.json("ls")}
    assert rows["one"]["name"] == "One"
    assert cluster.nats("object", "ls", "shoal_configs", "--names").count("two/") == 2, "another version"
    for pipeline in ("one", "two", "three"):
        cluster.shoal("delete", pipeline, "--wait")
    cluster.wait_no_trace("two")
    assert "two/" not in cluster.nats("object", "ls", "shoal_configs", "--names")


def test_apply_refuses_what_is_wrong_before_anything_changes(
    cluster: RealCluster, manifest: Callable[..., Path]
) -> None:
    good = manifest("good")
    cases = (
        (manifest("lint", TICK.replace(b"interval", b"intervall")), "lint.yaml", "field intervall not recognised"),
        (manifest("unknown", replica="2"), "unknown.yaml line", "did you mean 'replicas'?"),
        (manifest("broken", b"input: ["), "broken.yaml", "line"),
    )
    for path, where, what in cases:
        shown = cluster.shoal("apply", "-f", str(good), "-f", str(path), code=1)
        assert where in shown
        assert what in shown
        assert "Traceback" not in shown
    assert cluster.run("get", "good").returncode == 1


def test_apply_refuses_other_bytes_under_a_pinned_version(cluster: RealCluster, manifest: Callable[..., Path]) -> None:
    path = manifest("pinned", version='"1"')
    cluster.shoal("apply", "-f", str(path), "--wait")
    before = cluster.the("pinned")
    path.write_bytes(path.read_bytes().replace(b"1s", b"9s"))
    for extra in ((), ("--dry-run",)):
        shown = cluster.shoal("apply", "-f", str(path), *extra, code=1)
        assert "version 1 of 'pinned' is pinned to another configuration" in shown
        assert "give the new one a new version" in shown
    assert cluster.the("pinned") == before

    # The object overwritten by hand: what was admitted is shown, what is stored is not.
    admitted = cluster.shoal("config", "pinned")
    cluster.put_config("pinned", "1", TICK.replace(b"1s", b"7s"))
    until(lambda: cluster.status("pinned").get("notes"), "it is reported")
    assert cluster.shoal("config", "pinned") == admitted
    assert "interval: 1s" in admitted
    assert "was overwritten" in cluster.shoal("describe", "pinned")
    assert "was overwritten" in cluster.shoal("ls")
    cluster.shoal("delete", "pinned", "--wait")


def test_config_writes_all_files(cluster: RealCluster, tmp_path: Path) -> None:
    source = tmp_path / "filed"
    source.mkdir()
    (source / "pipeline.yaml").write_bytes(TICK)
    (source / "schema.json").write_text("{}")
    cluster.shoal("apply", "-f", str(source), "--wait")
    target = tmp_path / "out"
    cluster.shoal("config", "filed", "--directory", str(target))
    assert (target / "pipeline.yaml").read_bytes() == TICK
    assert (target / "schema.json").read_text() == "{}"
    cluster.shoal("delete", "filed", "--wait")


# --- verbs


@pytest.mark.timeout(240)
def test_the_life_of_a_pipeline_in_verbs(cluster: RealCluster, manifest: Callable[..., Path]) -> None:
    path = manifest("life", version='"1"')
    cluster.shoal("apply", "-f", str(path), "--wait")
    first = cluster.the("life")
    cluster.shoal("pause", "life", "--wait")
    assert (cluster.the("life").alive, cluster.the("life").execution) == (False, first.execution)
    cluster.shoal("resume", "life", "--wait")
    assert cluster.the("life").execution == first.execution
    digest = cluster.put_config("life", "2", TICK.replace(b"1s", b"2s"))
    cluster.shoal("publish", "life", "--version", "2", "--wait")
    until(lambda: [r.config_digest for r in cluster.found("life")] == [digest], "version 2 alone")
    cluster.shoal("publish", "life", "--version=1", "--wait")
    until(lambda: [r.config_digest for r in cluster.found("life")] == [first.config_digest], "back to version 1")
    again = cluster.the("life")
    cluster.shoal("restart", "life", "--wait")
    until(lambda: [r.execution != again.execution for r in cluster.found("life")] == [True], "a new execution")
    cluster.shoal("draft", "life", "--wait")
    assert cluster.found("life") == []
    assert {r["pipeline"]: r["status"] for r in cluster.json("ls")}["life"] == "draft"
    assert "only a published pipeline can be restarted" in cluster.shoal("restart", "life", code=1)
    cluster.shoal("delete", "life", "--wait", "--keep-configs")
    assert "life/1" in cluster.nats("object", "ls", "shoal_configs", "--names")
    cluster.wait_no_trace("life")


def test_waiting_for_what_cannot_be_placed_ends_with_the_reason(
    cluster: RealCluster, manifest: Callable[..., Path]
) -> None:
    path = manifest("nowhere", placement=NOWHERE)
    shown = cluster.shoal("apply", "-f", str(path), "--wait", code=1)
    assert "nowhere is waiting: no host can take it: 2 of 2 lack label zone=moon; nearest host-1" in shown
    assert "nowhere is waiting" in cluster.shoal("wait", "nowhere", code=1)
    described = cluster.shoal("describe", "nowhere")
    assert "2 hosts refuse it, the nearest first" in described
    for host in ("host-1", "host-2"):
        assert f"{host}: lacks label zone=moon" in described
    cluster.put_record("nowhere", version="9")
    assert "nats object put" in cluster.shoal("wait", "nowhere", code=1)
    cluster.shoal("delete", "nowhere", "--wait")


# --- watching


def test_lists_are_live_with_watch(cluster: RealCluster, manifest: Callable[..., Path]) -> None:
    with reading(cluster, "ls", "-w", "-o", "name") as pipelines, reading(cluster, "executions", "-w") as executions:
        until(lambda: "talking" in pipelines() and "talking-0" in executions(), "what there is", 30)
        cluster.shoal("apply", "-f", str(manifest("newcomer")), "--wait")
        until(lambda: "newcomer" in pipelines(), "the new pipeline", 30)
        until(lambda: re.search(r"newcomer-0-\d+ .* ready", executions()), "the new execution", 30)
    cluster.shoal("delete", "newcomer", "--wait")


def test_events_tell_what_happened_and_go_on(cluster: RealCluster) -> None:
    found = cluster.json("events", "alone")
    assert [event["kind"] for event in found if event["kind"] == "admitted"] == ["admitted"]
    assert {event["subject"] for event in found} == {"alone"}
    assert [event["plan"] for event in found] == sorted(event["plan"] for event in found)
    assert len(cluster.json("events", "--last", "2")) == 2

    with (
        reading(cluster, "events", "alone", "-w") as past,
        reading(cluster, "events", "-w", "alone", "--last", "0", "-o", "json") as new,
        reading(cluster, "events", "-w", "--last", "1", "-o", "name") as every,
    ):
        until(lambda: "admitted" in past() and "running" in past(), "the past of it", 30)
        until(every, "the last one of all", 30)
        assert "talking" not in past()
        cluster.shoal("pause", "alone", "--wait")
        for read in (past, new, every):
            until(lambda: "paused" in read(), "what happens now", 30)  # noqa: B023
        cluster.shoal("resume", "alone", "--wait")
        until(lambda: re.search(r'"kind": "state".*"message": "running"', new()), "and next", 30)
        assert {json.loads(line)["subject"] for line in new().splitlines()} == {"alone"}


@pytest.mark.timeout(180)
def test_logs_end_or_follow_a_move(cluster: RealCluster) -> None:
    before = cluster.the("talking")
    lines = until(lambda: (found := cluster.shoal("logs", "talking", "--tail", "3").splitlines())[2:] and found, "logs")
    assert len(lines) == 3
    assert all(f"from {before.host} by {before.execution}" in line for line in lines)
    assert cluster.shoal("logs", before.execution, "--tail", "1").count("\n") == 1, "also by the execution's name"

    other = "host-2" if before.host == "host-1" else "host-1"
    with reading(cluster, "logs", "-f", "talking", "--tail", "2") as read:
        until(lambda: read().count(f"{before.execution} | line ") > 5, "it goes on", 30)
        cluster.shoal("hosts", "drain", before.host, "--wait")
        try:
            until(lambda: f"from {other} by talking-0-" in read(), "it follows to the other host", 30)
        finally:
            cluster.shoal("hosts", "uncordon", before.host)
        numbers = [int(n) for n in re.findall(rf"line (\d+) from {before.host}", read())]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers))), "whole and in order"
        first = next(int(n) for n in re.findall(rf"line (\d+) from {other}", read()))
        assert first <= 3, "of an execution that came later, from its beginning"
    cluster.until_state("talking", "running")


# --- the cluster itself


def test_doctor_says_what_is_wrong(cluster: RealCluster) -> None:
    rows = {row["check"]: row for row in cluster.json("doctor")}
    assert {row["state"] for row in rows.values()} == {"ok"}
    assert {"leader", "host host-1", "versions", "bento", "stream KV_shoal_control"} <= set(rows)
    cluster.kill_agent("host-2")
    try:
        shown = cluster.shoal("doctor", code=1)
        assert re.search(r"host host-2 +bad +silent; is its agent running\?", shown)
    finally:
        cluster.start_agent("host-2")
    until(lambda: cluster.run("doctor").returncode == 0, "all is well again")


def test_leader_without_one(cluster: RealCluster) -> None:
    assert cluster.json("leader")["alive"] is True
    cluster.local.kill("scheduler-1")
    try:
        shown = cluster.shoal("leader", code=1)
        assert "Start one with `shoal scheduler`" in shown
        row = json.loads(cluster.run("leader", "-o", "json").stdout)
        assert row["alive"] is False
        assert "nobody renews the lease" in cluster.shoal("doctor", code=1)
    finally:
        cluster.local.start_scheduler("scheduler-1")
    until(cluster.leader, "it leads again")


def test_another_store_is_accepted_only_with_reason(cluster: RealCluster) -> None:
    store = cluster.json("leader")["store_id"]
    assert f"the store that answers here is {store}, not 0123" in cluster.shoal("store", "accept", "0123", code=1)
    shown = cluster.shoal("store", "accept", store, code=1)
    assert "no agent obeys or finds another store" in shown


def test_a_reader_that_goes_away_is_no_error(cluster: RealCluster) -> None:
    command = " ".join(f"'{part}'" for part in cluster.command("events", "--last", "100"))
    done = subprocess.run(["sh", "-c", f"{command} | head -1"], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
    assert "TIME" in done.stdout
