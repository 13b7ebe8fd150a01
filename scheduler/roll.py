"""Silence, counted: what is known of every host, and for how many pulses each has not been heard.

    Tally   pulses since each key was last heard; no documents
    Roll    the hosts' documents, with one tally of keys and one of identities

No clock, no store: `pulse` calls this, and a table can test it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import structlog

from scheduler.core.view import HostView
from shared import documents
from shared.documents import Heartbeat
from shared.errors import BadInput, problem
from shared.ids import is_id
from shared.store import Entry, Listing

PULSE_S = 0.5
GRACE_S = 15.0  # what a host not heard since an interruption gets at least: agents need as long to find a server again
IDENTITIES_MAX = 256  # per host; honest agents are four seconds apart, so only a hostile one gets there
REFUSED_MAX = 1000  # keys with unreadable heartbeats that are logged, each once

K = TypeVar("K", bound=Hashable)
log = structlog.get_logger()


class Tally(Generic[K]):
    """Pulses since each key was last heard."""

    def __init__(self) -> None:
        self._pulses = 0
        self._zero = 0
        self._grace = False
        self._at: dict[K, int] = {}
        self._unheard: set[K] = set()  # since the interruption that gave grace

    def pulse(self) -> None:
        """One more pulse has come back."""
        self._pulses += 1

    def hear(self, key: K) -> None:
        """`key` was heard live."""
        self._at[key] = self._pulses
        self._unheard.discard(key)

    def meet(self, key: K) -> None:
        """`key` is known from a list, which does not say when it was heard: its silence begins now."""
        self._at.setdefault(key, self._pulses)
        if self._grace:
            self._unheard.add(key)

    def forget(self, key: K) -> None:
        self._at.pop(key, None)
        self._unheard.discard(key)

    def zero(self, *, grace: bool) -> None:
        """Every silence starts anew. With `grace`, what is not heard from now on counts as silent for GRACE_S at the
        earliest: until then its silence is 0."""
        self._zero = self._pulses
        self._grace = grace
        self._at = dict.fromkeys(self._at, self._pulses)
        self._unheard = set(self._at) if grace else set()

    def silence_s(self, key: K) -> float:
        """How long `key` has been silent, in whole pulses."""
        silence_s = (self._pulses - self._at[key]) * PULSE_S
        return 0.0 if key in self._unheard and silence_s < GRACE_S else silence_s

    @property
    def age_s(self) -> float:
        """How long anything that was never heard has been silent."""
        age_s = (self._pulses - self._zero) * PULSE_S
        return 0.0 if self._grace and age_s < GRACE_S else age_s

    def crossing(self, pulses: Iterable[int]) -> list[K]:
        """The keys whose silence has just become one of `pulses`. A scan of integers: 0.2 ms for 5,000."""
        edges = {self._pulses - count for count in pulses}
        return [key for key, at in self._at.items() if at in edges]

    def crosses(self, pulses: Iterable[int]) -> bool:
        """Whether `age_s` has just become one of `pulses`."""
        return self._pulses - self._zero in set(pulses)

    @property
    def longest_s(self) -> float:
        return (self._pulses - min(self._at.values())) * PULSE_S if self._at else 0.0


@dataclass(slots=True)
class _Host:
    heartbeat: Heartbeat
    content: bytes  # of the document but for its sequence
    revision: int
    identities: list[tuple[str, str]] = field(default_factory=list)  # heard on this key, the last one last


class Roll:
    """What is known of every host, and which of it is news. Synchronous; one thread."""

    def __init__(self, thresholds_s: Iterable[float]) -> None:
        """`thresholds_s`: silences at which a decision may change."""
        self._edges = frozenset(math.ceil(seconds / PULSE_S) for seconds in (*thresholds_s, GRACE_S))
        self._hosts: dict[str, _Host] = {}
        self._keys: Tally[str] = Tally()
        self._identities: Tally[tuple[str, str, str]] = Tally()
        self._held: set[str] = set()
        self._views: dict[str, HostView] = {}
        self._changed: set[str] = set()
        self._refused: set[str] = set()  # keys of which a heartbeat could not be read, and that was logged

    def list(self, listing: Listing, *, interrupted: bool, other: bool = False) -> None:
        """A complete list: starts every silence anew, with grace after an interruption. `other`: of a stream that is
        not the one listed before, so that its revisions cannot be compared with those known."""
        if other:
            for host in self._hosts.values():
                host.revision = 0
        for key, entry in listing.entries.items():
            if is_id(key):
                self._learn(key, entry)
        gone = {key for key in self._hosts if key not in listing.entries}
        for key in sorted(gone):
            # Without a marker a key is held until a second list agrees: the first one may have been too short.
            if key in listing.deleted or key in self._held:
                self._remove(key)
        self._held = gone & self._hosts.keys()
        self.zero(grace=interrupted)

    def change(self, entry: Entry) -> None:
        """A live change of a host's key."""
        if not is_id(entry.key):
            return
        if entry.value is None:
            self._remove(entry.key)
            return
        identity = self._learn(entry.key, entry)
        if identity is not None:
            self._held.discard(entry.key)
            self._keys.hear(entry.key)
            self._identities.hear((entry.key, *identity))

    def pulse(self) -> None:
        """An own pulse has come back."""
        self._keys.pulse()
        self._identities.pulse()
        if self._keys.crosses(self._edges):
            self._changed.update(self._hosts)
        self._changed.update(self._keys.crossing(self._edges))
        self._changed.update(host for host, _, _ in self._identities.crossing(self._edges))

    def zero(self, *, grace: bool) -> None:
        """Every silence starts anew."""
        self._keys.zero(grace=grace)
        self._identities.zero(grace=grace)
        self._changed.update(self._hosts)

    @property
    def news(self) -> bool:
        """Whether something changed since the last `views`."""
        return bool(self._changed)

    def views(self, *, fresh: bool = False) -> tuple[Mapping[str, HostView], frozenset[str]]:
        """Every host, and which of them changed. Without `fresh`, silences of unchanged hosts may be older, but no
        threshold lies between."""
        for host in self._hosts if fresh else self._changed & self._hosts.keys():
            self._views[host] = self._view(host)
        for host in self._changed - self._hosts.keys():
            self._views.pop(host, None)
        changed, self._changed = frozenset(self._changed), set()
        return dict(self._views), changed

    @property
    def term_age_s(self) -> float:
        """How silent anything is that was never heard."""
        return self._keys.age_s

    @property
    def longest_s(self) -> float:
        """The longest silence of any host."""
        return self._keys.longest_s

    def _view(self, name: str) -> HostView:
        host = self._hosts[name]
        return HostView(
            heartbeat=host.heartbeat,
            revision=host.revision,
            silence_s=self._keys.silence_s(name),
            heard={identity: self._identities.silence_s((name, *identity)) for identity in host.identities},
            term_age_s=self.term_age_s,
        )

    def _learn(self, key: str, entry: Entry) -> tuple[str, str] | None:
        """Take over what a document says. The identity it was heard of, None if it is no sign of life: not newer than
        the known one, not readable, or a tombstone, which the leader wrote."""
        host = self._hosts.get(key)
        if entry.value is None or (host is not None and entry.revision <= host.revision):
            return None
        content = _SEQUENCE.sub(b"", entry.value, count=1)
        if host is not None and content == host.content:
            host.revision = entry.revision
            return self._identity(key, host)
        try:
            heartbeat = documents.decode(Heartbeat, entry.value)
            if heartbeat.host != key:
                raise BadInput(problem("host", heartbeat.host, f"it stands under '{key}'"))
        except BadInput as error:
            if key not in self._refused and len(self._refused) < REFUSED_MAX:
                self._refused.add(key)
                log.warning("A heartbeat cannot be read.", host=key, why=str(error))
            return None
        if host is None:
            host = self._hosts[key] = _Host(heartbeat, content, entry.revision)
            self._keys.meet(key)
        else:
            host.heartbeat, host.content, host.revision = heartbeat, content, entry.revision
        self._changed.add(key)
        return self._identity(key, host)

    def _identity(self, key: str, host: _Host) -> tuple[str, str] | None:
        if host.heartbeat.dead is not None:
            return None
        identity = (host.heartbeat.session.agent, host.heartbeat.session.boot)
        if identity not in host.identities:
            host.identities.append(identity)
            self._identities.meet((key, *identity))
            for oldest in host.identities[:-IDENTITIES_MAX]:
                self._identities.forget((key, *oldest))
            del host.identities[:-IDENTITIES_MAX]
        return identity

    def _remove(self, key: str) -> None:
        host = self._hosts.pop(key, None)
        if host is None:
            return
        self._keys.forget(key)
        for identity in host.identities:
            self._identities.forget((key, *identity))
        self._changed.add(key)


# An agent's heartbeats differ in nothing else while nothing happens. A quotation mark inside a text is escaped, so this
# finds only a field, and a label of that name holds no bare number.
_SEQUENCE = re.compile(rb'"sequence":\s*\d+')
