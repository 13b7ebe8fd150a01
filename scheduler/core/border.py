"""The border: every entry of a bucket passes here, once, and is a parsed document behind it.

entry ──> newer than what is known? ──> parsed by whoever owns its kind ──┬─ applied
                                                                         └─ BadInput: a problem, nothing changes
"""

from __future__ import annotations

from scheduler.core.blast import HOSTS
from scheduler.core.changed import Changed
from scheduler.core.decisions import Decisions
from scheduler.core.intents import Intents
from scheduler.core.problems import Problems
from scheduler.core.records import Records
from scheduler.core.roster import Roster
from scheduler.core.sources import Bucket, Source
from scheduler.core.versions import Versions
from shared.errors import BadInput
from shared.keys import STORE_INTENT, is_key, status_key
from shared.store import Entry

_NO_KEY = "this is no key that a key-value bucket can have: remove it with `nats stream purge --subject`"


class Border:
    """`buckets`: where the keys of each source stand; an older word about a key changes nothing."""

    def __init__(
        self,
        records: Records,
        versions: Versions,
        intents: Intents,
        decisions: Decisions,
        roster: Roster,
        changed: Changed,
    ) -> None:
        self.buckets = {source: Bucket() for source in Source}
        self.problems = Problems()
        self._records = records
        self._versions = versions
        self._intents = intents
        self._decisions = decisions
        self._roster = roster
        self._changed = changed

    def fold(self, source: Source, entry: Entry) -> None:
        """One entry, if it is newer than what is known of its key. Nothing whatsoever makes this raise."""
        # What is decided about a key is written under keys made of it. Nothing can be written about this one.
        if source is not Source.CONFIGS and not is_key(status_key(entry.key)):
            self.problems.keep(source, entry.key, _NO_KEY if entry.value is not None else "")
            return
        if self.newer(source, entry.key, entry.revision, there=entry.value is not None):
            self.apply(source, entry)

    def newer(self, source: Source, key: str, revision: int, *, there: bool) -> bool:
        """Take note that a key was written (`there`) or deleted. False: older than what is known, nothing changed."""
        bucket = self.buckets[source]
        if not bucket.newer(key, revision, there=there):
            return False
        if source is Source.CONTROL:
            self._decisions.damaged.discard(key)
        if key in bucket.held:
            bucket.held.discard(key)
            self.hold(source, key, False)
        return True

    def hold(self, source: Source, key: str, held: bool) -> None:
        """A listing lacks a key, or has it again. Only of a pipeline the view says so."""
        if source is Source.PIPELINES:
            self._records.hold(key, held)

    def apply(self, source: Source, entry: Entry) -> None:
        """Parse an entry and let it count, whatever its revision."""
        self.problems.keep(source, entry.key, "")
        try:
            match source:
                case Source.PIPELINES:
                    self._records.apply(entry)
                case Source.CONFIGS:
                    self._versions.apply_config(entry)
                case Source.OPERATOR:
                    self._apply_intent(entry)
                case Source.REPORTS:
                    self._roster.apply_report(entry)
                case Source.CONTROL:
                    self._apply_control(entry)
        except BadInput as error:
            self.problems.keep(source, entry.key, str(error))
            if source is Source.CONTROL:
                self._decisions.damage(entry.key)

    def _apply_intent(self, entry: Entry) -> None:
        kind, _, name = entry.key.partition(".")
        self._intents.apply(entry)
        if kind == "host":
            self._changed.hosts.add(name)
        elif kind == "restart":
            self._changed.pipelines.add(name)
        elif entry.key == STORE_INTENT:
            self._changed.hosts.update(self._roster.hosts, self._roster.unanswered)
        elif kind == "confirm" and name == HOSTS:
            word = self._intents.confirms.get(HOSTS)
            self._roster.give_up(None if word is None else word.heard)

    def _apply_control(self, entry: Entry) -> None:
        before = self._decisions.journal
        if not self._decisions.apply(entry):
            self.problems.keep(Source.CONTROL, entry.key, "no document of Shoal has this key")
        kind, _, name = entry.key.partition(".")
        if kind == "assign":
            self._roster.uncommand(name)
        now = self._decisions.journal
        if now is not None and (before is None or before.store_id != now.store_id):
            self._roster.obey(now.store_id)
