"""What a plan is made from and what it is: the two values between the pure planner and the shells around it.

    watches ── fold ──> World ── freeze ──> View ── plan() ──> Plan ── commit ──> fold ──> ...

`View` is frozen and complete. It carries time only as silence (a duration), so equal views give equal plans.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field, replace
from typing import Any

from scheduler.core.candidates import Candidate
from scheduler.core.timings import FENCE_KILL_S, LEASE_S, POLL_S
from shared.documents import (
    Assigned,
    Assignment,
    Event,
    Heartbeat,
    InputMark,
    Pin,
    Report,
    Session,
    Status,
    Stopping,
    Stray,
)
from shared.intents import HostIntent, StoreIntent
from shared.keys import assign_key, status_key, version_key
from shared.record import PipelineRecord

Told = tuple[tuple[Stray, ...], str]  # what a host tells of strays, and why there may be others ("" = these are all)
NOTHING: Told = ((), "")


@dataclass(frozen=True, slots=True)
class RecordView:
    """What is known of one pipeline's record.

    `good` is the last record that validated (None: never one), `revision` the revision of the newest one, `problems`
    what is wrong with the newest one (empty: it is `good` itself). `held`: gone from the list without a delete
    marker, and a second list has not agreed yet: changes nothing. `captured`: `record.captured(good)`, made once, when
    the record was parsed (None: not made yet). `kept`: the store does not say so any more, by an accident to it and not
    by a user; what to tell people ("" = it says so).
    """

    good: PipelineRecord | None
    revision: int
    problems: tuple[str, ...] = ()
    held: bool = False
    captured: Mapping[str, Any] | None = None
    kept: str = ""


@dataclass(frozen=True, slots=True)
class HostView:
    """What is known of one host. Silence is counted in pulses of the own term, never read from a clock.

    `silence_s` is that of the key (any heartbeat on it), `heard` that of each (agent id, boot id) that was ever heard
    on it by this leader; an identity that is not in it was never heard and is as silent as this leader's term is old,
    `term_age_s`.

    `unheard`: it was not heard since its silence began to be counted anew, so that a short one says nothing of it.

    `silent_exclusive_s`: the silence after which nothing lease-bound runs on it any more, by the longest lease that may
    count; `silent_exclusive_of` the same of each identity (None, or not in it: nothing is known, see `View`).
    """

    heartbeat: Heartbeat
    revision: int
    silence_s: float
    heard: Mapping[tuple[str, str], float] = field(default_factory=dict)
    term_age_s: float = 0.0
    silent_exclusive_s: float | None = None
    silent_exclusive_of: Mapping[tuple[str, str], float] = field(default_factory=dict)
    unheard: bool = False


@dataclass(frozen=True, slots=True)
class GoneView:
    """A host whose key was deleted, or that was never seen and has something else on its key: the revision of that, and
    for how long it has been so."""

    revision: int
    silence_s: float


@dataclass(frozen=True, slots=True)
class Place:
    """Where the current assignments have an execution: the index of executions by pipeline."""

    host: str
    item: Assigned | Stopping


@dataclass(frozen=True, slots=True)
class Load:
    """What the executions of one host request together; those that are still stopping count until they are confirmed.

    Whole numbers, so that no order of additions can make two leaders see different loads.
    """

    cpu_milli: int = 0
    memory_bytes: int = 0
    count: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """Everything a plan may depend on. Made by `World.view` only, which keeps the indexes true.

    Indexes are `places`, `pins_of`, `loads` (of every host that has an assignment) and `waiting` (pipelines whose
    committed status has a refusal: any pass may find room for them). `gone`: hosts whose key was deleted; one that is
    neither there nor in `hosts` was never seen, and is as silent as `term_age_s`: for how long this leader has been
    counting pulses. `silent_exclusive_s`: the longest that any host has needed, for hosts and identities of which
    nothing is known (0: none yet).
    """

    store_id: str
    term: int
    plan: int  # of the last known commit; the next one is plan + 1
    records: Mapping[str, RecordView]
    candidates: Mapping[tuple[str, str], Candidate]  # by (pipeline, version): admission's verdicts, not pinned yet
    config_digests: Mapping[tuple[str, str], str]  # sha256 hex of the configuration objects that exist
    pins: Mapping[tuple[str, str], Pin]
    pins_of: Mapping[str, frozenset[str]]  # versions pinned, by pipeline
    hosts: Mapping[str, HostView]
    host_intents: Mapping[str, HostIntent]
    restart_intents: Mapping[str, str]  # pipeline -> name of the request
    store_intent: StoreIntent | None
    assignments: Mapping[str, Assignment]
    places: Mapping[str, tuple[Place, ...]]  # by pipeline, in the order of hosts and executions
    reports: Mapping[str, Report]
    statuses: Mapping[str, Status]
    inputs: Mapping[str, InputMark] = field(default_factory=dict)
    loads: Mapping[str, Load] = field(default_factory=dict)
    waiting: Set[str] = frozenset()
    damaged: Set[str] = frozenset()  # keys of the leader's documents that somebody else has overwritten
    gone: Mapping[str, GoneView] = field(default_factory=dict)
    silent_exclusive_s: float = 0.0
    term_age_s: float = 0.0
    accepted: tuple[str, ...] = ()  # older store ids, from the journal
    unanswered: Set[str] = frozenset()  # hosts with a heartbeat or a report that had no document at the last look
    straying: Mapping[str, Told] = field(default_factory=dict)  # hosts with more to tell of strays than nothing
    found: Mapping[tuple[str, str, str], Pin | None] = field(default_factory=dict)  # see `adoption`
    outage: Set[str] = frozenset()  # silent hosts that nothing is moved off: too many fell silent at once
    serials: int = 0  # highest serial that hosts report under other stores: no new execution may have one of those


@dataclass(frozen=True, slots=True)
class Policy:
    """The numbers that deciding depends on.

    `hold`: pipelines that stay exactly as they are, because the audit refused a plan for them.
    """

    silent_shareable_s: float = 4.0  # heartbeats come every second
    silent_exclusive_s: float = 12.0  # at least, of a host whose heartbeat does not say it; 16.5 on replicated stores
    writes_max: int = 900  # of one batch; the server refuses more than 1,000
    bytes_max: int = 8_000_000
    hold: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Scope:
    """What may have changed since the last plan. A full pass has no scope and must find nothing that scopes missed.

    A host stands for itself and for every pipeline that has an execution on it.
    """

    pipelines: frozenset[str] = frozenset()
    hosts: frozenset[str] = frozenset()

    def __or__(self, other: Scope) -> Scope:
        return Scope(self.pipelines | other.pipelines, self.hosts | other.hosts)

    @property
    def empty(self) -> bool:
        return not (self.pipelines or self.hosts)


@dataclass(frozen=True, slots=True)
class Tombstone:
    """The end of a session: to be stored over `revision` of the host's key, and only over that."""

    host: str
    dead: Session
    revision: int
    heartbeat: Heartbeat | None  # what is there; None: the key is gone

    def document(self, store_id: str) -> Heartbeat:
        """What to store."""
        if self.heartbeat is not None:
            return replace(self.heartbeat, dead=self.dead)
        return Heartbeat(
            store_id=store_id,
            host=self.host,
            session=self.dead,
            sequence=0,
            lease_s=LEASE_S,
            fence_kill_s=FENCE_KILL_S,
            poll_s=POLL_S,
            cpu=0.0,
            memory_bytes=0,
            dead=self.dead,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One commit: all of it happens or nothing. Empty = nothing to commit.

    `assignments`, `statuses`, `pins`: documents to write; None = delete the key. `more`: there is more to do at once
    than fits into one batch; plan again after committing. `wake_s`: look again after so many seconds even if nothing
    happens (None: no need). `reasons`: why, in short, for the journal. `events`: history to append once committed;
    their `at` is "", whoever appends them fills it in.

    `tombstones` are not part of the commit: each is a compare-and-set of its own on what the view has of that host.
    What it makes possible is for a later plan, made from a view that shows it.

    `then`: plans made in the same pass, to be committed right after this one in their order, each with its own number;
    they only add documents that stand for themselves, so dropping them at the first failure loses nothing: planning
    again finds the rest. `rest`: what was left out of this pass (None: nothing); the next scope must contain it.
    """

    number: int
    assignments: Mapping[str, Assignment | None] = field(default_factory=dict)
    pins: Mapping[tuple[str, str], Pin | None] = field(default_factory=dict)
    statuses: Mapping[str, Status | None] = field(default_factory=dict)
    events: tuple[Event, ...] = ()
    reasons: tuple[str, ...] = ()
    tombstones: tuple[Tombstone, ...] = ()
    more: bool = False
    wake_s: float | None = None
    then: tuple[Plan, ...] = ()
    rest: Scope | None = None

    @property
    def empty(self) -> bool:
        return not (self.assignments or self.pins or self.statuses)

    def documents(self) -> list[tuple[str, Assignment | Pin | Status | None]]:
        """Keys and documents of the commit, in the order in which they are written: a pin before what needs it."""
        documents: list[tuple[str, Assignment | Pin | Status | None]] = []
        documents.extend((version_key(*name), self.pins[name]) for name in sorted(self.pins))
        documents.extend((assign_key(host), self.assignments[host]) for host in sorted(self.assignments))
        documents.extend((status_key(pipeline), self.statuses[pipeline]) for pipeline in sorted(self.statuses))
        return documents
