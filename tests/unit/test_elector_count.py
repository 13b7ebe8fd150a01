"""The pure part of the election: what a standby counts, and what a takeover writes."""

import pytest

from scheduler.elector import EQUAL_READS, Count
from scheduler.takeover import draft, former_term, holder_of
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
    takeover = draft(Entry("lease", None, 0), Entry("journal", None, 0), None, holder="h", name="n")
    writes = takeover.writes("a1")
    assert [(write.key, write.expected) for write in writes] == [("lease", 0), ("journal", 0), ("term.a1", 0)]
    written = decode(documents.Journal, writes[1].value or b"")
    assert (written.store_id, written.term, written.plan, written.attempt) == ("a1", 0, 1, "a1")
    won = takeover.won("a1", 2)
    assert (won.store_id, won.term, won.term_id, won.plan, won.holder) == ("a1", 2, "a1", 1, "h")
    assert takeover.won("a2", 4).store_id == "a2", "the first attempt may have made another store"


def test_a_takeover_keeps_store_marks_and_accepted_ids_and_takes_the_next_plan_number() -> None:
    marks = {"c_pipelines": InputMark("2026", 4)}
    before = documents.Journal(
        store_id="s", term=3, plan=9, attempt="old", holder="x", term_id="t", inputs=marks, accepted=("older",)
    )
    journal = Entry("journal", encode(before), 17)
    assert former_term(journal) == "term.t"
    takeover = draft(Entry("lease", b"", 20), journal, Entry("term.t", b"", 18), holder="h", name="n")
    writes = takeover.writes("a2")
    assert [(write.key, write.expected) for write in writes] == [
        ("lease", 20),
        ("journal", 17),
        ("term.a2", 0),
        ("term.t", 18),
    ]
    assert writes[3].value is None, "the key of the last term is deleted"
    written = decode(documents.Journal, writes[1].value or b"")
    assert (written.store_id, written.term, written.plan, written.attempt) == ("s", 0, 10, "a2")
    assert (written.inputs, written.accepted) == (marks, ("older",))


@pytest.mark.parametrize("former", [None, Entry("term.t", None, 0)], ids=["of an earlier version", "purged"])
def test_a_term_without_a_key_is_taken_over(former: Entry | None) -> None:
    term_id = "" if former is None else "t"
    before = documents.Journal(store_id="s", term=3, plan=9, attempt="old", holder="x", term_id=term_id)
    journal = Entry("journal", encode(before), 17)
    assert bool(former_term(journal)) is (former is not None)
    takeover = draft(Entry("lease", b"", 20), journal, former, holder="h", name="n")
    assert [write.key for write in takeover.writes("a")] == ["lease", "journal", "term.a"]


def test_a_journal_that_is_none_is_not_taken_over() -> None:
    with pytest.raises(BadInput):
        draft(Entry("lease", b"", 20), Entry("journal", b"?", 17), None, holder="h", name="n")
