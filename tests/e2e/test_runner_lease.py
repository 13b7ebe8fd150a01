"""Lease and grant with the real runner and the real Bento: it ends in time, whatever becomes of the agent.

Ends are bounded from below by the lease that was written and from above generously: a slow machine may be late, only
an early or a missing end is a defect. `until_s` is what the rules allow, taken from the files.
"""

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from runner import contract
from runner.permits import GRANTS_DIR, LEASE_FILE
from tests.e2e.test_runner_failures import put
from tests.e2e.test_runner_rig import DEADLINE_S, STEADY, Execution, eventually, start_time
from tests.support.components import require_root
from tests.support.nats_servers import NatsServer
from tests.support.permits import Permits, boot_clock

NAME = "shoal-01234567-orders-0-17"
LEASE_S = 2.0
# A Bento that takes ten minutes to drain.
STUBBORN = """
shutdown_timeout: 600s
input: {generate: {interval: 20ms, mapping: 'root = "x"'}}
pipeline: {processors: [{sleep: {duration: 600s}}]}
output: {drop: {}}
"""


class Leased(Execution):
    """An execution with a lease directory."""

    def __init__(self, directory: Path, config: str = STEADY) -> None:
        super().__init__(directory, config)
        self.permits = Permits(directory / "lease", lease_s=LEASE_S)
        self.env |= {contract.LEASE_DIR: str(self.permits.directory), contract.EXECUTION: NAME}

    def refused(self, prefix: Sequence[str] = ()) -> str:
        """Start it, expect that it does not; the reason."""
        code, health = self.ended(self.start(prefix))
        assert (code, health["phase"], health["failure"]["kind"]) == (contract.EXIT_LEASE, "exited", "lease")
        assert health["bento_pid"] is None
        return str(health["failure"]["message"])

    def start_ready(self) -> "subprocess.Popen[bytes]":
        runner = super().start_ready()
        self.born = self.bento()
        return runner

    def bento(self) -> tuple[int, str]:
        """Process id and start time of the Bento that runs."""
        pid = self.wait(lambda health: health["bento_pid"] is not None)["bento_pid"]
        started = start_time(pid)
        assert started is not None
        return pid, started

    def fenced(self, runner: "subprocess.Popen[bytes]") -> dict[str, Any]:
        """Wait until the runner has stopped its Bento for lease or grant; the last health document."""
        pid, started = self.born
        code, health = self.ended(runner)
        assert (code, health["phase"], health["failure"]["kind"]) == (contract.EXIT_LEASE, "exited", "lease")
        assert start_time(pid) != started, "Bento is gone"
        return health

    def __exit__(self, *error: object) -> None:
        self.permits.freeze()
        super().__exit__(*error)


@pytest.fixture
def leased(tmp_path: Path) -> Iterator[Leased]:
    """With a grant, bound, and a lease that is renewed."""
    with Leased(tmp_path) as execution:
        execution.permits.grant(NAME)
        execution.permits.renew()
        yield execution


# --- starting

UNFIT: list[tuple[str, Callable[[Permits], object], str]] = [
    ("no grant", lambda permits: permits.revoke(NAME), "it has no grant"),
    ("grant is cut off", lambda permits: permits.write(f"{GRANTS_DIR}/{NAME}", "agent=a1\nboo"), "unreadable"),
    (
        "grant of another execution",
        lambda permits: _renamed(permits.directory / GRANTS_DIR / NAME),
        "another execution",
    ),
    ("grant of another boot", lambda permits: permits.grant(NAME, boot="another"), "another boot"),
    ("grant of another session", lambda permits: permits.grant(NAME, number=2), "another session"),
    ("no lease", lambda permits: (permits.directory / LEASE_FILE).unlink(), "no lease"),
    ("lease is cut off", lambda permits: permits.write(LEASE_FILE, "agent=a1\n"), "unreadable"),
    (
        "lease is random bytes",
        lambda permits: (permits.directory / LEASE_FILE).write_bytes(b"\xff\0" * 99),
        "unreadable",
    ),
    ("lease of another agent", lambda permits: permits.extend(agent="a2"), "another session"),
    ("lease of another boot", lambda permits: permits.extend(boot="another"), "another session"),
    ("lease is over", lambda permits: permits.extend(deadline_s=boot_clock() - 0.01), "over for"),
    ("lease ends far ahead", lambda permits: permits.extend(deadline_s=boot_clock() + 60), "further ahead"),
    ("lease is a directory", lambda permits: _directory(permits.directory / LEASE_FILE), "no lease"),
    ("lease is a pipe", lambda permits: _pipe(permits.directory / LEASE_FILE), "unreadable"),
]


def _renamed(grant: Path) -> None:
    """What is in it speaks of another execution."""
    grant.write_text(grant.read_text().replace(NAME, "other"))


def _directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(("what", "spoil", "words"), UNFIT, ids=[row[0] for row in UNFIT])
def test_does_not_start(tmp_path: Path, what: str, spoil: Callable[[Permits], object], words: str) -> None:
    with Leased(tmp_path) as execution:
        execution.permits.grant(NAME)
        # Long enough that it is only the one thing that is wrong.
        execution.permits.lease_s = 30.0
        execution.permits.extend()
        spoil(execution.permits)
        assert words in execution.refused(), what
        execution.permits.grant(NAME)
        if (execution.permits.directory / LEASE_FILE).is_dir():
            (execution.permits.directory / LEASE_FILE).rmdir()
        execution.permits.extend()
        execution.start_ready()


def test_does_not_start_in_a_time_namespace(leased: Leased) -> None:
    """Its boot clock is another one than that of the deadline: here the lease would last an hour longer."""
    require_root("a time namespace")
    assert "time namespace" in leased.refused(["unshare", "--time", "--boottime", "-3600"])
    leased.start_ready()


def test_a_free_one_needs_no_lease(tmp_path: Path) -> None:
    with Leased(tmp_path) as execution:
        execution.permits.grant(NAME, bound=False)
        execution.start_ready()


def test_a_grant_that_is_revoked_while_the_bundle_is_fetched(
    tmp_path: Path, nats_session: NatsServer, cluster_name: str
) -> None:
    """The start completes late, if it did it would be a second copy: the look after the fetch ends it."""
    with Leased(tmp_path) as execution:
        put(nats_session, cluster_name, execution.digest, execution.data)
        execution.bundle.unlink()
        execution.env[contract.FETCH] = json.dumps({"servers": [nats_session.url], "bucket": cluster_name})
        execution.permits.grant(NAME, bound=False)
        runner = execution.start()
        execution.wait(lambda health: health["phase"] == "fetching")
        execution.permits.revoke(NAME)
        code, health = execution.ended(runner)
        assert (code, health["failure"]["kind"], health["bento_pid"]) == (contract.EXIT_LEASE, "lease", None)


# --- running


def test_runs_while_the_lease_is_renewed_and_drains_when_it_is_not(leased: Leased) -> None:
    runner = leased.start_ready()
    first = boot_clock()
    eventually(lambda: boot_clock() > first + 2 * LEASE_S, "two leases went by")
    assert runner.poll() is None
    leased.permits.freeze()
    until_s = leased.permits.extend().deadline_s
    health = leased.fenced(runner)
    assert health["updated_boot_s"] >= until_s, "not before its time"
    assert health["exit"] == {"code": contract.EXIT_LEASE, "signal": None, "killed_after_grace": False}
    assert "the host's lease has been over" in health["failure"]["message"]
    # The same directory starts again when there is a lease.
    leased.permits.renew()
    leased.start_ready()


SPOILS: list[tuple[str, Callable[[Permits], object]]] = [
    ("deleted", lambda permits: (permits.directory / LEASE_FILE).unlink()),
    ("corrupted", lambda permits: (permits.directory / LEASE_FILE).write_text("garbage")),
    ("of another boot", lambda permits: permits.extend(boot="another", deadline_s=boot_clock() + 3600)),
    ("of another session", lambda permits: permits.extend(number=2, deadline_s=boot_clock() + 3600, lease_s=7200.0)),
    ("far ahead", lambda permits: permits.extend(deadline_s=boot_clock() + 3600)),
]


@pytest.mark.parametrize(("what", "spoil"), SPOILS, ids=[row[0] for row in SPOILS])
def test_a_lease_file_that_is(leased: Leased, what: str, spoil: Callable[[Permits], object]) -> None:
    """It runs to the last good deadline, no longer."""
    runner = leased.start_ready()
    leased.permits.freeze()
    until_s = leased.permits.extend().deadline_s
    eventually(lambda: boot_clock() > until_s - LEASE_S + 3 * contract.POLL_S, "the last good lease was read")
    spoil(leased.permits)
    health = leased.fenced(runner)
    assert health["updated_boot_s"] >= until_s, what


@pytest.mark.parametrize(
    "take",
    [
        pytest.param(lambda permits: permits.revoke(NAME), id="removed"),
        pytest.param(lambda permits: permits.grant(NAME, number=2), id="of another session"),
        pytest.param(lambda permits: permits.grant(NAME, agent="a2", bound=False), id="of another agent, unbound"),
        pytest.param(lambda permits: permits.write(f"{GRANTS_DIR}/{NAME}", "x"), id="corrupted"),
    ],
)
def test_a_grant_that_is_lost(leased: Leased, take: Callable[[Permits], object]) -> None:
    runner = leased.start_ready()
    take(leased.permits)
    health = leased.fenced(runner)
    assert "grant" in health["failure"]["message"]


def test_the_whole_lease_directory_is_gone(leased: Leased) -> None:
    runner = leased.start_ready()
    leased.permits.freeze()
    leased.permits.directory.rename(leased.permits.directory.with_name("elsewhere"))
    leased.fenced(runner)


def test_a_slow_drain_is_killed_two_seconds_after_the_deadline(tmp_path: Path) -> None:
    with Leased(tmp_path, STUBBORN) as execution:
        execution.env[contract.STOP_GRACE_S] = "600"
        execution.permits.grant(NAME)
        execution.permits.renew()
        runner = execution.start_ready()
        execution.permits.freeze()
        until_s = execution.permits.extend().deadline_s
        health = execution.fenced(runner)
        assert health["exit"] == {"code": contract.EXIT_LEASE, "signal": signal.SIGKILL, "killed_after_grace": True}
        assert health["updated_boot_s"] >= until_s + contract.FENCE_KILL_S


def test_a_slow_drain_after_a_revocation_has_its_grace_while_the_lease_is_renewed(tmp_path: Path) -> None:
    """So an agent stops gracefully. When it stops renewing, the fence ends that too."""
    with Leased(tmp_path, STUBBORN) as execution:
        execution.env[contract.STOP_GRACE_S] = "600"
        execution.permits.grant(NAME)
        execution.permits.renew()
        runner = execution.start_ready()
        execution.permits.revoke(NAME)
        began = execution.wait(lambda health: health["phase"] == "stopping")["updated_boot_s"]
        eventually(lambda: boot_clock() > began + LEASE_S + 2 * contract.FENCE_KILL_S, "more than the fence alone")
        assert runner.poll() is None
        execution.permits.freeze()
        assert execution.fenced(runner)["exit"]["killed_after_grace"]


def test_a_runner_that_was_stopped_past_the_deadline_looks_first(tmp_path: Path) -> None:
    """SIGSTOP to the runner alone is the hole that remains: Bento goes on. On waking up it kills at once."""
    with Leased(tmp_path, STUBBORN) as execution:
        execution.env[contract.STOP_GRACE_S] = "600"
        execution.permits.grant(NAME)
        execution.permits.renew()
        runner = execution.start_ready()
        runner.send_signal(signal.SIGSTOP)
        execution.permits.freeze()
        until_s = execution.permits.extend().deadline_s
        eventually(lambda: boot_clock() > until_s + contract.FENCE_KILL_S, "its time is over")
        # Something that would be looked at first if the order were another.
        runner.send_signal(signal.SIGTERM)
        runner.send_signal(signal.SIGCONT)
        health = execution.fenced(runner)
        assert health["exit"] == {"code": contract.EXIT_LEASE, "signal": signal.SIGKILL, "killed_after_grace": True}


def test_a_whole_group_that_was_frozen(leased: Leased) -> None:
    """As a paused container or a sleeping machine: both wake up at once."""
    runner = leased.start_ready()
    pid, _ = leased.bento()
    os.killpg(runner.pid, signal.SIGSTOP)
    leased.permits.freeze()
    until_s = leased.permits.extend().deadline_s
    eventually(lambda: boot_clock() > until_s + contract.FENCE_KILL_S, "its time is over")
    os.killpg(runner.pid, signal.SIGCONT)
    code, health = leased.ended(runner)
    assert (code, health["failure"]["kind"]) == (contract.EXIT_LEASE, "lease")
    eventually(lambda: start_time(pid) is None, "Bento is gone")


def test_bound_and_free_while_it_runs(leased: Leased) -> None:
    """`on_partition` may be changed at any time, and nothing restarts for it."""
    runner = leased.start_ready()
    before = leased.bento()
    leased.permits.grant(NAME, bound=False)
    written = boot_clock()
    eventually(lambda: boot_clock() > written + 4 * contract.POLL_S, "time to read it")
    leased.permits.freeze()
    # Nothing tells from outside when it was read; one that had not read it would have ended by then.
    until_s = leased.permits.extend().deadline_s + contract.FENCE_KILL_S + 1.0
    eventually(lambda: boot_clock() > until_s, "a lease and more went by")
    leased.permits.revoke(NAME)
    until_s = boot_clock() + 2 * contract.POLL_UNBOUND_S
    eventually(lambda: boot_clock() > until_s, "it has seen that too")
    assert runner.poll() is None
    assert leased.bento() == before
    leased.permits.renew()
    leased.permits.grant(NAME)
    until_s = boot_clock() + LEASE_S + contract.FENCE_KILL_S
    eventually(lambda: boot_clock() > until_s, "bound again, under a lease")
    assert leased.bento() == before
    leased.permits.freeze()
    leased.fenced(runner)


def test_a_free_one_under_an_agent_on_another_kernel(tmp_path: Path) -> None:
    """As beside an engine in a virtual machine: it runs, until it should be bound, for which there is no measure."""
    with Leased(tmp_path) as execution:
        execution.permits.grant(NAME, bound=False, boot="another")
        runner = execution.start_ready()
        execution.permits.grant(NAME, boot="another")
        execution.permits.extend(boot="another", deadline_s=boot_clock() + LEASE_S)
        assert "another boot" in execution.fenced(runner)["failure"]["message"]
        assert "another boot" in execution.refused()


# --- nothing outlives the runner


def test_what_bento_started_ends_with_it(tmp_path: Path) -> None:
    """A helper in a session of its own would go on moving data after Bento was fenced."""
    config = """
    input: {subprocess: {name: sh, args: ["-c", "setsid sleep 1000 & echo $!; exec sleep 1000"]}}
    output: {stdout: {}}
    """
    with Leased(tmp_path, config) as execution:
        execution.permits.grant(NAME)
        execution.permits.renew()
        runner = execution.start_ready()
        helpers = eventually(lambda: _with_word(execution.log), "the helper's process id")
        identity = helpers, start_time(helpers)
        assert identity[1] is not None
        execution.permits.revoke(NAME)
        execution.fenced(runner)
        assert start_time(identity[0]) != identity[1]


def _with_word(log: Path) -> int | None:
    """The first line that is a number."""
    lines = log.read_text().splitlines() if log.exists() else []
    return next((int(line) for line in lines if line.isdecimal()), None)


def test_a_runner_that_is_killed_at_any_moment_of_its_start_leaves_no_bento(leased: Leased) -> None:
    for step in range(40):
        runner = leased.start()
        started = boot_clock()
        eventually(lambda: boot_clock() > started + step * 0.004, "a moment")  # noqa: B023
        group = runner.pid
        runner.kill()
        runner.wait(DEADLINE_S)
        eventually(lambda: not _members(group), "nothing of its group is left")  # noqa: B023


def _members(group: int) -> list[int]:
    """The living processes of a process group."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text().rpartition(") ")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if fields[0] not in "ZX" and int(fields[2]) == group:
                found.append(int(entry.name))
    return found
