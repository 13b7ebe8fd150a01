"""What operators ask for: the documents of `<c>_operator`, read and written like all others (`documents`).

host.<host>       HostIntent      cordon, drain, forget, confirm-dead
restart.<id>      RestartIntent   new executions of a pipeline
store             StoreIntent     agents of a lost store may obey this one
confirm.<input>   ConfirmIntent   what a stream says now counts
"""

from __future__ import annotations

from dataclasses import dataclass

from shared.bounds import Identity, Number, StoreId
from shared.documents import InputMark, Session


@dataclass(frozen=True, slots=True, kw_only=True)
class HostIntent:
    """What an operator wants of a host."""

    cordon: bool = False
    drain: bool = False
    forget: bool = False
    confirm_dead: bool = False
    session: Session | None = None  # of which `confirm_dead` speaks; None = of whatever the host's document names
    sequence: Number = 0  # of its last heartbeat then: a later one of that session takes the word back; 0 = none does
    reason: str = ""
    who: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartIntent:
    """Asks for new executions of a pipeline, once: an execution that was placed under another request is replaced.

    `request` is random, because a revision alone says nothing of a stream that was made again and counts from 1. Who
    writes it by hand may leave it out.
    """

    request: Identity = ""
    reason: str = ""
    who: str = ""

    def name(self, revision: int) -> str:
        """Of this very request. Names are compared, never ordered."""
        return f"{self.request}{':' if self.request else ''}{revision}"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreIntent:
    """An operator's word that agents of store `replaces` may obey store `accept`."""

    accept: StoreId
    replaces: StoreId
    reason: str = ""
    who: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfirmIntent:
    """An operator's word on one hold: what the input says now counts. Names the hold, so it can end no later one."""

    store_id: StoreId
    plan: Number  # of the hold
    created: str  # of the stream, as in the hold
    heard: InputMark | None = None  # of hosts: those not heard on that stream since are given up, whoever leads
    reason: str = ""
    who: str = ""
