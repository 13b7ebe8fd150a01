"""The pure part of the election: what a standby counts, and what a takeover writes."""

import pytest

from scheduler.elector import EQUAL_READS, Count
from scheduler.takeover import draft, holder_of
from shared import documents
from shared.documents import InputMark, Lease, decode, encode
from shared.errors import BadInput
from shared.store import Entry


@pytest.mark.parametrize(
    ("reads", "silent"),
    [
        pytest.param([7] * EQUAL_READS, True, id="six equal reads"),
        pytest.param([7] * (EQUAL_READS - 1), False, id="one read short"),
        pytest.param([7] * 5 + [8], False, id="renewed at the last moment"),
        pytest.param([7] * 5 + [8] * 6, True, id="counted anew after a renewal"),
        pytest.param([7, 8, 9, 10, 11, 12, 13], False, id="renewed each time"),
        pytest.param([0] * EQUAL_READS, True, id="never written at all"),
        pytest.param([7] * 5 + [None] + [7] * 5, False, id="a failed read starts the count anew"),
        pytest.param([7] * 5 + [None] + [7] * 6, True, id="six again after a failed read"),
        pytest.param([8] * 3 + [7] * 3, False, id="an older answer is another answer"),
    ],
)
def test_a_lease_is_silent_after_equal_reads(reads: list[int | None], silent: bool) -> None:
    count = Count()
    for revision in reads:
        count = Count() if revision is None else count.after(revision)
    assert count.silent is silent


@pytest.mark.parametrize(
    ("value", "holder"),
    [
        pytest.param(None, "", id="deleted or never written"),
        pytest.param(encode(Lease("", "a")), "", id="left on purpose"),
        pytest.param(encode(Lease("x1", "a")), "x1", id="held"),
        pytest.param(b"nonsense", "", id="not a lease"),
    ],
)
def test_who_holds_the_lease(value: bytes | None, holder: str) -> None:
    assert holder_of(Entry("lease", value, 3)) == holder


def test_the_first_takeover_of_a_store_makes_its_id() -> None:
    takeover = draft(Entry("lease", None, 0), Entry("journal", None, 0), holder="h", name="n", store_id="fresh")
    lease, journal = takeover.writes("a1")
    assert (lease.key, lease.expected, journal.key, journal.expected) == ("lease", 0, "journal", 0)
    written = decode(documents.Journal, journal.value or b"")
    assert (written.store_id, written.term, written.plan, written.attempt) == ("fresh", 0, 1, "a1")
    won = takeover.won(2)
    assert (won.store_id, won.term, won.plan, won.holder) == ("fresh", 2, 1, "h")


def test_a_takeover_keeps_store_marks_and_accepted_ids_and_takes_the_next_plan_number() -> None:
    marks = {"c_pipelines": InputMark("2026", 4)}
    before = documents.Journal(
        store_id="s", term=3, plan=9, attempt="old", holder="x", inputs=marks, accepted=("older",)
    )
    takeover = draft(Entry("lease", b"", 20), Entry("journal", encode(before), 17), holder="h", name="n", store_id="no")
    lease, journal = takeover.writes("a2")
    assert (lease.expected, journal.expected) == (20, 17)
    written = decode(documents.Journal, journal.value or b"")
    assert (written.store_id, written.term, written.plan, written.attempt) == ("s", 0, 10, "a2")
    assert (written.inputs, written.accepted) == (marks, ("older",))


def test_a_journal_that_is_none_is_not_taken_over() -> None:
    with pytest.raises(BadInput):
        draft(Entry("lease", b"", 20), Entry("journal", b"?", 17), holder="h", name="n", store_id="no")
