"""The fold: everything the leader has been told, kept as one mutable `World` from which a `View` is one call.

    pipelines ─┐
    configs   ─┤  fold_listing
    operator  ─┼─ fold_change ──> World ── view() ──> View        take_scope() ──> Scope
    reports   ─┤                    ^
    control   ─┘                    ├── fold_hosts      heartbeats with their silence, once per pulse
                                    ├── fold_candidate  verdicts of admission
                                    └── fold_plan       what this leader committed, before its echo

The border. Documents are parsed here and nowhere behind it. A document that does not parse changes nothing and is
remembered in `problems`; no document whatsoever makes a fold raise.

Order. Each key remembers the revision it is at; an older or equal one changes nothing. So a commit may be folded under
its own sequence at once, and its echo, a repeated message or a listing that is older than a live change do no harm.

Gone without a marker. A key that a complete listing neither has nor knows to be deleted is *held*: its value stays, and
for a pipeline the view says so, until a second listing agrees.

Cost. A change costs what it touches; `view()` copies nothing. Therefore nothing may be folded while a plan runs on a
view: the loop folds between passes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from enum import StrEnum

from scheduler.core import blast
from scheduler.core.adoption import REPORTED_S, Running
from scheduler.core.blast import HOSTS, Kept
from scheduler.core.candidates import Candidate
from scheduler.core.indexes import changed_pipelines, index_places, is_waiting, load_of, pinned
from scheduler.core.intents import Intents, names_itself
from scheduler.core.liveness import Liveness, grade
from scheduler.core.view import GoneView, HostView, Load, Place, Plan, Policy, RecordView, Scope, View
from shared.documents import (
    Assignment,
    ConfirmIntent,
    Heartbeat,
    InputMark,
    Journal,
    Pin,
    Report,
    Status,
    decode,
)
from shared.errors import BadInput, problem
from shared.ids import parse_execution
from shared.keys import JOURNAL, LEASE, STORE_INTENT, is_key, split_object_name, split_version_key, status_key
from shared.record import captured, parse_record
from shared.store import Change, Entry, Listing, ObjectInfo

PROBLEM_CHARS_MAX = 500  # kept of one document's problem; there is at most one per key
PROBLEMS_MAX = 10_000  # kept at once
_NO_KEY = "this is no key that a key-value bucket can have: remove it with `nats stream purge --subject`"


class Source(StrEnum):
    """The buckets that are folded by key."""

    PIPELINES = "pipelines"
    CONFIGS = "configs"
    OPERATOR = "operator"
    REPORTS = "reports"
    CONTROL = "control"


BLAST = frozenset({Source.PIPELINES, Source.OPERATOR})  # what they no longer say would remove or move what runs
_LOST = "{} of {} records are gone without having been deleted, as after a purge"


class World:
    """What is known now. Not thread-safe; see the module for what each method promises."""

    def __init__(self, policy: Policy | None = None) -> None:
        self._policy = policy or Policy()
        self.problems: dict[tuple[Source, str], str] = {}
        self.journal: Journal | None = None
        self.journal_revision = 0
        self.candidates: dict[tuple[str, str], Candidate] = {}
        self.kept: dict[Source, Kept] = {}  # of users' streams that are not what they were: see `blast`
        self._revisions: dict[Source, dict[str, int]] = {source: {} for source in Source}
        self._live: dict[Source, set[str]] = {source: set() for source in Source}  # keys that have a value
        self._held: dict[Source, set[str]] = {source: set() for source in Source}
        self._inputs: dict[str, InputMark] = {}
        self._records: dict[str, RecordView] = {}
        self._config_digests: dict[tuple[str, str], str] = {}
        self._pins: dict[tuple[str, str], Pin] = {}
        self._pins_of: dict[str, frozenset[str]] = {}
        self._hosts: dict[str, HostView] = {}
        self._gone: dict[str, GoneView] = {}
        self._silent_exclusive_s = 0.0
        self._term_age_s = 0.0
        self._intents = Intents()
        self._assignments: dict[str, Assignment] = {}
        self._places: dict[str, tuple[Place, ...]] = {}
        self._loads: dict[str, Load] = {}
        self._reports: dict[str, Report] = {}
        self._statuses: dict[str, Status] = {}
        self._waiting: set[str] = set()
        self._damaged: set[str] = set()
        self.outage: Kept | None = None  # hosts that nothing is moved off; without `pending`: an operator confirmed it
        self._fell: dict[str, float] = {}
        self._foreign: set[str] = set()  # hosts whose report is of another store
        self._strangers: set[str] = set()  # hosts without a document that obey another store
        self._unanswered: set[str] = set()
        self._found: dict[Running, Pin | None] = {}
        self._dirty_pipelines: set[str] = set()
        self._dirty_hosts: set[str] = set()

    def view(self) -> View:
        """Everything, by reference. Valid until the next fold. Before the first journal there is nothing to plan."""
        assert self.journal is not None, "no journal was folded yet"
        return View(
            store_id=self.journal.store_id,
            term=self.term,
            plan=self.journal.plan,
            records=self._records,
            candidates=self.candidates,
            config_digests=self._config_digests,
            pins=self._pins,
            pins_of=self._pins_of,
            hosts=self._hosts,
            host_intents=self._intents.hosts,
            restart_intents=self._intents.restarts,
            store_intent=self._intents.store,
            assignments=self._assignments,
            places=self._places,
            reports=self._reports,
            statuses=self._statuses,
            inputs=self._inputs,
            loads=self._loads,
            waiting=self._waiting,
            damaged=self._damaged,
            gone=self._gone,
            silent_exclusive_s=self._silent_exclusive_s,
            term_age_s=self._term_age_s,
            accepted=self.journal.accepted,
            unanswered=self._unanswered,
            found=self._found,
            outage=frozenset() if self.outage is None else self.outage.pending.keys(),
            serials=self._serials(),
        )

    def _serials(self) -> int:
        """The highest serial that is reported under another store."""
        strangers = [self._reports[host] for host in sorted(self._foreign) if host in self._reports]
        return max((parse_execution(seen.execution).serial for one in strangers for seen in one.executions), default=0)

    def _fall(self, hosts: Mapping[str, HostView], now_s: float) -> None:
        """Note who fell silent when, in pulses of this term, and whether those were too many at once."""
        edge_s = self._policy.silent_shareable_s / 2  # before anything is moved off the first of them
        silent = {host for host, one in hosts.items() if one.silence_s >= edge_s and one.heartbeat.dead is None}
        self._fell = {host: self._fell.get(host, now_s) for host in silent}
        has = self._assignments
        loaded = {host: at_s for host, at_s in self._fell.items() if host in has and has[host].executions}
        before = self.outage
        together = blast.fell_together(loaded, len(hosts) - len(silent), self._policy.silent_exclusive_s)
        if not together:
            self.outage = None
        elif before is None:
            mark = InputMark(f"{now_s:g}", 0)  # tells this outage from others of the same commit
            reason = f"more than half of the hosts, {len(together)} of {len(hosts)}, fell silent at once"
            self.outage = Kept(reason, mark, mark, {host: Entry(host, None, 0) for host in sorted(together)})
        elif before.pending:
            before.pending = {host: Entry(host, None, 0) for host in sorted(together)}
        if (before is None) is not (self.outage is None):
            self._dirty_hosts.update(self._assignments)

    def all_kept(self) -> dict[str, Kept]:
        """What goes on as it was, by input; an outage of hosts is one of theirs."""
        found = {source.value: kept for source, kept in self.kept.items()}
        outage = self.outage
        return found if outage is None or not outage.pending else found | {HOSTS: outage}

    def go_on(self) -> None:
        """An operator has said that the hosts that fell silent at once are gone: they count as any silent host."""
        assert self.outage is not None, "confirmed is what is held"
        self.outage.pending = {}
        self._dirty_hosts.update(self._assignments)

    def _strange(self, beat: Heartbeat) -> bool:
        return self.journal is not None and beat.store_id not in ("", self.journal.store_id)

    def ahead(self, store_id: str, term: int, takeover: int) -> str:
        """A host that has applied a plan of this store which cannot have been, "" = none: the control stream went back.

        `takeover`: the plan in which `term` began. Every plan of an earlier term is below it; what a host has applied
        of another one was given out by a history that is lost, also when new plans have reached its number by now.
        """
        for host, report in sorted(self._reports.items()):
            if report.store_id == store_id and report.term != term and report.plan >= takeover:
                return host
        return ""

    def fold_found(self, found: Mapping[Running, Pin | None]) -> None:
        """What runs under another store, as its bundles say."""
        if found:
            self._found.update(found)
            self._dirty_hosts |= self._unanswered

    @property
    def term(self) -> int:
        """The term of the last journal write; 0 in the document stands for its own revision."""
        return 0 if self.journal is None else self.journal.term or self.journal_revision

    def take_scope(self) -> Scope:
        """What changed since the last call. Taken is taken: a pass that fails hands it back with `mark`."""
        scope = Scope(frozenset(self._dirty_pipelines), frozenset(self._dirty_hosts))
        self._dirty_pipelines.clear()
        self._dirty_hosts.clear()
        return scope

    def mark(self, scope: Scope) -> None:
        """Put a scope (back) on the list: after a failed pass, or the `rest` of a plan."""
        self._dirty_pipelines |= scope.pipelines
        self._dirty_hosts |= scope.hosts

    def fold_listing(self, source: Source, listing: Listing) -> None:
        """Replace what is known of a bucket by a complete listing, as far as the listing is newer."""
        first = listing.entries.get(JOURNAL) if source is Source.CONTROL else None
        for entry in (*([] if first is None else [first]), *listing.entries.values()):
            self._fold(source, entry)
        for key, revision in listing.deleted.items():
            self._fold(source, Entry(key, None, revision))
        gone = {key for key in self._live[source] if key not in listing.entries and key not in listing.deleted}
        gone -= self._keep_lost(source, gone, listing)
        twice = self._held[source] & gone
        for key in sorted(self._held[source] ^ gone):
            self._hold(source, key, key in gone)
        self._held[source] = gone - twice
        self._live[source] -= twice
        for key in sorted(twice):
            self._apply(source, Entry(key, None, self._revisions[source].get(key, 0)))
        self._inputs[source.value] = InputMark(listing.mark.created, listing.mark.sequence)

    def fold_replaced(self, source: Source, listing: Listing, trusted: InputMark, reason: str) -> None:
        """As `fold_listing`, of a stream that is not the one whose revisions are known, for `reason`.

        Of PIPELINES and OPERATOR, what is not there as it was known is kept. A new record in it is followed; an intent
        is not, for it may have been taken back since.
        """
        known = self.kept.pop(source, None)
        before, self._revisions[source] = self._live[source], {}
        self._live[source], self._held[source] = set(), set()
        mark = InputMark(listing.mark.created, listing.mark.sequence)
        self._inputs[source.value] = mark
        pending: dict[str, Entry] = {}
        for key in sorted(before):
            there = listing.entries.get(key)
            if there is None:
                there = Entry(key, None, listing.deleted.get(key, 0))
            if source in BLAST and not names_itself(key) and not self._says(source, there):
                pending[key] = there
                self._revisions[source][key] = there.revision
                self._live[source].add(key)
            elif source is Source.REPORTS:
                self._live[source].add(key)  # it was true when it was said; the agent says it again soon
            elif there.value is None:
                self._apply(source, there)
        for key, entry in listing.entries.items():
            if source is Source.OPERATOR and key not in before and not names_itself(key):
                pending[key] = entry  # of a backup, perhaps: an intent that was taken back since
                self._revisions[source][key] = entry.revision
                self._live[source].add(key)
            else:
                self._fold(source, entry)
        for key, revision in listing.deleted.items():
            self._revisions[source][key] = revision
        if pending:
            self._keep(source, Kept(reason, trusted if known is None else known.trusted, mark, pending))

    def doubt(self, source: Source, trusted: InputMark, mark: InputMark, reason: str) -> None:
        """Keep what the leader's own documents know and a stream does not say as it was decided: for an instance that
        never saw the stream before its accident. `mark`: what is written above it is followed."""
        if source in self.kept:
            return  # this instance saw it happen, so it knows better
        pending = {}
        if source is Source.PIPELINES:
            for pipeline in sorted(self._footprints()):
                known, revision = self._records.get(pipeline), self._revisions[source].get(pipeline, 0)
                if revision > mark.sequence or (known is not None and self._decided(pipeline, known)):
                    continue
                pending[pipeline] = Entry(pipeline, None, revision)
                self._records[pipeline] = replace(known or RecordView(None, 0), held=True)
        elif source is Source.OPERATOR:
            for entry in self._intents.moving():
                revision = self._revisions[source][entry.key]
                if revision <= mark.sequence:
                    pending[entry.key] = Entry(entry.key, entry.value, revision)
                    self._apply(source, Entry(entry.key, None, revision))
        if pending:
            self._live[source].update(pending)
            self._keep(source, Kept(reason, trusted, mark, pending))

    def miss(self) -> None:
        """Once, when everything was listed: pipelines that this leader's documents know, of which the users' stream has
        neither a record nor a marker, are gone in a first list."""
        known, revisions = self._footprints(), self._revisions[Source.PIPELINES]
        gone = {pipeline for pipeline in known if pipeline not in self._records and pipeline not in revisions}
        for pipeline in sorted(gone):
            self._records[pipeline] = RecordView(None, 0, held=True)
            self._dirty_pipelines.add(pipeline)
        self._live[Source.PIPELINES] |= gone
        self._held[Source.PIPELINES] |= gone
        if blast.too_many(len(gone), len(known)):
            mark = self._inputs[Source.PIPELINES.value]
            pending = {pipeline: Entry(pipeline, None, 0) for pipeline in sorted(gone)}
            self._held[Source.PIPELINES] -= gone
            self._keep(Source.PIPELINES, Kept(_LOST.format(len(gone), len(known)), mark, mark, pending))

    def release(self, source: Source) -> None:
        """An operator has said that a stream is right as it is: what was kept follows it."""
        kept = self.kept.pop(source)
        for key, entry in kept.pending.items():
            known = self._records.get(key) if source is Source.PIPELINES else None
            if known is not None and known.held and known.good is not None:
                self._records[key] = replace(known, held=False, kept="")
                self._dirty_pipelines.add(key)
                continue
            if entry.value is None:
                self._live[source].discard(key)
            self._apply(source, entry)

    @property
    def confirms(self) -> Mapping[str, ConfirmIntent]:
        """Operators' words on holds, by input."""
        return self._intents.confirms

    def fold_change(self, source: Source, change: Change) -> None:
        """One write or deletion, live."""
        self._fold(source, change.entry)

    def fold_hosts(
        self, hosts: Mapping[str, HostView], term_age_s: float, gone: Mapping[str, GoneView] | None = None
    ) -> None:
        """All hosts with their silence, as the last pulse saw them, and those whose key is `gone`. Replaces what was
        known.

        A host is put into the scope when its word changes (session, capacity, labels, drivers ...), when its silence
        crosses a threshold, or while its new session waits for an answer.
        """
        before_age = self._term_age_s
        before = {host: self._level(host) for host in self._hosts.keys() | self._assignments.keys()}
        were, self._hosts, self._gone, self._term_age_s = self._hosts, dict(hosts), dict(gone or {}), term_age_s
        for view in hosts.values():
            self._silent_exclusive_s = max(self._silent_exclusive_s, view.silent_exclusive_s or 0.0)
        self._fall(hosts, term_age_s)
        self._unanswered = (hosts.keys() | self._reports.keys()) - self._assignments.keys()
        strangers = {host for host in self._unanswered if host in hosts and self._strange(hosts[host].heartbeat)}
        if self._strangers - strangers or before_age < REPORTED_S <= term_age_s:
            self._dirty_pipelines.update(self._records)  # what waited for them need not wait
        self._strangers = strangers
        for host, now in hosts.items():
            was = were.get(host)
            assignment = self._assignments.get(host)
            pending = assignment is None or assignment.session != now.heartbeat.session
            if pending or was is None or _differ(was, now):
                self._dirty_hosts.add(host)
        for host, level in before.items():
            if (host in were and host not in hosts) or self._level(host) is not level:
                self._dirty_hosts.add(host)

    def fold_candidate(self, pipeline: str, version: str, candidate: Candidate | None) -> None:
        """A verdict of admission; None = being looked at (anew), or no longer wanted."""
        known = self.candidates.get((pipeline, version))
        if candidate is None:
            self.candidates.pop((pipeline, version), None)
        else:
            self.candidates[pipeline, version] = candidate
        if known != candidate:
            self._dirty_pipelines.add(pipeline)

    def fold_journal(self, journal: Journal, revision: int) -> None:
        """A journal write of this leader, under its sequence."""
        if self._newer(Source.CONTROL, JOURNAL, revision, True):
            self.journal, self.journal_revision = journal, revision

    def fold_plan(self, plan: Plan, first_revision: int) -> None:
        """What this leader committed: `plan.documents()` in that order, at consecutive revisions from `first_revision`.

        `plan.then` are commits of their own. Nothing goes into the scope: planning on a plan's result finds nothing.
        """
        for offset, (key, document) in enumerate(plan.documents()):
            if self._newer(Source.CONTROL, key, first_revision + offset, document is not None):
                self._store(key, document)

    # --- one entry

    def _fold(self, source: Source, entry: Entry) -> None:
        # What is decided about a key is written under keys made of it. Nothing can be written about this one.
        if source is not Source.CONFIGS and not is_key(status_key(entry.key)):
            self._keep_problem(source, entry.key, _NO_KEY if entry.value is not None else "")
            return
        if self._newer(source, entry.key, entry.revision, entry.value is not None):
            self._apply(source, entry)

    def _newer(self, source: Source, key: str, revision: int, there: bool) -> bool:
        if revision <= self._revisions[source].get(key, 0):
            return False
        self._revisions[source][key] = revision
        if source is Source.CONTROL:
            self._damaged.discard(key)
        (self._live[source].add if there else self._live[source].discard)(key)
        if key in self._held[source]:
            self._held[source].discard(key)
            self._hold(source, key, False)
        kept = self.kept.get(source)
        if kept is not None and kept.pending.pop(key, None) is not None and not kept.pending:
            del self.kept[source]  # nothing is missing any more
        return True

    # --- what is kept

    def _keep(self, source: Source, kept: Kept) -> None:
        self.kept[source] = kept
        if source is Source.PIPELINES:
            for pipeline in kept.pending:
                text = blast.sentence(source.value, kept.reason)
                self._records[pipeline] = replace(self._records[pipeline], kept=text)
                self._dirty_pipelines.add(pipeline)

    def _keep_lost(self, source: Source, gone: set[str], listing: Listing) -> set[str]:
        """Of the keys that are gone without a marker those that are kept, instead of being removed in the end."""
        kept = self.kept.get(source)
        if source not in BLAST:
            return set()
        if kept is None:
            live = self._live[source]
            if not blast.too_many(len(gone), len(live)):
                return set()
            mark = InputMark(listing.mark.created, listing.mark.sequence)
            kept = Kept(_LOST.format(len(gone), len(live)), self._inputs.get(source.value, mark), mark)
        fresh = sorted(gone - kept.pending.keys())
        kept.pending.update({key: Entry(key, None, self._revisions[source].get(key, 0)) for key in fresh})
        if fresh:
            self._keep(source, kept)
        return gone

    def _says(self, source: Source, entry: Entry) -> bool:
        """Whether a stream says of a key what is in force."""
        if source is Source.OPERATOR:
            return self._intents.says(entry)
        known = self._records.get(entry.key)
        if entry.value is None or known is None:
            return entry.value is None and known is None
        try:
            return parse_record(entry.key, entry.value) == known.good
        except BadInput:
            return bool(known.problems)

    def _footprints(self) -> set[str]:
        """The pipelines of which the leader's documents, or hosts that ran them for a lost store, know something."""
        strangers = [self._reports[host] for host in self._foreign if host in self._reports]
        run = {seen.pipeline for report in strangers for seen in report.executions}
        return run | self._places.keys() | self._statuses.keys() | self._pins_of.keys()

    def _decided(self, pipeline: str, known: RecordView) -> bool:
        return known.good is not None and blast.agrees(known.good, self._statuses.get(pipeline))

    def _hold(self, source: Source, key: str, held: bool) -> None:
        record = self._records.get(key)
        if source is Source.PIPELINES and record is not None and record.held != held:
            self._records[key] = replace(record, held=held)
            self._dirty_pipelines.add(key)

    def _apply(self, source: Source, entry: Entry) -> None:
        self._keep_problem(source, entry.key, "")
        try:
            match source:
                case Source.PIPELINES:
                    self._apply_record(entry)
                case Source.CONFIGS:
                    self._apply_config(entry)
                case Source.OPERATOR:
                    self._apply_intent(entry)
                case Source.REPORTS:
                    self._apply_report(entry)
                case Source.CONTROL:
                    self._apply_control(entry)
        except BadInput as error:
            self._keep_problem(source, entry.key, str(error))
            if source is Source.CONTROL:
                self._damage(entry.key)

    def _damage(self, key: str) -> None:
        """Somebody has written over a document of the leader. The one that is known stays, and is written again."""
        kind, _, name = key.partition(".")
        if kind == "assign" and name in self._assignments:
            self._dirty_hosts.add(name)
        elif kind == "status" and name in self._statuses:
            self._dirty_pipelines.add(name)
        elif kind == "version" and "." in name and split_version_key(key) in self._pins:
            self._dirty_pipelines.add(name.partition(".")[0])
        else:
            return
        self._damaged.add(key)

    def _keep_problem(self, source: Source, key: str, words: str) -> None:
        """Remember what is wrong under a key, "" = nothing. Of what a stranger writes only so much is kept."""
        name = (source, key[:PROBLEM_CHARS_MAX])
        if not words:
            self.problems.pop(name, None)
        elif name in self.problems or len(self.problems) < PROBLEMS_MAX:
            self.problems[name] = words[:PROBLEM_CHARS_MAX]

    def _apply_record(self, entry: Entry) -> None:
        self._dirty_pipelines.add(entry.key)
        if entry.value is None:
            self._records.pop(entry.key, None)
            return
        try:
            good = parse_record(entry.key, entry.value)
            self._records[entry.key] = RecordView(good, entry.revision, captured=captured(good))
        except BadInput as error:
            last = self._records.get(entry.key)
            problems = tuple(str(found)[:PROBLEM_CHARS_MAX] for found in error.problems)
            good_yet, fields = (None, None) if last is None else (last.good, last.captured)
            self._records[entry.key] = RecordView(good_yet, entry.revision, problems, captured=fields)
            raise

    def _apply_config(self, entry: Entry) -> None:
        name = split_object_name(entry.key)
        if name is None:
            return  # not a configuration: its name has no version
        self._dirty_pipelines.add(name[0])
        if entry.value is None:
            self._config_digests.pop(name, None)
        else:
            self._config_digests[name] = decode(ObjectInfo, entry.value).digest

    def _apply_intent(self, entry: Entry) -> None:
        kind, _, name = entry.key.partition(".")
        self._intents.apply(entry)
        if kind == "host":
            self._dirty_hosts.add(name)
        elif kind == "restart":
            self._dirty_pipelines.add(name)
        elif entry.key == STORE_INTENT:
            self._dirty_hosts.update(self._hosts)

    def _apply_report(self, entry: Entry) -> None:
        old = self._reports.get(entry.key)
        new = None if entry.value is None else decode(Report, entry.value)
        if new is not None:
            _same("host", new.host, entry.key)
        self._dirty_pipelines |= changed_pipelines(self._assignments.get(entry.key), old, new)
        if new is None:
            self._reports.pop(entry.key, None)
        else:
            self._reports[entry.key] = new
            foreign = self.journal is None or new.store_id != self.journal.store_id
            (self._foreign.add if foreign else self._foreign.discard)(entry.key)
            if entry.key not in self._assignments:
                self._unanswered.add(entry.key)
                self._dirty_hosts.add(entry.key)
                if foreign:
                    self._dirty_pipelines.update(self._records)  # they may have waited for this word

    def _apply_control(self, entry: Entry) -> None:
        kind, _, name = entry.key.partition(".")
        if entry.key == JOURNAL and entry.value is not None:
            known, now = self.journal, decode(Journal, entry.value)
            self.journal, self.journal_revision = now, entry.revision
            if known is None or known.store_id != now.store_id:
                self._forget_others(now.store_id)
        elif kind == "assign":
            document = None if entry.value is None else decode(Assignment, entry.value)
            if document is not None:
                _same("host", document.host, name)
                document = document if self._ours(document) else None
            changed = self._store(entry.key, document)
            self._dirty_pipelines |= changed
            self._dirty_hosts.add(name)
        elif kind == "version" and "." in name:
            pin = None if entry.value is None else decode(Pin, entry.value)
            if pin is not None:
                _same("pipeline and version", f"{pin.pipeline}.{pin.version}", name)
            self._store(entry.key, pin)
            self._dirty_pipelines.add(name.partition(".")[0])
        elif kind == "status":
            status = None if entry.value is None else decode(Status, entry.value)
            if status is not None:
                _same("pipeline", status.pipeline, name)
                status = status if self._ours(status) else None
            self._store(entry.key, status)
            self._dirty_pipelines.add(name)
        elif entry.key not in (JOURNAL, LEASE):
            self._keep_problem(Source.CONTROL, entry.key, "no document of Shoal has this key")

    def _forget_others(self, store_id: str) -> None:
        """What another store decided is no decision of this one. Its pins still say what its versions are."""
        self._foreign = {host for host, report in self._reports.items() if report.store_id != store_id}
        self._damaged.clear()
        for host in [host for host, one in self._assignments.items() if one.store_id != store_id]:
            self._store_assignment(host, None)
        for pipeline in [pipeline for pipeline, one in self._statuses.items() if one.store_id != store_id]:
            self._store(status_key(pipeline), None)

    def _ours(self, document: Assignment | Status) -> bool:
        return self.journal is None or document.store_id == self.journal.store_id

    def _store(self, key: str, document: Assignment | Pin | Status | None) -> set[str]:
        """Keep one document of the leader and its indexes; the pipelines whose places it changed."""
        kind, _, name = key.partition(".")
        if kind == "assign":
            assert document is None or isinstance(document, Assignment)
            return self._store_assignment(name, document)
        if kind == "version":
            assert document is None or isinstance(document, Pin)
            pipeline, version = split_version_key(key)
            self._pins_of[pipeline] = pinned(self._pins_of.get(pipeline, frozenset()), version, document is not None)
            if not self._pins_of[pipeline]:
                del self._pins_of[pipeline]
            if document is None:
                self._pins.pop((pipeline, version), None)
            else:
                self._pins[pipeline, version] = document
                self.candidates.pop((pipeline, version), None)
            return set()
        assert document is None or isinstance(document, Status)
        if document is None:
            self._statuses.pop(name, None)
        else:
            self._statuses[name] = document
        (self._waiting.add if is_waiting(document) else self._waiting.discard)(name)
        return set()

    def _store_assignment(self, host: str, document: Assignment | None) -> set[str]:
        changed = index_places(self._places, host, self._assignments.get(host), document)
        if document is None:
            self._assignments.pop(host, None)
            self._loads.pop(host, None)
        else:
            self._assignments[host] = document
            self._loads[host] = load_of(document)
        return changed

    def _level(self, host: str) -> Liveness:
        """How silent a host is by what is folded now."""
        known, gone = self._hosts.get(host), self._gone.get(host)
        fallback_s = max(self._silent_exclusive_s, self._policy.silent_exclusive_s)
        if known is not None:
            exclusive_s = fallback_s if known.silent_exclusive_s is None else known.silent_exclusive_s
            return grade(known.silence_s, self._policy, exclusive_s)
        return grade(self._term_age_s if gone is None else gone.silence_s, self._policy, fallback_s)


def _differ(was: HostView, now: HostView) -> bool:
    return was.revision != now.revision and _word(was.heartbeat) != _word(now.heartbeat)


def _same(field: str, named: str, key: str) -> None:
    """BadInput unless a document speaks of what its key names."""
    if named != key:
        raise BadInput(problem(field, named, f"it stands under '{key[:PROBLEM_CHARS_MAX]}'"))


def _word(heartbeat: Heartbeat) -> tuple[object, ...]:
    """What a heartbeat says beyond "I live"."""
    beat = heartbeat
    return beat.session, beat.store_id, beat.dead, beat.cpu, beat.memory_bytes, beat.labels, beat.drivers, beat.volumes
