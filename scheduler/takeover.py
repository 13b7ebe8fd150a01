"""What a takeover is: the batch that makes an instance the leader, and the leadership that follows when it has landed.

Values only; who tries when is for `elector`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from shared import documents
from shared.documents import Hold, InputMark, Lease
from shared.errors import BadInput
from shared.keys import JOURNAL, LEASE, term_key
from shared.store import Entry, Write


@dataclass(frozen=True, slots=True)
class Leadership:
    """A takeover that landed. `term` is the revision of its journal, `inputs` are the predecessor's marks."""

    store_id: str
    holder: str
    term: int
    term_id: str
    plan: int  # of the takeover itself, which counts as a commit
    inputs: Mapping[str, InputMark] = field(default_factory=dict)
    accepted: tuple[str, ...] = ()
    holds: Mapping[str, Hold] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Takeover:
    """The batch that makes `lease.holder` the leader, and what it expects. Complete but for the attempt id.

    `former`: the key of the last term as it was read, None if there is none. It is deleted by compare-and-set: by that
    a takeover that was held up knows its own stream again, where the revisions of lease and journal may be those of
    another one.
    """

    lease: Lease
    lease_expected: int
    journal: documents.Journal  # without a store id: that of a new store
    journal_expected: int
    former: Entry | None

    def writes(self, attempt: str) -> tuple[Write, ...]:
        """The batch with a fresh attempt id, which is the name of the term that it begins."""
        journal = documents.encode(self._journal(attempt))
        found = [
            Write(LEASE, documents.encode(self.lease), expected=self.lease_expected),
            Write(JOURNAL, journal, expected=self.journal_expected),
            Write(term_key(attempt), b"", expected=0),
        ]
        if self.former is not None:
            found.append(Write(self.former.key, None, expected=self.former.revision))
        return tuple(found)

    def won(self, attempt: str, term: int) -> Leadership:
        """What is led when `attempt` has landed and its journal has revision `term`."""
        found = self._journal(attempt)
        return Leadership(
            found.store_id, found.holder, term, attempt, found.plan, found.inputs, found.accepted, found.holds
        )

    def _journal(self, attempt: str) -> documents.Journal:
        # Each attempt at a new store names another one: an earlier one may have landed in a stream that is gone.
        store_id = self.journal.store_id or attempt
        return replace(self.journal, store_id=store_id, attempt=attempt, term_id=attempt)


def former_term(journal: Entry) -> str:
    """The key of the term that a journal is of; "" if it has none. BadInput: the journal is not one."""
    term_id = "" if journal.value is None else documents.decode(documents.Journal, journal.value).term_id
    return term_key(term_id) if term_id else ""


def draft(lease: Entry, journal: Entry, former: Entry | None, *, holder: str, name: str) -> Takeover:
    """The takeover after `lease`, `journal` and the key of its term as they were read.

    It counts as a commit: its plan is its predecessor's plus one, so that every landed journal has its own number. It
    keeps the marks of the inputs, so that a leader that dies before its first commit leaves them to the next. Without a
    journal the store is new. BadInput: the journal is not one.
    """
    if journal.value is None:
        after = documents.Journal(store_id="", term=0, plan=1, attempt="", holder=holder)
    else:
        before = documents.decode(documents.Journal, journal.value)
        after = documents.Journal(
            store_id=before.store_id,
            term=0,
            plan=before.plan + 1,
            attempt="",
            holder=holder,
            reasons=("takeover",),
            inputs=before.inputs,
            accepted=before.accepted,
            holds=before.holds,
        )
    former = former if former is not None and former.revision else None
    return Takeover(Lease(holder, name), lease.revision, after, journal.revision, former)


def holder_of(lease: Entry) -> str:
    """Who holds the lease; "" = nobody: never written, deleted, left on purpose, or not a lease."""
    if lease.value is None:
        return ""
    try:
        return documents.decode(Lease, lease.value).holder
    except BadInput:
        return ""
