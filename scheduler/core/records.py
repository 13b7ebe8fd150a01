"""What users want: the records of the pipelines bucket, parsed, each with the last valid one."""

from __future__ import annotations

from dataclasses import replace

from scheduler.core.changed import Changed
from scheduler.core.problems import PROBLEM_CHARS_MAX
from scheduler.core.view import RecordView
from shared.errors import BadInput
from shared.record import captured, parse_record
from shared.store import Entry


class Records:
    """`views`: by pipeline. It is one dictionary for good, so that a view may refer to it."""

    def __init__(self, changed: Changed) -> None:
        self.views: dict[str, RecordView] = {}
        self._changed = changed

    def apply(self, entry: Entry) -> None:
        """Replace what one key said. BadInput: it is no record, the last valid one goes on."""
        self._changed.pipelines.add(entry.key)
        if entry.value is None:
            self.views.pop(entry.key, None)
            return
        try:
            good = parse_record(entry.key, entry.value)
            self.views[entry.key] = RecordView(good, entry.revision, captured=captured(good))
        except BadInput as error:
            last = self.views.get(entry.key)
            problems = tuple(str(found)[:PROBLEM_CHARS_MAX] for found in error.problems)
            good_yet, fields = (None, None) if last is None else (last.good, last.captured)
            self.views[entry.key] = RecordView(good_yet, entry.revision, problems, captured=fields)
            raise

    def says(self, entry: Entry) -> bool:
        """Whether an entry says of its pipeline what is in force."""
        known = self.views.get(entry.key)
        if entry.value is None or known is None:
            return entry.value is None and known is None
        try:
            return parse_record(entry.key, entry.value) == known.good
        except BadInput:
            return bool(known.problems)

    def hold(self, pipeline: str, held: bool) -> None:
        """Say of a pipeline whether one list lacks its record. Of one that has no record nothing can be said."""
        record = self.views.get(pipeline)
        if record is not None and record.held != held:
            self.views[pipeline] = replace(record, held=held)
            self._changed.pipelines.add(pipeline)

    def doubt(self, pipeline: str) -> None:
        """Hold a pipeline that the leader's documents know, whether it has a record or not."""
        self.views[pipeline] = replace(self.views.get(pipeline) or RecordView(None, 0), held=True)
        self._changed.pipelines.add(pipeline)

    def keep(self, pipeline: str, sentence: str) -> None:
        """A pipeline goes on as it was; `sentence` is what its status says of that."""
        self.views[pipeline] = replace(self.views[pipeline], kept=sentence)
        self._changed.pipelines.add(pipeline)

    def release(self, pipeline: str) -> bool:
        """Follow a record that was held. False: there is none to follow. One that makes no sense is a record."""
        known = self.views.get(pipeline)
        if known is None or not known.held or (known.good is None and not known.problems):
            return False
        self.views[pipeline] = replace(known, held=False, kept="")
        self._changed.pipelines.add(pipeline)
        return True
