"""The chain of commits: the only way a leader writes what it owns.

    journal r ──commit──> journal r' ──commit──> journal r'' ...

Every batch begins with the journal, written by compare-and-set on the last journal revision that this leader knows.
So a commit succeeds exactly one commit: neither a deposed leader nor a straggler of the same leader, which a stalled
server forwards late, can land.

A revision is a number of one stream, and a stream that is made anew, or restored from an older backup, gives the same
numbers again. Therefore the second message of every batch writes a key that only this term has, by compare-and-set on
the revision right after that journal's. In a stream in which this very term did not write this very commit there is
no such key at that revision, whatever its journal stands at: the batch is refused.

What remains is to find out what became of a batch whose answer was lost:

    answer          means                                 next
    accepted        landed; earlier attempts never can    fold it
    unknown, busy   nothing                               send again, same expectation, fresh attempt id
    conflict        the journal has moved                 read it: own term and own attempt = landed, else deposed

`Chain` is that table as a frozen value; `Journal` sends and waits. Never two batches at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import structlog

from shared import documents
from shared.clock import Clock
from shared.documents import Hold, InputMark
from shared.errors import BadInput, Busy, Conflict, Missing, OutcomeUnknown, StoreUnavailable
from shared.keys import JOURNAL, term_key
from shared.store import Entry, Store, Write

PAUSE_MIN_S = (
    0.01  # before a batch is sent again; doubles up to the next, so that a store that comes back is not flooded
)
PAUSE_MAX_S = 0.5
READS_MAX = 40  # of a journal that was refused and reads no newer; then it is another stream, or somebody else has
# written the key of the term: we know nothing
READ_PAUSE_S = 0.1

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Batch:
    """What one commit writes beside the journal, and what the journal says about it."""

    plan: int
    writes: tuple[Write, ...] = ()
    reasons: tuple[str, ...] = ()
    inputs: Mapping[str, InputMark] = field(default_factory=dict)
    accepted: tuple[str, ...] = ()
    holds: Mapping[str, Hold] = field(default_factory=dict)
    store_id: str = ""  # makes another store of this one; "" = it stays the one it is


@dataclass(frozen=True, slots=True)
class Landed:
    """A batch is stored, whole. Its `journal` has `revision`; its writes have consecutive ones from `first` on."""

    batch: Batch
    journal: documents.Journal
    revision: int

    @property
    def first(self) -> int:
        """Between them and the journal is the key of the term."""
        return self.revision + 2


@dataclass(frozen=True, slots=True)
class Deposed:
    """The journal went on without us. Nothing that was sent and not answered may be believed."""

    reason: str


@dataclass(frozen=True, slots=True)
class ReadAgain:
    """The journal that was read is not newer than the one that was refused: the read was stale."""


@dataclass(frozen=True, slots=True)
class Chain:
    """What one leader knows of the chain: its last link, and the batches that may be the next one."""

    store_id: str
    term: int
    term_id: str
    holder: str
    revision: int  # of the last journal known; that of the term's key is the next one
    sent: Mapping[str, Batch] = field(default_factory=dict)  # by attempt id, not answered yet

    def send(self, batch: Batch, attempt: str) -> tuple[Chain, tuple[Write, ...]]:
        """The writes of `batch` as the next link, and the chain that remembers the attempt.

        To be remembered before anything is sent: whoever is interrupted in between must still know its own attempt.
        """
        assert attempt not in self.sent, "an attempt id names one batch that was sent once"
        link = Write(JOURNAL, documents.encode(self._document(batch, attempt)), expected=self.revision)
        term = Write(term_key(self.term_id), b"", expected=self.revision + 1)
        return replace(self, sent={**self.sent, attempt: batch}), (link, term, *batch.writes)

    def accepted(self, attempt: str, revision: int) -> tuple[Chain, Landed]:
        """The store accepted `attempt` with its journal at `revision`: all other attempts are dead."""
        assert revision > self.revision, "the store's revisions only grow"
        batch = self.sent[attempt]
        return replace(self, revision=revision, sent={}), Landed(batch, self._document(batch, attempt), revision)

    def judge(self, journal: Entry) -> tuple[Chain, Landed | Deposed | ReadAgain]:
        """What a journal that was read after a refusal says about the attempts."""
        if journal.revision <= self.revision:
            return self, ReadAgain()
        if journal.value is None:
            return self, Deposed("the journal was deleted")
        try:
            found = documents.decode(documents.Journal, journal.value)
        except BadInput as error:
            return self, Deposed(f"somebody wrote a journal that is none: {error}")
        own = found.store_id == self.store_id and found.term == self.term and found.attempt in self.sent
        if own:
            return self.accepted(found.attempt, journal.revision)
        return self, Deposed(f"{found.holder} has written the journal (term {found.term or journal.revision})")

    def _document(self, batch: Batch, attempt: str) -> documents.Journal:
        return documents.Journal(
            store_id=batch.store_id or self.store_id,
            term=self.term,
            plan=batch.plan,
            attempt=attempt,
            holder=self.holder,
            term_id=self.term_id,
            reasons=batch.reasons,
            inputs=batch.inputs,
            accepted=batch.accepted,
            holds=batch.holds,
        )


class Journal:
    """Sends batches as links of the chain, one at a time, for one term.

    `token` gives random attempt ids; `on_retry` is told why a batch is sent again (for metrics).
    """

    def __init__(
        self,
        store: Store,
        bucket: str,
        clock: Clock,
        chain: Chain,
        *,
        token: Callable[[], str],
        on_retry: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._store = store
        self._bucket = bucket
        self._clock = clock
        self._chain = chain
        self._token = token
        self._on_retry = on_retry
        self._busy = False

    @property
    def chain(self) -> Chain:
        return self._chain

    @property
    def busy(self) -> bool:
        """Whether a commit is under way whose outcome is not certain yet."""
        return self._busy

    async def commit(self, batch: Batch) -> Landed | Deposed:
        """Write `batch` whole or not at all; returns when that is certain, however long the store is away.

        If a batch of an earlier call, which was cancelled, turns out to have landed, that one is returned and `batch`
        was not written: compare `landed.batch`. After `Deposed` the journal must not be used any more.
        """
        assert not self._busy, "never two batches at once"
        self._busy = True
        try:
            return await self._commit(batch)
        finally:
            self._busy = False

    async def _commit(self, batch: Batch) -> Landed | Deposed:
        pause_s = PAUSE_MIN_S
        while True:
            attempt = self._token()
            self._chain, writes = self._chain.send(batch, attempt)
            try:
                revision = await self._store.commit(self._bucket, writes)
            except Conflict:
                return await self._resolve()
            except Missing as error:
                return Deposed(f"the control bucket is gone: {error}")
            except (Busy, OutcomeUnknown, StoreUnavailable) as error:
                self._on_retry(type(error).__name__)
                log.warning("A commit is sent again.", plan=batch.plan, attempt=attempt, why=str(error))
            else:
                self._chain, landed = self._chain.accepted(attempt, revision)
                return landed
            await self._clock.sleep(pause_s)
            pause_s = min(2 * pause_s, PAUSE_MAX_S)

    async def _resolve(self) -> Landed | Deposed:
        """Find out what the refusal meant. Only the store's word counts, so this waits as long as it is away."""
        stale = 0
        while stale < READS_MAX:
            try:
                entry = await self._store.read(self._bucket, JOURNAL)
            except StoreUnavailable:
                await self._clock.sleep(PAUSE_MAX_S)
                continue
            except Missing as error:
                return Deposed(f"the control bucket is gone: {error}")
            self._chain, verdict = self._chain.judge(entry)
            if not isinstance(verdict, ReadAgain):
                return verdict
            stale += 1
            await self._clock.sleep(READ_PAUSE_S)
        return Deposed("the journal has not moved: the control stream went back, or somebody wrote the key of the term")
