"""The documents that the parts of Shoal write for each other; each is complete, never a delta.

    heartbeat   <c>_hosts    <host>            agent     I am here, in this session, with this capacity
    pulse       <c>_hosts    _pulse            leader    the unit in which silence is measured
    assignment  <c>_control  assign.<host>     leader    all executions of one host
    report      <c>_reports  <host>            agent     all that one host observes
    journal     <c>_control  journal           leader    the chain of commits: the fence of every leader write
    lease       <c>_control  lease             leader    who leads
    pin         <c>_control  version.<id>.<v>  leader    what a version is, for ever
    status      <c>_control  status.<id>       leader    what was decided about a pipeline, and why
    event       <c>_events                     both      history for people

What operators ask for is in `intents`, the request for an execution's output in `log_stream`.

They are stdlib dataclasses: constructed freely inside, validated once at the border (`decode`), where unknown
fields are ignored so that mixed versions can run. The pipeline record is the users' document and is stricter: see
`record`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Annotated, Any, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from shared.bounds import (
    Bytes,
    Cores,
    Digest,
    Execution,
    Fields,
    HostName,
    Identity,
    LeaseSeconds,
    Number,
    PipelineId,
    Request,
    Seconds,
    Slot,
    StoreId,
    Version,
)
from shared.errors import BadInput, Problem, problem
from shared.states import Overlap, Phase, State, Wanted

T = TypeVar("T")

REFUSALS_MAX = 100  # hosts named in a status; of the rest only the number is told
ERRORS_MAX = 100  # more of them in one document are counted, not listed
STRAYS_MAX = 1000  # in one heartbeat; with the longest names they take half of what a NATS server lets pass
DOCUMENT_BYTES_MAX = 4 * 1024 * 1024  # of any one document between components; far above what 1,000 executions need


@dataclass(frozen=True, slots=True)
class Session:
    """The unbroken validity of one host's lease on one boot. Sessions are compared whole, never ordered."""

    agent: Identity  # agent id: random, made with the agent's state directory
    boot: Identity  # boot id of the machine
    number: Number

    def __str__(self) -> str:
        return f"{self.agent[:8]}/{self.boot[:8]}/{self.number}"


@dataclass(frozen=True, slots=True)
class Driver:
    """An executor of a host and whether it works now."""

    ok: bool
    reason: str = ""  # why not, in words for people
    unbound: str = (
        ""  # why no lease-bound execution may run on it ("" = it may): its containers have another boot clock
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Stray:
    """An execution that may run on a host under a store that its agent does not obey, or has ceased to obey, and that
    no document of the obeyed one names: nobody else knows of it."""

    store_id: StoreId
    execution: Execution
    pipeline: PipelineId
    slot: Slot
    version: Version
    digest: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """An agent's word that its host lives. One a second, by compare-and-set on its own last revision."""

    store_id: StoreId  # "" before the agent has admitted a store
    host: HostName
    session: Session
    sequence: Number  # rises within a session, over restarts of the agent too
    lease_s: LeaseSeconds
    fence_kill_s: LeaseSeconds
    poll_s: LeaseSeconds
    cpu: Cores  # cores the host offers
    memory_bytes: Bytes
    labels: Mapping[str, str] = field(default_factory=dict)
    drivers: Mapping[str, Driver] = field(default_factory=dict)
    software: str = ""
    volumes: tuple[str, ...] = ()  # host paths that executions may mount (`--allow-volume`)
    strays: Annotated[tuple[Stray, ...], Field(max_length=STRAYS_MAX)] = ()
    strays_unknown: str = ""  # why there may be others, in words for people; "" = these are all, or it is an old agent
    dead: Session | None = None  # a tombstone: written by the leader over the heartbeat of this session


@dataclass(frozen=True, slots=True)
class Pulse:
    """The leader's own heartbeat in the hosts bucket, with its term."""

    store_id: StoreId
    term: Number
    number: Number  # distinct for each pulse of a term


@dataclass(frozen=True, slots=True, kw_only=True)
class Assigned:
    """One execution that a host must have. `wanted` says running or kept stopped."""

    execution: Execution
    pipeline: PipelineId
    slot: Slot
    replicas: Number
    version: Version
    digest: Digest  # of its bundle
    wanted: Wanted
    overlap: Overlap
    lease_bound: bool
    stop_grace_s: Seconds
    cpu: Cores  # cores requested; counted against the host's capacity
    memory_bytes: Bytes
    restart: Request = ""  # the restart that was last asked for when it was placed: `RestartIntent.name`
    bound_in: Number = 0  # plan in which an execution that was not lease-bound before became it; 0 = it always was


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopping:
    """The leader's memory that an execution was taken off a host and is not yet confirmed stopped.

    For the agent it is not in the assignment: no trace of it may remain. Confirmed by a report of session `asked_of`
    whose applied plan is at least `asked_in` and which no longer lists it.
    """

    execution: Execution
    pipeline: PipelineId
    slot: Slot
    version: Version
    overlap: Overlap
    cpu: Cores
    memory_bytes: Bytes
    asked_of: Session | None
    asked_in: Number
    reason: str
    lease_bound: bool = True  # False: it never stops by itself, so no silence counts as its end
    bound_in: Number = 0  # as of the execution


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """The complete list of executions of one host. A missing assignment is no instruction at all."""

    store_id: StoreId
    term: Number
    plan: Number
    host: HostName
    session: Session | None  # the session it answers
    executions: tuple[Assigned, ...] = ()
    stopping: tuple[Stopping, ...] = ()
    accepted: tuple[StoreId, ...] = ()  # older store ids that this store was accepted for (store accept)


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """What an agent observes of one execution."""

    execution: Execution
    pipeline: PipelineId
    slot: Slot
    version: Version
    digest: Digest
    phase: Phase
    reason: str = ""  # why it is not running, for people
    restarts: Number = 0  # times it was started again after ending by itself
    healed: Number = 0  # times it was started again because Bento had lost NATS for good
    last_words: tuple[str, ...] = ()  # Bento's own, when it ended by itself
    exit_code: int | None = None
    runtime: str = ""  # container id or process id, as the executor shows it


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All that one host observes. `plan` is the assignment that was applied: executions that are not listed here
    left no trace when the report was made."""

    store_id: StoreId
    host: HostName
    session: Session
    term: Number
    plan: Number
    executions: tuple[Observed, ...] = ()
    problem: str = ""  # why the list may be incomplete (the engine does not answer); then it confirms nothing


@dataclass(frozen=True, slots=True)
class InputMark:
    """How far an input stream had been read: creation time (as the server says it) and last sequence."""

    created: str
    sequence: Number


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """An input stream is not what it was: what it no longer says goes on as it was, until an operator's word.

    `plan` is the commit in which that was first written: it names this hold among all that there will ever be.
    """

    reason: str
    plan: Number
    mark: InputMark  # of the stream when it was noticed; what is written later is followed


@dataclass(frozen=True, slots=True, kw_only=True)
class Journal:
    """The chain of commits. `term` 0 stands for "the revision of this very write": a takeover.

    Under `term_key(term_id)` lies an empty value, written with every journal of the term: its revision is always the
    journal's plus one. "" = of a version of Shoal that had no such key.
    """

    store_id: StoreId
    term: Number
    plan: Number
    attempt: str  # random, fresh for every batch that is sent
    holder: str  # instance that wrote it
    term_id: StoreId = ""  # random name of the term, so that no two streams have the same one
    reasons: tuple[str, ...] = ()
    inputs: Mapping[str, InputMark] = field(default_factory=dict)  # by bucket
    accepted: tuple[StoreId, ...] = ()
    holds: Mapping[str, Hold] = field(default_factory=dict)  # by bucket; its input mark is then the last trusted one


@dataclass(frozen=True, slots=True)
class Lease:
    """Who leads. `holder` "" = left on purpose: take over at once. `beat` makes every renewal a new revision."""

    holder: str
    name: str
    beat: Number = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """What a version is, from its admission on."""

    store_id: StoreId
    term: Number
    plan: Number
    pipeline: PipelineId
    version: Version
    digest: Digest  # of the bundle
    config_digest: Digest  # sha256 hex of the configuration object
    overlap: Overlap
    overlap_reason: str
    inputs: tuple[str, ...]
    stop_grace_s: Seconds
    cpu: Cores
    memory_bytes: Bytes
    image: str  # "" = the agent's default
    volumes: tuple[str, ...]  # host paths it mounts
    captured: Fields  # the record's fields that were captured, as the record shows them


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotStatus:
    """What was decided about one slot and how it is, without counters or times."""

    slot: Slot
    execution: str
    host: str
    version: str
    phase: str  # a Phase, or "waiting"
    reason: str = ""


@dataclass(frozen=True, slots=True)
class HostRefusal:
    """Why one host cannot take a slot: all of its reasons, each with by how much something is short."""

    host: str
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """What the leader decided about a pipeline, and why. Holds decisions only: a quiet cluster rewrites none."""

    store_id: StoreId
    term: Number
    plan: Number
    pipeline: str
    state: State
    wanted: str  # status field of the record in force
    version: str  # version in force
    reason: str = ""  # the one sentence to read first
    problems: tuple[str, ...] = ()  # of the newest record or configuration, each: field, value, remedy
    notes: tuple[str, ...] = ()  # ignored edits, overwritten objects, ...
    slots: tuple[SlotStatus, ...] = ()
    refusals: tuple[HostRefusal, ...] = ()  # nearest candidate first, at most REFUSALS_MAX
    refused_hosts: Number = 0  # how many hosts refused altogether
    record: Number = 0  # revision of the record that this status speaks of


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One line of history."""

    store_id: str
    kind: str
    subject: str  # a pipeline id or a host name
    at: str  # wall time, for display
    term: int
    plan: int
    message: str


def encode(document: object) -> bytes:
    """Compact JSON of a document. The same document gives the same bytes."""
    return _adapter(type(document)).dump_json(document)  # type: ignore[arg-type]  # a type is hashable


def decode(kind: type[T], data: bytes) -> T:
    """The document in `data`. BadInput names the fields that are wrong; never another exception."""
    if len(data) > DOCUMENT_BYTES_MAX:
        raise BadInput(problem(kind.__name__, len(data), f"a document has at most {DOCUMENT_BYTES_MAX} bytes"))
    try:
        document: T = _adapter(kind).validate_json(data)  # type: ignore[arg-type]  # a type is hashable
    except ValidationError as error:
        if error.error_count() > ERRORS_MAX:  # listing them would take as many dictionaries
            wrong = f"{len(data)} bytes with {error.error_count()} errors"
            raise BadInput(Problem(kind.__name__, wrong, "this is something else")) from None
        problems = [
            problem(".".join(str(part) for part in found["loc"]) or kind.__name__, found.get("input"), found["msg"])
            for found in error.errors(include_url=False)[:5]
        ]
        raise BadInput(*problems) from error
    return document


@cache
def _adapter(kind: type[Any]) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
