"""The health document, and Bento's counters in it."""

import json
import os
from pathlib import Path

import pytest

from runner import contract, core
from runner.core import Phase
from runner.events import End
from runner.health import Counts, Facts, HealthFile, document
from runner.value import replace

METRICS = b"""# HELP input_received Benthos Counter metric
# TYPE input_received counter
input_received{label="a",path="root.input.broker.inputs.0"} 1000
input_received{label="b } 7",path="root.input.broker.inputs.1"} 2.5e+06
input_latency_ns{label="",path="root.input",quantile="0.5"} NaN
output_sent{label="",path="root.output"} 12
output_error 3
output_batch_sent{label="",path="root.output"} 99
processor_error{label="",path="x"} oops
input_connection_up{label="",path="root.input"} NaN
"""

FACTS = Facts(boot_id="boot", bento_pid=7, http="127.0.0.1:1", counters={"output_sent": 1})


@pytest.mark.parametrize("size", [1, 7, 100, 100_000])
def test_counters_are_summed_over_labels_however_they_arrive(size: int) -> None:
    counts = Counts()
    for start in range(0, len(METRICS), size):
        counts.feed(METRICS[start : start + size])
    assert counts.result() == {"input_received": 2_501_000, "output_error": 3, "output_sent": 12}


def test_a_last_line_without_end_counts() -> None:
    counts = Counts()
    counts.feed(b"output_sent 5")
    assert counts.result() == {"output_sent": 5}


def test_an_endless_line_takes_no_memory() -> None:
    counts = Counts()
    for _ in range(100):
        counts.feed(b"x" * 65536)
    assert len(counts._rest) <= 65536


def test_document_of_a_run() -> None:
    state = core.begin(1.5, fetching=False, grace_s=1, http_ours=True, fence=None)
    shown = document(replace(state, phase=Phase.READY, ready_first=2.0, ready_since=2.0, reason="stale"), FACTS)
    assert shown == {
        "phase": "ready",
        "ready": True,
        "not_ready_reason": "",
        "runner_pid": os.getpid(),
        "bento_pid": 7,
        "boot_id": "boot",
        "http": "127.0.0.1:1",
        "started_boot_s": 1.5,
        "ready_boot_s": 2.0,
        "stuck": None,
        "counters": {"output_sent": 1},
        "exit": None,
        "failure": None,
        "last_words": [],
    }


def test_document_of_an_end() -> None:
    begun = core.begin(1.5, fetching=False, grace_s=1, http_ours=True, fence=None)
    state = replace(begun, phase=Phase.EXITED, killed=True)
    facts = replace(FACTS, end=End(code=137, signal=9), words=("a", "b"))
    shown = document(state, facts)
    assert shown["phase"] == "exited"
    assert shown["exit"] == {"code": 137, "signal": 9, "killed_after_grace": True}
    assert (shown["failure"], shown["last_words"]) == (None, ["a", "b"])


def test_document_of_a_failure_before_any_child() -> None:
    shown = document(None, replace(FACTS, bento_pid=None, end=End(code=65, failure=("digest", "no"))))
    assert (shown["phase"], shown["ready"], shown["started_boot_s"]) == ("exited", False, None)
    assert shown["failure"] == {"kind": "digest", "message": "no"}


def test_written_only_when_something_changed(tmp_path: Path) -> None:
    path = tmp_path / contract.HEALTH_FILE
    file = HealthFile(str(path))
    file.show({"phase": "ready"}, 1.0)
    first = path.stat().st_ino
    file.show({"phase": "ready"}, 2.0)
    assert (path.stat().st_ino, json.loads(path.read_text())["updated_boot_s"]) == (first, 1.0)
    file.show({"phase": "exited"}, 3.0)
    assert json.loads(path.read_text()) == {"phase": "exited", "updated_boot_s": 3.0}
    assert [entry.name for entry in tmp_path.iterdir()] == [contract.HEALTH_FILE]


def test_what_a_pipeline_puts_in_the_way_neither_blocks_nor_leads_away(tmp_path: Path) -> None:
    path, elsewhere = tmp_path / contract.HEALTH_FILE, tmp_path / "elsewhere"
    elsewhere.write_text("mine")
    fresh = tmp_path / f"{contract.HEALTH_FILE}.new"
    file = HealthFile(str(path))
    os.mkfifo(fresh)
    assert file.show({"phase": "ready"}, 1.0) != ""
    fresh.unlink()
    fresh.symlink_to(elsewhere)
    assert file.show({"phase": "ready"}, 1.0) != ""
    assert elsewhere.read_text() == "mine"
    fresh.unlink()
    assert file.show({"phase": "ready"}, 1.0) == "", "tried again although nothing changed"


def test_document_of_one_that_has_lost_nats() -> None:
    state = core.begin(1.5, fetching=False, grace_s=1, http_ours=True, fence=None)
    shown = document(replace(state, phase=Phase.READY, stuck=(77.12345, "why")), FACTS)
    assert shown["stuck"] == {"since_boot_s": 77.123, "reason": "why"}
    assert shown["ready"], "Bento itself does not know"
