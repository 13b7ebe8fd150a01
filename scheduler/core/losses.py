"""What is kept of users' streams after an accident to them: what `blast` calls an accident, applied to what is known.

a first list that lacks what the leader's documents know     miss
a list that lacks what was there, without markers            missing
another stream than the one that was read                    fold_replaced
the same, before this instance looked                        doubt
an operator says that the stream is right as it is           release
"""

from __future__ import annotations

from scheduler.core import blast
from scheduler.core.blast import Kept
from scheduler.core.border import Border
from scheduler.core.decisions import Decisions
from scheduler.core.intents import Intents, names_itself
from scheduler.core.records import Records
from scheduler.core.roster import Roster
from scheduler.core.sources import BLAST, Bucket, Source
from scheduler.core.versions import Versions
from shared.documents import InputMark
from shared.store import Entry, Listing

_LOST = "{} of {} records are gone without having been deleted, as after a purge"


class Losses:
    """What it keeps stands in the `kept` of each bucket of the border."""

    def __init__(
        self,
        border: Border,
        records: Records,
        versions: Versions,
        intents: Intents,
        decisions: Decisions,
        roster: Roster,
    ) -> None:
        self._border = border
        self._records = records
        self._versions = versions
        self._intents = intents
        self._decisions = decisions
        self._roster = roster

    def missing(self, source: Source, listing: Listing, trusted: InputMark) -> None:
        """Hold what a complete listing lacks without a marker, drop what a second one lacks too, or keep it all.
        `trusted`: how far the stream had been read before."""
        bucket = self._border.buckets[source]
        gone = {key for key in bucket.live if key not in listing.entries and key not in listing.deleted}
        gone -= self._keep_lost(source, gone, listing, trusted)
        twice = bucket.held & gone
        for key in sorted(bucket.held ^ gone):
            self._border.hold(source, key, key in gone)
        bucket.held = gone - twice
        bucket.live -= twice
        for key in sorted(twice):
            self._border.apply(source, Entry(key, None, bucket.at(key)))

    def fold_replaced(self, source: Source, listing: Listing, trusted: InputMark, reason: str) -> None:
        """See `World.fold_replaced`."""
        old = self._border.buckets[source]
        bucket = self._border.buckets[source] = Bucket()
        pending: dict[str, Entry] = {}
        for key in sorted(old.live):
            there = listing.entries.get(key)
            if there is None:
                there = Entry(key, None, listing.deleted.get(key, 0))
            if source in BLAST and not names_itself(key) and not self._says(source, there):
                pending[key] = there
                bucket.revisions[key] = there.revision
                bucket.live.add(key)
            elif source is Source.REPORTS:
                bucket.live.add(key)  # it was true when it was said; the agent says it again soon
            elif there.value is None:
                self._border.apply(source, there)
        for key, entry in listing.entries.items():
            if source is Source.OPERATOR and key not in old.live and not names_itself(key):
                pending[key] = entry  # of a backup, perhaps: an intent that was taken back since
                bucket.revisions[key] = entry.revision
                bucket.live.add(key)
            else:
                self._border.fold(source, entry)
        bucket.revisions.update(listing.deleted)
        if pending:
            mark = InputMark(listing.mark.created, listing.mark.sequence)
            self._keep(source, Kept(reason, trusted if old.kept is None else old.kept.trusted, mark, pending))

    def doubt(self, source: Source, trusted: InputMark, mark: InputMark, reason: str) -> None:
        """See `World.doubt`."""
        bucket = self._border.buckets[source]
        if bucket.kept is not None:
            return  # this instance saw it happen, so it knows better
        pending = {}
        if source is Source.PIPELINES:
            for pipeline in sorted(self._footprints()):
                revision = bucket.at(pipeline)
                if revision > mark.sequence or self._decided(pipeline):
                    continue
                pending[pipeline] = Entry(pipeline, None, revision)
                self._records.doubt(pipeline)
        elif source is Source.OPERATOR:
            for entry in self._intents.moving():
                revision = bucket.revisions[entry.key]
                if revision <= mark.sequence:
                    pending[entry.key] = Entry(entry.key, entry.value, revision)
                    self._border.apply(source, Entry(entry.key, None, revision))
        if pending:
            bucket.live.update(pending)
            self._keep(source, Kept(reason, trusted, mark, pending))

    def miss(self, mark: InputMark) -> None:
        """See `World.miss`. `mark`: how far the stream of records was read."""
        bucket, known = self._border.buckets[Source.PIPELINES], self._footprints()
        gone = {
            pipeline for pipeline in known if pipeline not in self._records.views and pipeline not in bucket.revisions
        }
        for pipeline in sorted(gone):
            self._records.doubt(pipeline)
        bucket.live |= gone
        bucket.held |= gone
        if blast.too_many(len(gone), len(known)):
            pending = {pipeline: Entry(pipeline, None, 0) for pipeline in sorted(gone)}
            bucket.held -= gone
            self._keep(Source.PIPELINES, Kept(_LOST.format(len(gone), len(known)), mark, mark, pending))

    def release(self, source: Source) -> None:
        """See `World.release`."""
        bucket = self._border.buckets[source]
        kept, bucket.kept = bucket.kept, None
        assert kept is not None, "released is what is kept"
        for key, entry in kept.pending.items():
            if source is Source.PIPELINES and self._records.release(key):
                continue
            if entry.value is None:
                bucket.live.discard(key)
            self._border.apply(source, entry)

    def _keep_lost(self, source: Source, gone: set[str], listing: Listing, trusted: InputMark) -> set[str]:
        """Of the keys that are gone without a marker those that are kept, instead of being removed in the end."""
        if source not in BLAST:
            return set()
        bucket = self._border.buckets[source]
        kept = bucket.kept
        if kept is None:
            if not blast.too_many(len(gone), len(bucket.live)):
                return set()
            mark = InputMark(listing.mark.created, listing.mark.sequence)
            kept = Kept(_LOST.format(len(gone), len(bucket.live)), trusted, mark)
        fresh = sorted(gone - kept.pending.keys())
        kept.pending.update({key: Entry(key, None, bucket.at(key)) for key in fresh})
        if fresh:
            self._keep(source, kept)
        return gone

    def _keep(self, source: Source, kept: Kept) -> None:
        self._border.buckets[source].kept = kept
        if source is Source.PIPELINES:
            for pipeline in kept.pending:
                self._records.keep(pipeline, blast.sentence(source.value, kept.reason))

    def _says(self, source: Source, entry: Entry) -> bool:
        """Whether a stream says of a key what is in force."""
        return self._intents.says(entry) if source is Source.OPERATOR else self._records.says(entry)

    def _footprints(self) -> set[str]:
        """The pipelines of which the leader's documents, or hosts that ran them for a lost store, know something."""
        run = {seen.pipeline for report in self._roster.foreign_reports() for seen in report.executions}
        return run | self._decisions.pipelines()

    def _decided(self, pipeline: str) -> bool:
        """Whether a pipeline's record says what was decided last."""
        known = self._records.views.get(pipeline)
        good = None if known is None else known.good
        return good is not None and blast.agrees(good, self._decisions.statuses.get(pipeline))
