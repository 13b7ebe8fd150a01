"""Admission: from "this version is wanted" to a verdict, kept up to date until somebody pins the version.

    configs watch ── fold() ──┐
                              ├──> look: fetch ─> read ─> derive, lint ─> admit ─> put bundle ──> candidates()
    planner ──────── want() ──┘

Level, not edge: what is looked at follows from (which versions are wanted, with which captured fields, which revision
their objects have). A verdict counts only for exactly these; when one of them changes the version is looked at anew.
While this instance leads, an object that arrives is fetched and linted at once, before a record asks for it: publishing
is then a matter of making the bundle.

Everything is bounded: jobs at once, large objects at once, arrivals remembered, configurations kept. Whatever blocks or
computes for long runs in a thread. Deciding is done in `core.candidates`.
"""

from __future__ import annotations

import asyncio
import heapq
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import structlog

from scheduler.core.blast import replaced
from scheduler.core.candidates import Candidate, Ready, Rejected, Unavailable, admit, rebuild, rejected
from scheduler.lint import Linter, LintUnavailable
from scheduler.waiting import wait_or_sleep
from shared.clock import Clock
from shared.configuration import Configuration, Derived, derive, read_configuration, too_large
from shared.documents import InputMark, Pin, decode
from shared.errors import BadInput, Missing, StoreError
from shared.ids import is_id, is_version
from shared.keys import CONFIG_BYTES_MAX, Keys, object_name, split_object_name
from shared.record import PipelineRecord, captured
from shared.store import Change, Entry, Listing, ObjectInfo, WatchItem

FETCH_TIMEOUT_S = 15.0  # an object of 8 MiB over a slow link
JOBS_MAX = 64  # looked at at once; most of them wait for a call of lint that they share
LARGE_BYTES = 256 * 1024
LARGE_MAX = 2  # of these at once, from reading to verdict: parsed, one may take some ten times its size
ARRIVALS_MAX = 1000  # objects that wait to be looked at before a record asks; the newest win
KEPT_BYTES_MAX = 32 * 1024 * 1024  # of configurations that were read; records may ask for them next
KEPT_MAX = 1000
RETRY_FIRST_S = 0.5  # after trouble with the store or lint, doubled each time
RETRY_MAX_S = 30.0
RETRY_LINT_MAX_S = 120.0  # each try of a configuration that keeps Bento busy costs a core for lint's whole time-out
DAMAGED_RETRY_S = 60.0  # an object with missing chunks: the store may be repaired without the object changing

Version = tuple[str, str]  # (pipeline, version)

log = structlog.get_logger()


class Objects(Protocol):
    """What admission needs of a store."""

    async def get_object(self, bucket: str, name: str, *, bytes_max: int, timeout: float = ...) -> bytes: ...

    async def put_object(self, bucket: str, name: str, data: bytes, *, timeout: float = ...) -> ObjectInfo: ...


@dataclass(frozen=True, slots=True)
class _Question:
    """What a verdict is for. Another revision of the object or other captured fields are another question."""

    record: PipelineRecord
    captured: Mapping[str, Any]
    revision: int  # of the configuration object; 0 = the watch has shown none

    def same(self, other: _Question) -> bool:
        return self.revision == other.revision and self.captured == other.captured


@dataclass(slots=True)
class _Wanted:
    """One version that is wanted, and how far it is."""

    question: _Question
    record: PipelineRecord  # the newest; may differ from the question's in fields that are not captured
    answer: Candidate | None = None
    due_s: float = 0.0  # when to look (again), on the clock; infinite = only if the question changes
    failures: int = 0
    looking: bool = False


class Admission:
    """The verdicts on all versions that are wanted. All methods but `run` and `restore` return at once."""

    def __init__(
        self,
        store: Objects,
        keys: Keys,
        linter: Linter,
        clock: Clock,
        *,
        has_bundle: Callable[[str], bool] = lambda _digest: False,
    ) -> None:
        """`has_bundle`: whether the bundles bucket is known to have a digest, so that it is not written again."""
        self._store = store
        self._keys = keys
        self._linter = linter
        self._clock = clock
        self._has_bundle = has_bundle
        self._wanted: dict[Version, _Wanted] = {}
        self._due: list[tuple[float, Version]] = []  # a heap; entries may be outdated, `_Wanted.due_s` counts
        self._objects: dict[str, ObjectInfo] = {}
        self._mark: InputMark | None = None  # of their stream when it was listed last
        self._arrivals: OrderedDict[str, int] = OrderedDict()  # object name -> revision
        self._kept: OrderedDict[tuple[str, int], Configuration] = OrderedDict()  # by object name and revision
        self._kept_bytes = 0
        self._fetching: dict[tuple[str, int], asyncio.Event] = {}
        self._changes: dict[Version, Candidate | None] = {}
        self._large = asyncio.Semaphore(LARGE_MAX)
        self._jobs = 0
        self._active = False
        self._wake = asyncio.Event()
        self.changed = asyncio.Event()  # set when `take_changes` has something; the reader clears it

    # --- what the loop tells and asks

    def want(self, wanted: Mapping[Version, PipelineRecord]) -> None:
        """All versions that are wanted and not pinned; replaces what was wanted before. Cheap if little changed."""
        for version in [known for known in self._wanted if known not in wanted]:
            del self._wanted[version]
            self._announce(version, None)
        for version, record in wanted.items():
            known = self._wanted.get(version)
            if known is None or known.record is not record:
                self._ask(version, record)

    def fold(self, item: WatchItem) -> None:
        """What the watch of the configs bucket delivered. Never raises; what cannot be read is as if not there."""
        if isinstance(item, Listing):
            before, self._mark = self._mark, InputMark(item.mark.created, item.mark.sequence)
            other = before is not None and replaced(before, self._mark)  # revisions of two streams cannot be compared
            for name in [known for known in self._objects if other or known not in item.entries]:
                self._fold_object(Entry(name, None, 0), arrived=False)
            for entry in item.entries.values():
                self._fold_object(entry, arrived=False)
        elif isinstance(item, Change):
            self._fold_object(item.entry, arrived=True)

    def candidates(self) -> Mapping[Version, Candidate]:
        """The verdicts there are. A version that is wanted and not in it is being looked at."""
        return {version: found.answer for version, found in self._wanted.items() if found.answer is not None}

    def take_changes(self) -> Mapping[Version, Candidate | None]:
        """What became of versions since the last call; None = being looked at anew, or no longer wanted."""
        changes, self._changes = self._changes, {}
        return changes

    # --- the work

    async def run(self) -> None:
        """Look at what is wanted and at what arrives, until cancelled. While it does not run, `want` and `fold` only
        remember; on a standby objects that arrive are not fetched."""
        self._active = True
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    self._wake.clear()
                    await wait_or_sleep(self._wake, self._clock, self._start_due(group))
        finally:
            self._active = False
            self._arrivals.clear()
            self._jobs = 0  # the group has ended all of them, also those that had not begun
            for version, found in self._wanted.items():
                found.looking = False
                self._schedule(version, found)

    async def restore(self, pin: Pin) -> bool:
        """Store the bundle of a pinned version again, if its configuration object still is what was pinned. False if it
        is not. Raises StoreError."""
        name = object_name(pin.pipeline, pin.version)
        try:
            configuration = await self._read(name)
        except (Missing, BadInput):
            return False
        bundle = await asyncio.to_thread(rebuild, pin, configuration)
        if bundle is None:
            return False
        await self._store.put_object(self._keys.bundles, bundle.digest, bundle.data, timeout=FETCH_TIMEOUT_S)
        return True

    def _start_due(self, group: asyncio.TaskGroup) -> float:
        """Start what is due, wanted versions first; the seconds until the next is."""
        now_s = self._clock.monotonic()
        while self._due and self._due[0][0] <= now_s and self._jobs < JOBS_MAX:
            _, version = heapq.heappop(self._due)
            found = self._wanted.get(version)
            if found is not None and not found.looking and found.due_s <= now_s:
                found.looking = True
                self._jobs += 1
                group.create_task(self._look(version, found), name=f"admission-{version[0]}-{version[1]}")
        while self._arrivals and self._jobs < JOBS_MAX:
            name, revision = self._arrivals.popitem(last=False)
            self._jobs += 1
            group.create_task(self._prepare(name, revision), name=f"admission-arrival-{name}")
        if self._jobs == JOBS_MAX or not self._due:
            return RETRY_MAX_S  # the end of a job wakes us
        return min(RETRY_MAX_S, max(0.0, self._due[0][0] - now_s))

    async def _look(self, version: Version, found: _Wanted) -> None:
        """Answer one question; if it changed meanwhile, the answer is dropped and the new one is due at once."""
        question = found.question
        try:
            async with self._room(object_name(*version)):
                answer, again_s = await self._answer(version, question, found.failures)
            if found.question is question and self._wanted.get(version) is found:
                found.due_s = self._clock.monotonic() + again_s
                found.failures = found.failures + 1 if isinstance(answer, Unavailable) else 0
                if answer != found.answer:
                    found.answer = answer
                    self._announce(version, answer)
                    log.info("admission looked at a version", version="/".join(version), verdict=_word(answer))
        finally:
            found.looking = False
            self._jobs -= 1
            self._schedule(version, found)

    def _schedule(self, version: Version, found: _Wanted) -> None:
        if not math.isinf(found.due_s):
            heapq.heappush(self._due, (found.due_s, version))
        self._wake.set()

    async def _answer(self, version: Version, question: _Question, failures: int) -> tuple[Candidate, float]:
        """(verdict, seconds after which to look again)."""
        name = object_name(*version)
        retry_s = min(RETRY_MAX_S, RETRY_FIRST_S * 2.0 ** min(failures, 10))
        try:
            configuration = await self._configuration(name, question.revision)
        except Missing:
            bucket = self._keys.configs
            reason = f"configuration object {name} is not in the bucket {bucket}: "
            return Unavailable(f"{reason}`nats object put {bucket} FILE --name {name}`", missing=True), math.inf
        except BadInput as error:
            return rejected(error), DAMAGED_RETRY_S
        except StoreError as error:
            return Unavailable(f"configuration object {name} could not be read: {error}"), retry_s
        try:
            return await self._verdict(question.record, configuration), math.inf
        except LintUnavailable as error:
            again_s = min(RETRY_LINT_MAX_S, RETRY_FIRST_S * 2.0 ** min(failures, 10))
            return Unavailable(f"configuration object {name} could not be checked: {error}"), again_s
        except StoreError as error:
            return Unavailable(f"the bundle of {name} could not be stored: {error}"), retry_s

    async def _verdict(self, record: PipelineRecord, configuration: Configuration) -> Ready | Rejected:
        derived, problems = await asyncio.to_thread(_derived, configuration, record)
        (complaints,) = await self._linter.lint([configuration], record.env)
        if derived is None:
            return Rejected((*problems, *complaints), configuration.digest)
        verdict = await asyncio.to_thread(admit, record, configuration, derived, complaints)
        if isinstance(verdict, Rejected):
            return verdict
        bundle = verdict.bundle
        if not self._has_bundle(bundle.digest):
            await self._store.put_object(self._keys.bundles, bundle.digest, bundle.data, timeout=FETCH_TIMEOUT_S)
        return Ready(verdict.pin)

    async def _prepare(self, name: str, revision: int) -> None:
        """Read and lint an object that has arrived. Trouble is not remembered: who wants the version meets it again."""
        try:
            async with self._room(name):
                configuration = await self._configuration(name, revision)
                await self._linter.lint([configuration])
        except (BadInput, StoreError, LintUnavailable) as error:
            log.info("admission could not prepare an object", object=name, why=str(error))
        finally:
            self._jobs -= 1
            self._wake.set()

    # --- configurations

    async def _configuration(self, name: str, revision: int) -> Configuration:
        """The configuration in an object, from memory if it was read at this revision. Raises Missing, BadInput,
        StoreError."""
        key = (name, revision)
        while key in self._fetching:
            await self._fetching[key].wait()
        kept = self._kept.get(key)
        if kept is not None:
            return kept
        ended = self._fetching[key] = asyncio.Event()
        try:
            configuration = await self._read(name)
            if revision:
                self._keep(name, revision, configuration)
            return configuration
        finally:
            del self._fetching[key]
            ended.set()

    async def _read(self, name: str) -> Configuration:
        info = self._objects.get(name)
        if info is not None and info.size > CONFIG_BYTES_MAX:
            raise BadInput(too_large(info.size))
        data = await self._store.get_object(
            self._keys.configs, name, bytes_max=CONFIG_BYTES_MAX, timeout=FETCH_TIMEOUT_S
        )
        return await asyncio.to_thread(read_configuration, data)

    def _room(self, name: str) -> AbstractAsyncContextManager[object]:
        """Held while an object is looked at, so that only a few large ones are in memory."""
        info = self._objects.get(name)
        return self._large if info is not None and info.size > LARGE_BYTES else nullcontext()

    def _keep(self, name: str, revision: int, configuration: Configuration) -> None:
        """Remember a configuration until records have asked for it; the oldest go when there are too many."""
        self._forget(name, revision)
        self._kept[name, revision] = configuration
        self._kept_bytes += configuration.size
        while self._kept_bytes > KEPT_BYTES_MAX or len(self._kept) > KEPT_MAX:
            self._forget(*next(iter(self._kept)))

    def _forget(self, name: str, revision: int) -> None:
        dropped = self._kept.pop((name, revision), None)
        if dropped is not None:
            self._kept_bytes -= dropped.size

    # --- what changes

    def _ask(self, version: Version, record: PipelineRecord) -> None:
        info = self._objects.get(object_name(*version))
        question = _Question(record, captured(record), info.revision if info else 0)
        known = self._wanted.get(version)
        if known is None:
            known = self._wanted[version] = _Wanted(question, record)
        elif known.question.same(question):
            known.record = record
            return
        else:
            known.record, known.question, known.due_s, known.failures = record, question, 0.0, 0
            if known.answer is not None:
                known.answer = None
                self._announce(version, None)
        self._schedule(version, known)

    def _fold_object(self, entry: Entry, *, arrived: bool) -> None:
        info = _info(entry)
        before = self._objects.get(entry.key)
        if before is not None and 0 < entry.revision <= before.revision:
            return
        if info is None:
            self._objects.pop(entry.key, None)
        else:
            self._objects[entry.key] = info
        if before is not None:
            self._forget(entry.key, before.revision)
        version = split_object_name(entry.key)
        if version is None or not (is_id(version[0]) and is_version(version[1])):
            return
        wanted = self._wanted.get(version)
        if wanted is not None:
            self._ask(version, wanted.record)
        elif arrived and info is not None and self._active:
            self._arrivals[entry.key] = info.revision
            while len(self._arrivals) > ARRIVALS_MAX:
                self._arrivals.popitem(last=False)
            self._wake.set()

    def _announce(self, version: Version, answer: Candidate | None) -> None:
        self._changes[version] = answer
        self.changed.set()


def _derived(configuration: Configuration, record: PipelineRecord) -> tuple[Derived | None, tuple[str, ...]]:
    try:
        return derive(configuration, record.env), ()
    except BadInput as error:
        return None, tuple(str(found) for found in error.problems)


def _info(entry: Entry) -> ObjectInfo | None:
    """What a watch says of an object; None = it is not there, or nobody can read what is said."""
    if entry.value is None:
        return None
    try:
        return decode(ObjectInfo, entry.value)
    except BadInput:
        return None


def _word(answer: Candidate) -> str:
    if isinstance(answer, Ready):
        return "ready"
    return "; ".join(answer.problems) if isinstance(answer, Rejected) else answer.reason
