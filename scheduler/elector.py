"""Who leads. A lease that its holder rewrites, and standbys that count.

    standby ── six equal own reads, or the holder has left ──> claiming ── one batch: lease and journal ──> leading
       ^                                                          │ refused                                    │
       └──────────────────────────────────────────────────────────┴──── lease lost, commit refused ────────────┘

Leading is never believed: the lease decides only who *tries* to commit; the journal's compare-and-set decides who
does. So nothing here is a matter of safety, only of who waits how long. The connection is the elector's own, and in
production so are its thread and event loop: a leader that computes for a second must not be deposed for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import structlog

from scheduler.takeover import Leadership, Takeover, draft, former_term, holder_of
from shared import documents
from shared.clock import Clock
from shared.documents import Lease
from shared.errors import BadInput, Busy, Conflict, Missing, OutcomeUnknown, StoreError, StoreUnavailable
from shared.keys import JOURNAL, LEASE, Keys
from shared.store import SHORT_TIMEOUT_S, Entry, Store

RENEW_S = 0.5
READ_GAP_S = 0.4  # between the end of one read and the begin of the next
EQUAL_READS = 6  # 2 s: more than one renewal that times out on a frozen server, and its repetition on another
RETRY_S = 0.1  # pace of a renewal or takeover that was refused without a verdict
CLAIMS_MAX = 3  # in a row, while only the journal moves: what the dead leader sent last may still land
STALE_MAX = 10  # reads in a row after a refusal that show nothing newer than was refused
STEADY_S = 10.0  # for so long renewals must have gone well before a leader that cannot commit gives its lease up
ATTEMPTS_MAX = 8  # of one takeover batch; more of them only delay another standby

log = structlog.get_logger()


class Role(StrEnum):
    STANDBY = "standby"
    CLAIMING = "claiming"
    LEADING = "leading"
    LEFT = "left"


@dataclass(frozen=True, slots=True)
class Count:
    """Own reads in a row that showed the same lease."""

    revision: int = 0
    equal: int = 0

    def after(self, revision: int) -> Count:
        """The count after a read that showed `revision`."""
        return Count(revision, self.equal + 1) if self.equal and revision == self.revision else Count(revision, 1)

    @property
    def silent(self) -> bool:
        return self.equal >= EQUAL_READS


class Elector:
    """One instance's part in the election, over its own connection.

    `eligible` says whether this instance could plan if it led (its watches are complete). `on_leading` and `on_lost`
    are called in this event loop, in turns, and must not wait. `holder` is random per process; `name` is for people.
    """

    def __init__(
        self,
        store: Store,
        keys: Keys,
        clock: Clock,
        *,
        holder: str,
        name: str,
        token: Callable[[], str],
        eligible: Callable[[], bool],
        on_leading: Callable[[Leadership], None],
        on_lost: Callable[[int, str], None],
    ) -> None:
        self._store = store
        self._bucket = keys.control
        self._clock = clock
        self._holder = holder
        self._name = name
        self._token = token
        self._eligible = eligible
        self._on_leading = on_leading
        self._on_lost = on_lost
        self._wake = asyncio.Event()
        self._left = asyncio.Event()
        self._leaving = False
        self._resigned = 0
        self._given_up = 0  # the newest term that its loop can commit nothing of
        self._stale = 0  # answers in a row that were older than what we know
        self._said = ""  # what was last said to keep us from leading
        self.role = Role.STANDBY

    async def run(self) -> None:
        """Stand by, claim, lead, and again; ends only after `leave`."""
        try:
            while not self._leaving:
                self.role = Role.STANDBY
                lease = await self._stand_by()
                if lease is None:
                    break
                self.role = Role.CLAIMING
                won = await self._claim(lease)
                if won is not None:
                    self._said = ""
                    await self._lead(*won)
                else:
                    # A lease without a holder is claimed at once: what keeps us from it must not be tried in a loop.
                    await self._clock.sleep(RETRY_S)
        finally:
            self.role = Role.LEFT
            self._left.set()

    def look(self) -> None:
        """The control watch shows a lease without a holder, or this instance became eligible: look at once. A wake-up
        only: it may be wrong or repeated."""
        if self.role is Role.STANDBY:
            self._wake.set()

    def resign(self, term: int) -> None:
        """A commit of `term` was refused: stop leading it."""
        self._resigned = max(self._resigned, term)
        self._wake.set()

    def give_up(self, term: int) -> None:
        """Nothing of `term` can be committed over the loop's connection. If the lease could be renewed all the time, it
        is cleared for somebody whose connections all work; otherwise nothing is wrong with this instance in
        particular. To be said again as long as it is so."""
        self._given_up = max(self._given_up, term)

    async def leave(self) -> None:
        """Stop for good; if leading, clear the holder so that a standby takes over at once. Waits for that."""
        self._leaving = True
        self._wake.set()
        await self._left.wait()

    # -- standing by --------------------------------------------------------------------------------------------------

    async def _stand_by(self) -> Entry | None:
        """The lease to claim: its holder is silent or has left. None: leaving."""
        count = Count()
        while not self._leaving:
            self._wake.clear()
            try:
                lease = await self._store.read(self._bucket, LEASE, timeout=SHORT_TIMEOUT_S)
            except StoreUnavailable:
                count = Count()
                await self._change_server()
            except Missing:
                count = Count()
            else:
                count = count.after(lease.revision)
                # An own holder: a takeover that was given up has landed late. Nobody leads, so nobody is waited for.
                vacant = holder_of(lease) in ("", self._holder)
                if (vacant or count.silent) and self._eligible():
                    return lease
            await self._pause(READ_GAP_S)
        return None

    # -- claiming -----------------------------------------------------------------------------------------------------

    async def _claim(self, lease: Entry) -> tuple[Leadership, int] | None:
        """(leadership, lease revision), or None: somebody else was faster, or the store is away."""
        try:
            for _ in range(CLAIMS_MAX):
                journal = await self._store.read(self._bucket, JOURNAL, timeout=SHORT_TIMEOUT_S)
                key = former_term(journal)
                former = await self._store.read(self._bucket, key, timeout=SHORT_TIMEOUT_S) if key else None
                takeover = draft(lease, journal, former, holder=self._holder, name=self._name)
                won = await self._take_over(takeover)
                if won is not None:
                    return won
                again = await self._store.read(self._bucket, LEASE, timeout=SHORT_TIMEOUT_S)
                if again.revision != lease.revision:
                    return None
        except (StoreUnavailable, Missing) as error:
            self._say("A takeover was given up, the store does not answer.", str(error))
        except BadInput as error:
            self._say("Nobody can lead: the journal cannot be read.", str(error), remedy="shoal store repair")
        return None

    def _say(self, sentence: str, why: str, **more: str) -> None:
        """Log what keeps this instance from leading once, however often it tries."""
        if sentence != self._said:
            self._said = sentence
            log.error(sentence, why=why, **more)

    async def _take_over(self, takeover: Takeover) -> tuple[Leadership, int] | None:
        attempts: set[str] = set()
        for _ in range(ATTEMPTS_MAX):
            attempt = self._token()
            attempts.add(attempt)
            try:
                first = await self._store.commit(self._bucket, takeover.writes(attempt), timeout=SHORT_TIMEOUT_S)
            except Conflict:
                return await self._settle(takeover, attempts)
            except OutcomeUnknown:
                # Sent again with the same expectations: accepted, the first can never land; refused, one look tells.
                await self._change_server()
            except (Busy, StoreUnavailable):
                await self._clock.sleep(RETRY_S)
            else:
                return takeover.won(attempt, first + 1), first
        return None

    async def _settle(self, takeover: Takeover, attempts: set[str]) -> tuple[Leadership, int] | None:
        """Whether one of `attempts` is the takeover that the store has: the answer to it may have been lost."""
        for _ in range(ATTEMPTS_MAX):
            lease = await self._store.read(self._bucket, LEASE, timeout=SHORT_TIMEOUT_S)
            journal = await self._store.read(self._bucket, JOURNAL, timeout=SHORT_TIMEOUT_S)
            stale = lease.revision <= takeover.lease_expected and journal.revision <= takeover.journal_expected
            if not stale:
                break
            await self._clock.sleep(RETRY_S)
        else:
            return None
        attempt = "" if journal.value is None else documents.decode(documents.Journal, journal.value).attempt
        return (takeover.won(attempt, journal.revision), lease.revision) if attempt in attempts else None

    # -- leading ------------------------------------------------------------------------------------------------------

    async def _lead(self, leadership: Leadership, revision: int) -> None:
        self.role = Role.LEADING
        log.info("This instance leads.", term=leadership.term, store_id=leadership.store_id, plan=leadership.plan)
        self._on_leading(leadership)
        reason = await self._hold(leadership.term, revision)
        self.role = Role.STANDBY
        log.info("This instance leads no longer.", term=leadership.term, why=reason)
        self._on_lost(leadership.term, reason)

    async def _hold(self, term: int, revision: int) -> str:
        """Renew until that is over; why it is."""
        beat = 0
        pause_s = RENEW_S
        steady_s = self._clock.monotonic()  # since when every renewal was acknowledged
        while True:
            await self._pause(pause_s)
            self._wake.clear()
            if self._resigned >= term:
                return "a commit was refused"
            if self._leaving:
                await self._clear(revision)
                return "leaving on purpose"
            beat += 1
            renewed = await self._renew(Lease(self._holder, self._name, beat), revision)
            if renewed is None:
                return "the lease has another holder"
            pause_s = RETRY_S if renewed == revision else RENEW_S
            if renewed == revision:
                steady_s = self._clock.monotonic()
            revision = renewed
            given_up, self._given_up = self._given_up >= term, 0
            if given_up and self._clock.monotonic() >= steady_s + STEADY_S:
                await self._clear(revision)
                return "its loop can commit nothing, while the lease can be renewed"

    async def _renew(self, lease: Lease, revision: int) -> int | None:
        """The revision of the renewed lease, or the one to go on from; None: it is somebody else's."""
        try:
            renewed = await self._store.write(
                self._bucket, LEASE, documents.encode(lease), expected=revision, timeout=SHORT_TIMEOUT_S
            )
            self._stale, self._said = 0, ""
            return renewed
        except Conflict:
            return await self._resolve(revision)
        except (OutcomeUnknown, StoreUnavailable) as error:
            self._say("The lease cannot be renewed.", str(error))
            await self._change_server()
        except Busy:
            pass
        except Missing:
            return None
        return revision  # unknown, or without a verdict: soon again, with the same expectation

    async def _resolve(self, revision: int) -> int | None:
        """After a refusal: an earlier renewal may have landed unseen, so a lease of our own is gone on from."""
        try:
            lease = await self._store.read(self._bucket, LEASE, timeout=SHORT_TIMEOUT_S)
        except StoreUnavailable:
            return revision
        except Missing:
            return None
        if lease.revision <= revision:
            # A stale answer; if it stays so, the stream is another one.
            self._stale += 1
            return revision if self._stale < STALE_MAX else None
        return lease.revision if holder_of(lease) == self._holder else None

    async def _clear(self, revision: int) -> None:
        """Leave the lease without a holder. Best effort: standbys would notice the silence anyway."""
        nobody = documents.encode(Lease("", self._name))
        for _ in range(2):
            try:
                await self._store.write(self._bucket, LEASE, nobody, expected=revision, timeout=SHORT_TIMEOUT_S)
                return
            except Conflict:
                found = await self._resolve(revision)
                if found is None:
                    return
                revision = found
            except StoreError as error:
                log.info("The lease could not be cleared.", why=str(error))
                return

    # -- waiting ------------------------------------------------------------------------------------------------------

    async def _change_server(self) -> None:
        try:
            await self._store.change_server()
        except StoreUnavailable:
            await self._clock.sleep(RETRY_S)

    async def _pause(self, seconds: float) -> None:
        """Wait at least `seconds` by the clock, or until woken."""
        until = self._clock.monotonic() + seconds
        while not self._wake.is_set() and (left := until - self._clock.monotonic()) > 0:
            await self._clock.wait(self._wake, left)
