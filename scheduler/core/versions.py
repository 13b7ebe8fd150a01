"""What is known of versions: the configuration that exists, the verdict of admission, and the pin that ends it."""

from __future__ import annotations

from scheduler.core.candidates import Candidate
from scheduler.core.changed import Changed
from scheduler.core.indexes import pinned
from shared.documents import Pin, decode
from shared.keys import split_object_name
from shared.store import Entry, ObjectInfo


class Versions:
    """By (pipeline, version); `pins_of` by pipeline. Dictionaries for good, so that a view may refer to them."""

    def __init__(self, changed: Changed) -> None:
        self.config_digests: dict[tuple[str, str], str] = {}
        self.candidates: dict[tuple[str, str], Candidate] = {}
        self.pins: dict[tuple[str, str], Pin] = {}
        self.pins_of: dict[str, frozenset[str]] = {}
        self._changed = changed

    def apply_config(self, entry: Entry) -> None:
        """A configuration object came or went. BadInput: its description does not parse, nothing changed."""
        name = split_object_name(entry.key)
        if name is None:
            return  # not a configuration: its name has no version
        self._changed.pipelines.add(name[0])
        if entry.value is None:
            self.config_digests.pop(name, None)
        else:
            self.config_digests[name] = decode(ObjectInfo, entry.value).digest

    def judge(self, pipeline: str, version: str, candidate: Candidate | None) -> None:
        """A verdict of admission; None = being looked at (anew), or no longer wanted."""
        known = self.candidates.get((pipeline, version))
        if candidate is None:
            self.candidates.pop((pipeline, version), None)
        else:
            self.candidates[pipeline, version] = candidate
        if known != candidate:
            self._changed.pipelines.add(pipeline)

    def pin(self, pipeline: str, version: str, pin: Pin | None) -> None:
        """What a version is, from now on and for good; None = its pin was deleted. Nothing goes into the scope."""
        self.pins_of[pipeline] = pinned(self.pins_of.get(pipeline, frozenset()), version, pin is not None)
        if not self.pins_of[pipeline]:
            del self.pins_of[pipeline]
        if pin is None:
            self.pins.pop((pipeline, version), None)
        else:
            self.pins[pipeline, version] = pin
            self.candidates.pop((pipeline, version), None)
