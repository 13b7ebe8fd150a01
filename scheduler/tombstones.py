"""Writes the tombstones that plans ask for, and remembers what became of each.

    Plan.tombstones ──> compare-and-set on the revision that the view was made from ──> settled, or to be tried again

Refused means that somebody wrote on the key since: the host is back, or another leader was here first; whatever it was,
the hosts watch tells. Accepted means that no heartbeat of that session can follow, but nothing is made of it here
either: only a view that shows the tombstone lets a plan move anything. So an answer that is lost costs a moment and
nothing else, and it does not matter whether this leader still leads: see `core.liveness`.

The same tombstone is written once. Should its outcome stay unknown, the key is read: by then it shows the tombstone, a
heartbeat, or that the write has not landed yet; then it is written again over the same revision, which can be stored
once at most, whoever of the two comes first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import structlog

from scheduler.core.view import Tombstone, View
from shared import documents
from shared.documents import Event, Heartbeat
from shared.errors import BadInput, Busy, Conflict, Missing, OutcomeUnknown, StoreUnavailable
from shared.keys import Keys
from shared.store import SHORT_TIMEOUT_S, Entry, Store

AT_ONCE_MAX = 50  # writes under way; a rack of hosts takes one or two rounds

log = structlog.get_logger()


class Outcome(StrEnum):
    WRITTEN = "written"
    REFUSED = "refused"
    UNKNOWN = "unknown"  # to be tried again


@dataclass(frozen=True, slots=True)
class Result:
    tombstone: Tombstone
    outcome: Outcome

    def event(self, view: View) -> Event:
        """What the history says of it."""
        host, dead = self.tombstone.host, self.tombstone.dead
        kind, message = "host-back", f"{host} was heard again just before session {dead} of it was to be ended"
        if self.outcome is Outcome.WRITTEN:
            kind, message = "host-dead", f"session {dead} of {host} has ended, after its silence"
        return Event(
            store_id=view.store_id, kind=kind, subject=host, at="", term=view.term, plan=view.plan, message=message
        )

    def message_id(self, view: View) -> str:
        """The same for the same words."""
        return f"{view.store_id}-{view.term}-{self.outcome.value}-{self.tombstone.host}-{self.tombstone.revision}"


class Tombstones:
    """The tombstones of one leadership. Never two calls at once."""

    def __init__(self, store: Store, keys: Keys) -> None:
        self._store = store
        self._bucket = keys.hosts
        self._settled: dict[str, int] = {}  # host -> revision over which the last tombstone was written or refused

    async def write(self, wanted: Sequence[Tombstone], store_id: str) -> list[Result]:
        """Write those that are not settled yet; what became of each. Takes as long as a store needs to answer, at most
        a little more than two short time-outs for each round of AT_ONCE_MAX."""
        due = [stone for stone in wanted if self._settled.get(stone.host) != stone.revision]
        results: list[Result] = []
        for start in range(0, len(due), AT_ONCE_MAX):
            group = due[start : start + AT_ONCE_MAX]
            outcomes = await asyncio.gather(*(self._write(stone, store_id) for stone in group))
            results.extend(Result(stone, outcome) for stone, outcome in zip(group, outcomes, strict=True))
        for result in results:
            stone = result.tombstone
            if result.outcome is not Outcome.UNKNOWN:
                self._settled[stone.host] = stone.revision
            log.info("A tombstone.", host=stone.host, dead=str(stone.dead), outcome=result.outcome.value)
        return results

    async def _write(self, stone: Tombstone, store_id: str) -> Outcome:
        document = documents.encode(stone.document(store_id))
        try:
            await self._store.write(
                self._bucket, stone.host, document, expected=stone.revision, timeout=SHORT_TIMEOUT_S
            )
        except (Conflict, OutcomeUnknown, Busy, StoreUnavailable):
            return await self._look(stone)
        except Missing:
            return Outcome.UNKNOWN  # the bucket is gone: there is nothing to write over, and nothing moves
        return Outcome.WRITTEN

    async def _look(self, stone: Tombstone) -> Outcome:
        """What the key shows after a write that was refused, or had no answer."""
        try:
            entry = await self._store.read(self._bucket, stone.host, timeout=SHORT_TIMEOUT_S)
        except (StoreUnavailable, Missing):
            return Outcome.UNKNOWN
        if entry.revision <= stone.revision:
            return Outcome.UNKNOWN
        return Outcome.WRITTEN if _dead(entry) == stone.dead else Outcome.REFUSED


def _dead(entry: Entry) -> documents.Session | None:
    if entry.value is None:
        return None
    try:
        return documents.decode(Heartbeat, entry.value).dead
    except BadInput:
        return None
