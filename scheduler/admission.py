"""Admission: from "this version is wanted" to a verdict, kept up to date until somebody pins the version.

    configs watch ── fold() ──┐
                              ├──> look: fetch ─> read ─> derive, lint ─> admit ─> put bundle ──> candidates()
    planner ──────── want() ──┘

Level, not edge: what is looked at follows from (which versions are wanted, with which captured fields, which revision
their objects have). A verdict counts only for exactly these; when one of them changes the version is looked at anew.
While this instance leads, an object that arrives is fetched and linted at once, before a record asks for it: publishing
is then a matter of making the bundle.

Everything is bounded: jobs at once, arrivals remembered, and see `configurations`. Whatever blocks or
computes for long runs in a thread. Deciding is done in `core.candidates`.
"""

from __future__ import annotations

import asyncio
import heapq
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import structlog

from scheduler.configurations import FETCH_TIMEOUT_S, Configurations, Objects
from scheduler.core.candidates import Candidate, Ready, Rejected, Unavailable, admit, rebuild, rejected
from scheduler.lint import Linter, LintUnavailable
from shared.clock import Clock
from shared.configuration import Configuration, Derived, derive
from shared.documents import Pin
from shared.errors import BadInput, Missing, StoreError
from shared.ids import is_id, is_version
from shared.keys import Keys, object_name, split_object_name
from shared.record import PipelineRecord, captured
from shared.store import Change, Entry, Listing, WatchItem

JOBS_MAX = 64  # looked at at once; most of them wait for a call of lint that they share
ARRIVALS_MAX = 1000  # objects that wait to be looked at before a record asks; the newest win
RETRY_FIRST_S = 0.5  # after trouble with the store or lint, doubled each time
RETRY_MAX_S = 30.0
RETRY_LINT_MAX_S = 120.0  # each try of a configuration that keeps Bento busy costs a core for lint's whole time-out
DAMAGED_RETRY_S = 60.0  # an object with missing chunks: the store may be repaired without the object changing

Version = tuple[str, str]  # (pipeline, version)

log = structlog.get_logger()


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
        self._configurations = Configurations(store, keys)
        self._arrivals: OrderedDict[str, int] = OrderedDict()  # object name -> revision
        self._changes: dict[Version, Candidate | None] = {}
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
            for name in self._configurations.lost(item):
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
                    await self._clock.wait(self._wake, self._start_due(group))
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
            configuration = await self._configurations.read(name)
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
            async with self._configurations.room(object_name(*version)):
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
            configuration = await self._configurations.get(name, question.revision)
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
            async with self._configurations.room(name):
                configuration = await self._configurations.get(name, revision)
                await self._linter.lint([configuration])
        except (BadInput, StoreError, LintUnavailable) as error:
            log.info("admission could not prepare an object", object=name, why=str(error))
        finally:
            self._jobs -= 1
            self._wake.set()

    # --- what changes

    def _ask(self, version: Version, record: PipelineRecord) -> None:
        question = _Question(record, captured(record), self._configurations.revision(object_name(*version)))
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
        if not self._configurations.learn(entry):
            return
        version = split_object_name(entry.key)
        if version is None or not (is_id(version[0]) and is_version(version[1])):
            return
        wanted = self._wanted.get(version)
        if wanted is not None:
            self._ask(version, wanted.record)
        elif arrived and self._active and (revision := self._configurations.revision(entry.key)):
            self._arrivals[entry.key] = revision
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


def _word(answer: Candidate) -> str:
    if isinstance(answer, Ready):
        return "ready"
    return "; ".join(answer.problems) if isinstance(answer, Rejected) else answer.reason
