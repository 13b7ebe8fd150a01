"""The pure part of the journal: what the store's answers say about the batches that were sent."""

from dataclasses import replace

import pytest

from scheduler.journal import Batch, Chain, Deposed, Landed, ReadAgain
from shared import documents
from shared.documents import InputMark, decode, encode
from shared.store import Entry, Write

CHAIN = Chain(store_id="s", term=5, term_id="t", holder="me", revision=10)
BATCH = Batch(7, (Write("status.a", b"{}"),), ("because",), {"b": InputMark("t", 3)}, ("old",))
LATER = Batch(8, (Write("status.b", b"{}"),))


def journal(*, term: int = 5, attempt: str = "a1", store_id: str = "s", revision: int = 12) -> Entry:
    document = documents.Journal(store_id=store_id, term=term, plan=7, attempt=attempt, holder="somebody")
    return Entry("journal", encode(document), revision)


def test_a_batch_begins_with_journal_and_term_on_the_last_known_revisions() -> None:
    chain, writes = CHAIN.send(BATCH, "a1")
    assert [(write.key, write.expected) for write in writes] == [("journal", 10), ("term.t", 11), ("status.a", None)]
    written = decode(documents.Journal, writes[0].value or b"")
    assert (written.store_id, written.term, written.plan, written.attempt) == ("s", 5, 7, "a1")
    assert written.term_id == "t"
    assert (written.reasons, written.inputs, written.accepted) == (BATCH.reasons, BATCH.inputs, BATCH.accepted)
    assert chain.sent == {"a1": BATCH}


def test_sending_again_expects_the_same_revision_with_another_attempt() -> None:
    chain, first = CHAIN.send(BATCH, "a1")
    chain, second = chain.send(LATER, "a2")
    assert first[0].expected == second[0].expected == 10
    assert chain.sent == {"a1": BATCH, "a2": LATER}


def test_an_attempt_id_is_never_used_twice() -> None:
    chain, _ = CHAIN.send(BATCH, "a1")
    with pytest.raises(AssertionError):
        chain.send(BATCH, "a1")


def test_accepted_makes_it_the_last_link_and_forgets_the_other_attempts() -> None:
    chain, _ = CHAIN.send(BATCH, "a1")
    chain, _ = chain.send(LATER, "a2")
    chain, landed = chain.accepted("a2", 12)
    assert (landed.batch, landed.revision, landed.first, landed.journal.attempt) == (LATER, 12, 14, "a2")
    assert (chain.revision, dict(chain.sent)) == (12, {})


@pytest.mark.parametrize(
    ("entry", "verdict"),
    [
        pytest.param(journal(attempt="a1"), BATCH, id="the first attempt landed unseen"),
        pytest.param(journal(attempt="a2"), LATER, id="the second attempt landed"),
        pytest.param(journal(attempt="a3"), Deposed, id="own term but no attempt of ours: an impostor"),
        pytest.param(journal(term=6), Deposed, id="own attempt id under another term"),
        pytest.param(journal(term=0), Deposed, id="a takeover"),
        pytest.param(journal(store_id="other"), Deposed, id="another store"),
        pytest.param(journal(revision=10), ReadAgain, id="a stale read shows the refused revision"),
        pytest.param(journal(revision=9), ReadAgain, id="an even older read"),
        pytest.param(Entry("journal", None, 12), Deposed, id="deleted"),
        pytest.param(Entry("journal", None, 0), ReadAgain, id="a read that knows of no journal"),
        pytest.param(Entry("journal", b"garbage", 12), Deposed, id="not a journal"),
    ],
)
def test_what_the_journal_says_after_a_refusal(entry: Entry, verdict: object) -> None:
    chain, _ = CHAIN.send(BATCH, "a1")
    chain, _ = chain.send(LATER, "a2")
    after, found = chain.judge(entry)
    if isinstance(verdict, type):
        assert isinstance(found, verdict)
        assert after == chain
    else:
        assert isinstance(found, Landed)
        assert (found.batch, found.revision) == (verdict, 12)
        assert after == replace(chain, revision=12, sent={})
