"""Admission of assignments: which document an agent obeys. (Store id, term, plan) never go back.

A missing document is no instruction at all, never "remove everything". A document of another store is obeyed only if
an operator has accepted that store for the one that was obeyed so far; the ids that were left behind are kept, because
what carries them is still ours.
"""

from __future__ import annotations

from dataclasses import dataclass

from shared.documents import Assignment

ACCEPTED_MAX = 64  # store ids left behind; each took an operator's word, the newest are kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """What an agent obeys. `chain`: older store ids, newest first, whose executions are still ours."""

    assignment: Assignment
    chain: tuple[str, ...] = ()

    @property
    def accepted(self) -> frozenset[str]:
        """The store ids whose executions are ours."""
        return frozenset((self.assignment.store_id, *self.chain))


@dataclass(frozen=True, slots=True)
class Admit:
    """Obey this from now on, once it is durable."""

    admitted: Admitted


@dataclass(frozen=True, slots=True)
class Unchanged:
    """Nothing new: the document that is obeyed already, or none at all."""


@dataclass(frozen=True, slots=True)
class Reject:
    """Not obeyed, with the reason for people."""

    reason: str


Verdict = Admit | Unchanged | Reject


def admit(host: str, current: Admitted | None, document: Assignment | None) -> Verdict:
    """What to do with the document that lies under the host's key."""
    if document is None:
        return Unchanged()
    if document.host != host:
        return Reject(f"the assignment is for host '{document.host}', this is '{host}'")
    if not document.store_id:
        return Reject("the assignment names no store")
    if current is None:
        return Admit(Admitted(assignment=document, chain=_chain((), document)))
    known = current.assignment
    if document.store_id != known.store_id:
        return _other_store(current, document)
    if (document.term, document.plan) < (known.term, known.plan):
        return Reject(
            f"term {document.term}, plan {document.plan} is older than term {known.term}, plan {known.plan}, "
            "which was admitted already"
        )
    if document == known:
        return Unchanged()
    if (document.term, document.plan) == (known.term, known.plan):
        return Reject(f"a second, different assignment of term {document.term}, plan {document.plan}")
    return Admit(Admitted(assignment=document, chain=_chain(current.chain, document)))


def _other_store(current: Admitted, document: Assignment) -> Verdict:
    left = current.assignment.store_id
    if left not in document.accepted:
        return Reject(
            f"the assignment comes from store {document.store_id}, this host obeys store {left}; "
            f"if that is meant, accept it: shoal store accept {document.store_id}"
        )
    return Admit(Admitted(assignment=document, chain=_chain((left, *current.chain), document)))


def _chain(older: tuple[str, ...], document: Assignment) -> tuple[str, ...]:
    ids = dict.fromkeys((*older, *document.accepted))
    ids.pop(document.store_id, None)
    return tuple(ids)[:ACCEPTED_MAX]
