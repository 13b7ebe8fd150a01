"""What a takeover is: the batch that makes an instance the leader, and the leadership that follows when it has landed.

Values only; who tries when is for `elector`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from shared import documents
from shared.documents import Hold, InputMark, Lease
from shared.errors import BadInput
from shared.keys import JOURNAL, LEASE
from shared.store import Entry, Write


@dataclass(frozen=True, slots=True)
class Leadership:
    """A takeover that landed. `term` is the revision of its journal, `inputs` are the predecessor's marks."""

    store_id: str
    holder: str
    term: int
    plan: int  # of the takeover itself, which counts as a commit
    inputs: Mapping[str, InputMark] = field(default_factory=dict)
    accepted: tuple[str, ...] = ()
    holds: Mapping[str, Hold] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Takeover:
    """The batch that makes `lease.holder` the leader, and what it expects. Complete but for the attempt id."""

    lease: Lease
    lease_expected: int
    journal: documents.Journal
    journal_expected: int

    def writes(self, attempt: str) -> tuple[Write, Write]:
        """The batch with a fresh attempt id."""
        return (
            Write(LEASE, documents.encode(self.lease), expected=self.lease_expected),
            Write(JOURNAL, documents.encode(replace(self.journal, attempt=attempt)), expected=self.journal_expected),
        )

    def won(self, term: int) -> Leadership:
        """What is led when its journal has revision `term`."""
        found = self.journal
        return Leadership(found.store_id, found.holder, term, found.plan, found.inputs, found.accepted, found.holds)


def draft(lease: Entry, journal: Entry, *, holder: str, name: str, store_id: str) -> Takeover:
    """The takeover after `lease` and `journal` as they were read.

    It counts as a commit: its plan is its predecessor's plus one, so that every landed journal has its own number. It
    keeps the marks of the inputs, so that a leader that dies before its first commit leaves them to the next. Without a
    journal the store is new and gets `store_id`. BadInput: the journal is not one.
    """
    if journal.value is None:
        after = documents.Journal(store_id=store_id, term=0, plan=1, attempt="", holder=holder)
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
    return Takeover(Lease(holder, name), lease.revision, after, journal.revision)


def holder_of(lease: Entry) -> str:
    """Who holds the lease; "" = nobody: never written, deleted, left on purpose, or not a lease."""
    if lease.value is None:
        return ""
    try:
        return documents.decode(Lease, lease.value).holder
    except BadInput:
        return ""
