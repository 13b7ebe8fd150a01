"""The fold: everything the leader has been told, kept as one mutable `World` from which a `View` is one call.

    pipelines ─┐
    configs   ─┤  fold_listing
    operator  ─┼─ fold_change ──> World ── view() ──> View        take_scope() ──> Scope
    reports   ─┤                    ^
    control   ─┘                    ├── fold_hosts      heartbeats with their silence, once per pulse
                                    ├── fold_candidate  verdicts of admission
                                    └── fold_plan       what this leader committed, before its echo

Who owns what. `World` is the face of these, and has nothing of its own but how far each input was read:

    border      where the keys of each bucket stand, and problems
    records     what users want             versions    configurations, verdicts of admission, pins
    intents     what operators want         decisions   assignments, statuses and the journal, with their indexes
    roster      hosts, reports, outages     losses      what goes on as it was after an accident to a stream
    changed     what the next plan must look at

The border. Documents are parsed there and nowhere behind it. A document that does not parse changes nothing and is
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

from scheduler.core.adoption import Running
from scheduler.core.blast import HOSTS, Kept
from scheduler.core.border import Border
from scheduler.core.candidates import Candidate
from scheduler.core.changed import Changed
from scheduler.core.decisions import Decisions
from scheduler.core.intents import Intents
from scheduler.core.losses import Losses
from scheduler.core.records import Records
from scheduler.core.roster import Roster
from scheduler.core.sources import BLAST, Source
from scheduler.core.versions import Versions
from scheduler.core.view import GoneView, HostView, Plan, Policy, Scope, View
from shared.documents import InputMark, Journal, Pin
from shared.intents import ConfirmIntent
from shared.keys import JOURNAL
from shared.store import Change, Entry, Listing

__all__ = ["BLAST", "Source", "World"]


class World:
    """What is known now. Not thread-safe; see the module for what each method promises."""

    def __init__(self, policy: Policy | None = None) -> None:
        self._changed = Changed()
        self._records = Records(self._changed)
        self._versions = Versions(self._changed)
        self._intents = Intents()
        self._decisions = Decisions(self._versions, self._changed)
        self._roster = Roster(policy or Policy(), self._decisions, self._records, self._changed)
        parts = (self._records, self._versions, self._intents, self._decisions, self._roster)
        self._border = Border(*parts, self._changed)
        self._losses = Losses(self._border, *parts)
        self._inputs: dict[str, InputMark] = {}

    def view(self) -> View:
        """Everything, by reference. Valid until the next fold. Before the first journal there is nothing to plan."""
        decisions, versions, roster, intents = self._decisions, self._versions, self._roster, self._intents
        assert decisions.journal is not None, "no journal was folded yet"
        return View(
            store_id=decisions.journal.store_id,
            term=decisions.term,
            plan=decisions.journal.plan,
            records=self._records.views,
            candidates=versions.candidates,
            config_digests=versions.config_digests,
            pins=versions.pins,
            pins_of=versions.pins_of,
            hosts=roster.hosts,
            host_intents=intents.hosts,
            restart_intents=intents.restarts,
            store_intent=intents.store,
            assignments=decisions.assignments,
            places=decisions.places,
            reports=roster.reports,
            statuses=decisions.statuses,
            inputs=self._inputs,
            loads=decisions.loads,
            waiting=decisions.waiting,
            damaged=decisions.damaged,
            gone=roster.gone,
            silent_exclusive_s=roster.silent_exclusive_s,
            term_age_s=roster.term_age_s,
            accepted=decisions.journal.accepted,
            unanswered=roster.unanswered,
            straying=roster.straying,
            found=roster.found,
            outage=frozenset() if roster.outage is None else roster.outage.pending.keys(),
            serials=roster.serials(),
        )

    # --- what is known besides the view

    @property
    def journal(self) -> Journal | None:
        """As it was folded last; None: not yet."""
        return self._decisions.journal

    @property
    def journal_revision(self) -> int:
        """The sequence of `journal`; 0 = none yet."""
        return self._decisions.journal_revision

    @property
    def term(self) -> int:
        """The term of the last journal write; 0 in the document stands for its own revision."""
        return self._decisions.term

    @property
    def problems(self) -> Mapping[tuple[Source, str], str]:
        """What is wrong with documents that do not parse, by source and key."""
        return self._border.problems.by_key

    @property
    def confirms(self) -> Mapping[str, ConfirmIntent]:
        """Operators' words on holds, by input."""
        return self._intents.confirms

    @property
    def kept(self) -> dict[Source, Kept]:
        """Of users' streams that are not what they were: see `blast`."""
        return {source: bucket.kept for source, bucket in self._border.buckets.items() if bucket.kept is not None}

    @property
    def outage(self) -> Kept | None:
        """Hosts that nothing is moved off."""
        return self._roster.outage

    def all_kept(self) -> dict[str, Kept]:
        """What goes on as it was, by input; an outage of hosts is one of theirs."""
        found = {source.value: kept for source, kept in self.kept.items()}
        outage = self.outage
        return found if outage is None else found | {HOSTS: outage}

    def ahead(self, store_id: str, term: int, takeover: int) -> str:
        """A host that has applied a plan of this store which cannot have been, "" = none: the control stream went back.

        `takeover`: the plan in which `term` began. Every plan of an earlier term is below it; what a host has applied
        of another one was given out by a history that is lost, also when new plans have reached its number by now.
        """
        return self._roster.ahead(store_id, term, takeover)

    # --- what changed

    def take_scope(self) -> Scope:
        """What changed since the last call. Taken is taken: a pass that fails hands it back with `mark`."""
        return self._changed.take()

    def mark(self, scope: Scope) -> None:
        """Put a scope (back) on the list: after a failed pass, or the `rest` of a plan."""
        self._changed.mark(scope)

    # --- what others say

    def fold_listing(self, source: Source, listing: Listing) -> None:
        """Replace what is known of a bucket by a complete listing, as far as the listing is newer."""
        first = listing.entries.get(JOURNAL) if source is Source.CONTROL else None
        for entry in (*([] if first is None else [first]), *listing.entries.values()):
            self._border.fold(source, entry)
        for key, revision in listing.deleted.items():
            self._border.fold(source, Entry(key, None, revision))
        mark = InputMark(listing.mark.created, listing.mark.sequence)
        self._losses.missing(source, listing, self._inputs.get(source.value, mark))
        self._inputs[source.value] = mark

    def fold_replaced(self, source: Source, listing: Listing, trusted: InputMark, reason: str) -> None:
        """As `fold_listing`, of a stream that is not the one whose revisions are known, for `reason`.

        Of PIPELINES and OPERATOR, what is not there as it was known is kept. A new record in it is followed; an intent
        is not, for it may have been taken back since.
        """
        self._inputs[source.value] = InputMark(listing.mark.created, listing.mark.sequence)
        self._losses.fold_replaced(source, listing, trusted, reason)

    def fold_change(self, source: Source, change: Change) -> None:
        """One write or deletion, live."""
        self._border.fold(source, change.entry)

    def fold_hosts(
        self,
        hosts: Mapping[str, HostView],
        term_age_s: float,
        gone: Mapping[str, GoneView] | None = None,
        mark: InputMark | None = None,
    ) -> None:
        """All hosts with their silence, as the last pulse saw them, and those whose key is `gone`. Replaces what was
        known. `mark`: how far their stream was read.

        A host is put into the scope when its word changes (session, capacity, labels, drivers ...), when its silence
        crosses a threshold, or while its new session waits for an answer.
        """
        self._roster.fold(hosts, term_age_s, gone or {}, mark)

    def fold_found(self, found: Mapping[Running, Pin | None]) -> None:
        """What runs under another store, as its bundles say."""
        self._roster.fold_found(found)

    def fold_candidate(self, pipeline: str, version: str, candidate: Candidate | None) -> None:
        """A verdict of admission; None = being looked at (anew), or no longer wanted."""
        self._versions.judge(pipeline, version, candidate)

    # --- what this leader wrote

    def fold_journal(self, journal: Journal, revision: int) -> None:
        """A journal write of this leader, under its sequence."""
        if self._border.newer(Source.CONTROL, JOURNAL, revision, there=True):
            self._decisions.journal, self._decisions.journal_revision = journal, revision

    def fold_plan(self, plan: Plan, first_revision: int) -> None:
        """What this leader committed: `plan.documents()` in that order, at consecutive revisions from `first_revision`.

        `plan.then` are commits of their own. Nothing goes into the scope: planning on a plan's result finds nothing.
        """
        for offset, (key, document) in enumerate(plan.documents()):
            if self._border.newer(Source.CONTROL, key, first_revision + offset, there=document is not None):
                self._decisions.store(key, document)

    # --- accidents, and what operators say of them

    def doubt(self, source: Source, trusted: InputMark, mark: InputMark, reason: str) -> None:
        """Keep what the leader's own documents know and a stream does not say as it was decided: for an instance that
        never saw the stream before its accident. `mark`: what is written above it is followed."""
        self._losses.doubt(source, trusted, mark, reason)

    def miss(self) -> None:
        """Once, when everything was listed: pipelines that this leader's documents know, of which the users' stream has
        neither a record nor a marker, are gone in a first list."""
        self._losses.miss(self._inputs[Source.PIPELINES.value])

    def release(self, source: Source) -> None:
        """An operator has said that a stream is right as it is: what was kept follows it."""
        self._losses.release(source)
