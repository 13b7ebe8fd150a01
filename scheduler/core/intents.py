"""What operators want: the documents of the operator bucket, parsed."""

from __future__ import annotations

from shared.documents import decode
from shared.intents import ConfirmIntent, HostIntent, RestartIntent, StoreIntent
from shared.keys import STORE_INTENT
from shared.store import Entry


class Intents:
    """By kind, as views want them. `apply` replaces what one key said; BadInput: it is no intent, nothing changed."""

    def __init__(self) -> None:
        self.hosts: dict[str, HostIntent] = {}
        self.restarts: dict[str, str] = {}  # pipeline -> name of the request
        self.store: StoreIntent | None = None
        self.confirms: dict[str, ConfirmIntent] = {}  # by input
        self._values: dict[str, bytes] = {}

    def apply(self, entry: Entry) -> None:
        kind, _, name = entry.key.partition(".")
        if entry.value is None:
            self._values.pop(entry.key, None)
            if kind == "host":
                self.hosts.pop(name, None)
            elif kind == "restart":
                self.restarts.pop(name, None)
            elif kind == "confirm":
                self.confirms.pop(name, None)
            elif entry.key == STORE_INTENT:
                self.store = None
            return
        if kind == "host":
            self.hosts[name] = decode(HostIntent, entry.value)
        elif kind == "restart":
            self.restarts[name] = decode(RestartIntent, entry.value).name(entry.revision)
        elif kind == "confirm":
            self.confirms[name] = decode(ConfirmIntent, entry.value)
        elif entry.key == STORE_INTENT:
            self.store = decode(StoreIntent, entry.value)
        self._values[entry.key] = entry.value

    def says(self, entry: Entry) -> bool:
        """Whether a key says already what `entry` says."""
        return self._values.get(entry.key) == entry.value

    def moving(self) -> list[Entry]:
        """The intents that move or restart something: what an older backup must not bring back to life."""
        keys = [f"host.{name}" for name, one in self.hosts.items() if one.drain or one.forget or one.confirm_dead]
        keys += [f"restart.{name}" for name in self.restarts]
        return [Entry(key, self._values[key], 0) for key in sorted(keys)]


def names_itself(key: str) -> bool:
    """Whether an intent says exactly what it is for (a store id, a hold), so that an old one does nothing new."""
    return key == STORE_INTENT or key.startswith("confirm.")
