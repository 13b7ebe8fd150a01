"""The ledger sees what it is for."""

from __future__ import annotations

from pathlib import Path

from tests.chaos.ledger import Ledger, Slot, entries


def _write(directory: Path, slot: str, execution: str, sent: list[tuple[int, float]]) -> None:
    path = directory / slot / execution
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.writelines(f"<{execution} {sequence} {int(at_s * 1e9)};\n" for sequence, at_s in sent)


def _run(first_s: float, last_s: float) -> list[tuple[int, float]]:
    count = round((last_s - first_s) * 10) + 1
    return [(number + 1, first_s + number / 10) for number in range(count)]


def _read(directory: Path) -> Ledger:
    ledger = Ledger(directory)
    ledger.read()
    return ledger


def test_one_execution_after_the_other_is_no_overlap(tmp_path: Path) -> None:
    _write(tmp_path, "a.0", "a-0-1", _run(10, 20))
    _write(tmp_path, "a.0", "a-0-2", _run(20.5, 30))
    ledger = _read(tmp_path)
    assert ledger.overlaps() == []
    assert [round(gap, 3) for gap in ledger.slots["a.0"].gaps_s()] == [0.5]


def test_two_executions_of_one_slot_that_send_at_once(tmp_path: Path) -> None:
    _write(tmp_path, "a.0", "a-0-1", _run(10, 20))
    _write(tmp_path, "a.0", "a-0-2", _run(17.5, 30))
    (overlap,) = _read(tmp_path).overlaps()
    assert (overlap.first.execution, overlap.second.execution) == ("a-0-1", "a-0-2")
    assert round(overlap.seconds, 3) == 2.5


def test_other_slots_may_send_at_once(tmp_path: Path) -> None:
    _write(tmp_path, "a.0", "a-0-1", _run(10, 20))
    _write(tmp_path, "a.1", "a-1-1", _run(10, 20))
    assert _read(tmp_path).overlaps() == []


def test_an_execution_that_resumes_while_another_one_runs(tmp_path: Path) -> None:
    """Judged by process, not by execution: from its first to its last message a-0-1 covers the time of a-0-2."""
    _write(tmp_path, "a.0", "a-0-1", _run(10, 20) + _run(31, 40))
    _write(tmp_path, "a.0", "a-0-2", _run(21, 30))
    assert _read(tmp_path).overlaps() == []
    _write(tmp_path, "a.0", "a-0-2", [(92, 31.5)])
    (overlap,) = _read(tmp_path).overlaps()
    assert overlap.first.execution == "a-0-2"


def test_two_processes_of_one_execution(tmp_path: Path) -> None:
    first, second = _run(10, 20), _run(15, 20)
    mixed = sorted(first + second, key=lambda sent: sent[1])
    _write(tmp_path, "a.0", "a-0-1", mixed)
    (overlap,) = _read(tmp_path).overlaps()
    assert round(overlap.seconds, 3) == 5.0


def test_a_line_that_a_kill_cut_short_hides_nothing(tmp_path: Path) -> None:
    _write(tmp_path, "a.0", "a-0-1", _run(10, 11))
    with (tmp_path / "a.0" / "a-0-1").open("a") as file:
        file.write("<a-0-1 12 1110")
    _write(tmp_path, "a.0", "a-0-1", _run(12, 13))
    ledger = _read(tmp_path)
    assert [len(ledger.slots["a.0"].copies), ledger.strays()] == [2, []]


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    _write(tmp_path, "a.0", "a-0-1", [(1, 10.0), (2, 10.1), (4, 10.3)])
    assert [stray.sequence for stray in _read(tmp_path).strays()] == [4]


def test_reading_in_pieces_is_reading_at_once(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    path = tmp_path / "a.0" / "a-0-1"
    path.parent.mkdir()
    text = "".join(f"<a-0-1 {number} {number * 100_000_000};\n" for number in range(1, 40))
    for begin in range(0, len(text), 7):
        with path.open("a") as file:
            file.write(text[begin : begin + 7])
        ledger.read()
    assert ledger.slots["a.0"].times_s == [sent.at_s for sent in entries(text)]
    assert ledger.strays() == []


def test_the_longest_pause_counts_the_ends_too() -> None:
    slot = Slot("a.0")
    for sent in entries("<a-0-1 1 10000000000;\n<a-0-1 2 12000000000;"):
        slot.add(sent)
    assert slot.pause_s(9, 13) == 2.0
    assert slot.pause_s(5, 13) == 5.0
    assert slot.pause_s(9, 20) == 8.0
