"""What leaders have decided: the documents of the control bucket, and the indexes of them that every pass uses."""

from __future__ import annotations

from scheduler.core.changed import Changed
from scheduler.core.indexes import index_places, is_waiting, load_of
from scheduler.core.problems import same
from scheduler.core.versions import Versions
from scheduler.core.view import Load, Place
from shared.documents import Assignment, Journal, Pin, Status, decode
from shared.keys import JOURNAL, LEASE, split_version_key, status_key
from shared.store import Entry


class Decisions:
    """Of this store only: what another one decided is no decision of this one. Pins are kept by `Versions`.

    `damaged`: keys of documents that somebody else has overwritten; what is known of them is written again.
    """

    def __init__(self, versions: Versions, changed: Changed) -> None:
        self.journal: Journal | None = None
        self.journal_revision = 0
        self.assignments: dict[str, Assignment] = {}
        self.places: dict[str, tuple[Place, ...]] = {}
        self.loads: dict[str, Load] = {}
        self.statuses: dict[str, Status] = {}
        self.waiting: set[str] = set()
        self.damaged: set[str] = set()
        self._versions = versions
        self._changed = changed

    @property
    def term(self) -> int:
        """The term of the last journal write; 0 in the document stands for its own revision."""
        return 0 if self.journal is None else self.journal.term or self.journal_revision

    def pipelines(self) -> set[str]:
        """Those of which any document of a leader speaks."""
        return self.places.keys() | self.statuses.keys() | self._versions.pins_of.keys()

    def apply(self, entry: Entry) -> bool:
        """Replace what one key said; whether it is a key of Shoal. BadInput: no such document, nothing changed."""
        kind, _, name = entry.key.partition(".")
        if entry.key == JOURNAL and entry.value is not None:
            known, now = self.journal, decode(Journal, entry.value)
            self.journal, self.journal_revision = now, entry.revision
            if known is None or known.store_id != now.store_id:
                self._forget_others(now.store_id)
        elif kind == "assign":
            document = None if entry.value is None else decode(Assignment, entry.value)
            if document is not None:
                same("host", document.host, name)
                document = document if self._ours(document) else None
            self._changed.pipelines |= self._assign(name, document)
            self._changed.hosts.add(name)
        elif kind == "version" and "." in name:
            pin = None if entry.value is None else decode(Pin, entry.value)
            if pin is not None:
                same("pipeline and version", f"{pin.pipeline}.{pin.version}", name)
            self.store(entry.key, pin)
            self._changed.pipelines.add(name.partition(".")[0])
        elif kind == "status":
            status = None if entry.value is None else decode(Status, entry.value)
            if status is not None:
                same("pipeline", status.pipeline, name)
                status = status if self._ours(status) else None
            self.store(entry.key, status)
            self._changed.pipelines.add(name)
        else:
            return entry.key in (JOURNAL, LEASE) or kind == "term"
        return True

    def store(self, key: str, document: Assignment | Pin | Status | None) -> None:
        """Keep one document and its indexes. Nothing goes into the scope."""
        kind, _, name = key.partition(".")
        if kind == "assign":
            assert document is None or isinstance(document, Assignment)
            self._assign(name, document)
        elif kind == "version":
            assert document is None or isinstance(document, Pin)
            self._versions.pin(*split_version_key(key), document)
        else:
            assert document is None or isinstance(document, Status)
            if document is None:
                self.statuses.pop(name, None)
            else:
                self.statuses[name] = document
            (self.waiting.add if is_waiting(document) else self.waiting.discard)(name)

    def damage(self, key: str) -> None:
        """Somebody has written over a document of the leader. The one that is known stays, and is written again."""
        kind, _, name = key.partition(".")
        if kind == "assign" and name in self.assignments:
            self._changed.hosts.add(name)
        elif kind == "status" and name in self.statuses:
            self._changed.pipelines.add(name)
        elif kind == "version" and "." in name and split_version_key(key) in self._versions.pins:
            self._changed.pipelines.add(name.partition(".")[0])
        else:
            return
        self.damaged.add(key)

    def _assign(self, host: str, document: Assignment | None) -> set[str]:
        """Keep a host's assignment; the pipelines whose places it changed."""
        changed = index_places(self.places, host, self.assignments.get(host), document)
        if document is None:
            self.assignments.pop(host, None)
            self.loads.pop(host, None)
        else:
            self.assignments[host] = document
            self.loads[host] = load_of(document)
        return changed

    def _forget_others(self, store_id: str) -> None:
        """What another store decided is no decision of this one. Its pins still say what its versions are."""
        self.damaged.clear()
        for host in [host for host, one in self.assignments.items() if one.store_id != store_id]:
            self._assign(host, None)
        for pipeline in [pipeline for pipeline, one in self.statuses.items() if one.store_id != store_id]:
            self.store(status_key(pipeline), None)

    def _ours(self, document: Assignment | Status) -> bool:
        return self.journal is None or document.store_id == self.journal.store_id
