"""Silence, counted: what is known of every host, and for how many pulses each has not been heard.

    Patience  for how long one identity must be silent before its leases have surely run out
    Roll      the hosts' documents, with one `Tally` of keys, one of identities and one of deleted keys

No clock, no store: `pulse` calls this, and a table can test it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import structlog

from scheduler.core.timings import PULSE_S, silent_exclusive_s
from scheduler.core.view import GoneView, HostView
from scheduler.tally import GRACE_S, Tally
from shared import documents
from shared.documents import Heartbeat
from shared.errors import BadInput, problem
from shared.ids import is_id
from shared.store import Entry, Listing

IDENTITIES_MAX = 256  # per host; honest agents are four seconds apart, so only a hostile one gets there
GONE_MAX = 10_000  # deleted keys that are remembered; forgetting one makes its host wait, never hurry
REFUSED_MAX = 1000  # keys with unreadable heartbeats that are logged, each once

log = structlog.get_logger()


@dataclass(slots=True)
class Patience:
    """How many pulses one identity must be silent, by what its heartbeats say. One that shortens its lease is held to
    the longer one for as long as that may still be trusted by somebody. Changes only when it is heard, so that a
    silence has one end from its beginning."""

    now: int
    former: dict[int, int] = field(default_factory=dict)  # longer ones -> the count of pulses at which each is over

    def hear(self, needed: int, at: int) -> None:
        """A heartbeat that needs so many pulses, heard at a count of `at`."""
        if needed < self.now:
            self.former[self.now] = at + self.now
        self.now = needed
        if self.former:
            self.former = {pulses: over for pulses, over in self.former.items() if over > at and pulses > needed}

    @property
    def pulses(self) -> int:
        return max(self.now, *self.former) if self.former else self.now


Identity = tuple[str, str]  # (agent id, boot id)


@dataclass(slots=True)
class _Heard:
    """Who was heard on a key; outlives the key, or whoever makes it anew would have no predecessors."""

    identities: list[Identity] = field(default_factory=list)  # the last one last
    patiences: dict[Identity, Patience] = field(default_factory=dict)
    living: set[Identity] = field(default_factory=set)  # those whose leases may not have run out

    @property
    def pulses(self) -> int:
        """The longest that any of the living needs."""
        return max((self.patiences[identity].pulses for identity in self.living), default=0)


@dataclass(slots=True)
class _Host:
    heartbeat: Heartbeat
    content: bytes  # of the document but for its sequence
    sequence: int  # of the newest document; the heartbeat's may be older
    revision: int
    needed: int  # pulses, by this heartbeat
    patience: int  # pulses, by all that may count
    heard: _Heard


@dataclass(slots=True)
class _Gone:
    revision: int  # of the delete marker, or 0
    heard: _Heard


class Roll:
    """What is known of every host, and which of it is news. Synchronous; one thread."""

    def __init__(self, thresholds_s: Iterable[float]) -> None:
        """`thresholds_s`: silences at which a decision may change."""
        self._edges = {math.ceil(seconds / PULSE_S) for seconds in (*thresholds_s, GRACE_S)}
        self._hosts: dict[str, _Host] = {}
        self._keys: Tally[str] = Tally()
        self._identities: Tally[tuple[str, str, str]] = Tally()  # of a key, also of one that is gone
        self._gone: dict[str, _Gone] = {}
        self._absent: Tally[str] = Tally()  # since a key is gone
        self._unseen: Tally[str] = Tally()  # since a list showed that a key was written while nobody watched
        self._held: set[str] = set()
        self._views: dict[str, HostView] = {}
        self._changed: set[str] = set()
        self._returned: set[str] = set()  # heard after a silence, or first since all started anew; news with a pulse
        self._refused: set[str] = set()  # keys of which a heartbeat could not be read, and that was logged

    def list(self, listing: Listing, *, interrupted: bool, other: bool = False) -> None:
        """A complete list. After an interruption it starts every silence anew, with grace. Without one, only those on
        keys that were written since they were seen last: a list says that somebody was heard then, not who and when.
        On a key that has not changed nobody was heard, so a host that is dead stays as silent as it was.

        `other`: of a stream that is not the one listed before, so that its revisions cannot be compared with those
        known; starts every silence anew."""
        known = {key: host.revision for key, host in self._hosts.items()}
        known_gone = {key: gone.revision for key, gone in self._gone.items()}
        if other:
            for host in self._hosts.values():
                host.revision = 0
            for gone in self._gone.values():
                gone.revision = 0
        for key, entry in listing.entries.items():
            if is_id(key):
                self._learn(key, entry)
        absent = {key for key in self._hosts if key not in listing.entries}
        for key in sorted(absent):
            # Without a marker a key is held until a second list agrees: the first one may have been too short.
            if key in listing.deleted or key in self._held:
                self._remove(key, listing.deleted.get(key, 0))
        for key, revision in listing.deleted.items():
            if is_id(key) and key not in self._hosts:
                self._bury(key, revision, None)
        self._held = absent & self._hosts.keys()
        if interrupted or other:
            self.zero(grace=interrupted)
            return
        found = {key: entry.revision for key, entry in listing.entries.items()}
        for key, host in self._hosts.items():
            if key not in known or found.get(key) != known[key]:
                self._renew(key, host.heard)
        for key, gone in self._gone.items():
            if key not in known_gone or found.get(key, listing.deleted.get(key)) != known_gone[key]:
                self._absent.hear(key)
                self._renew(key, gone.heard)

    def change(self, entry: Entry) -> None:
        """A live change of a host's key."""
        if not is_id(entry.key):
            return
        if entry.value is None:
            self._remove(entry.key, entry.revision)
            return
        identity = self._learn(entry.key, entry)
        if identity is not None:
            self._held.discard(entry.key)
            if self._keys.unheard(entry.key) or self._keys.silence_s(entry.key) >= min(self._edges) * PULSE_S:
                self._returned.add(entry.key)
            self._keys.hear(entry.key)
            self._identities.hear((entry.key, *identity))
            self._settle(entry.key, self._hosts[entry.key], identity)

    def pulse(self) -> None:
        """An own pulse has come back."""
        self._keys.pulse()
        self._identities.pulse()
        self._absent.pulse()
        self._unseen.pulse()
        self._changed |= self._returned  # once for all that were heard since: after a takeover these are all hosts
        self._returned.clear()
        if self._keys.crosses(self._edges):
            self._changed.update(self._hosts)
        self._changed.update(self._absent.crossing(self._edges))
        self._changed.update(self._keys.crossing(self._edges))
        self._changed.update(self._unseen.crossing(self._edges))
        self._changed.update(host for host, _, _ in self._identities.crossing(self._edges))

    def zero(self, *, grace: bool) -> None:
        """Every silence starts anew."""
        self._keys.zero(grace=grace)
        self._identities.zero(grace=grace)
        self._absent.zero(grace=grace)
        self._unseen = Tally()
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

    def gone(self) -> Mapping[str, GoneView]:
        """The hosts whose key was deleted, and those never seen on whose key is no heartbeat."""
        return {key: GoneView(gone.revision, self._absent.silence_s(key)) for key, gone in self._gone.items()}

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
        if host.heartbeat.sequence != host.sequence:
            host.heartbeat = replace(host.heartbeat, sequence=host.sequence)
        return HostView(
            heartbeat=host.heartbeat,
            revision=host.revision,
            silence_s=self._keys.silence_s(name),
            unheard=self._keys.unheard(name),
            heard={identity: self._identities.silence_s((name, *identity)) for identity in host.heard.identities},
            term_age_s=self._age_s(name),
            silent_exclusive_s=host.patience * PULSE_S,
            silent_exclusive_of={identity: found.pulses * PULSE_S for identity, found in host.heard.patiences.items()},
        )

    def _age_s(self, name: str) -> float:
        """How silent an identity is that was never heard on a key."""
        return min(self.term_age_s, self._unseen.silence_s(name)) if name in self._unseen else self.term_age_s

    def _renew(self, key: str, heard: _Heard) -> None:
        """Anybody may have been heard on a key just now."""
        if key in self._hosts:
            self._keys.hear(key)
        for identity in heard.identities:
            self._identities.hear((key, *identity))
        self._unseen.hear(key)
        self._changed.add(key)

    def _learn(self, key: str, entry: Entry) -> Identity | None:
        """Take over what a document says. The identity it was heard of, None if it is no sign of life: not newer than
        the known one, not readable, or a tombstone, which the leader wrote."""
        host = self._hosts.get(key)
        if entry.value is None or (host is not None and entry.revision <= host.revision):
            return None
        content, sequence = _apart(entry.value)
        if host is not None and content == host.content:
            host.revision, host.sequence = entry.revision, sequence
            return self._identity(key, host)
        try:
            heartbeat = documents.decode(Heartbeat, entry.value)
            if heartbeat.host != key:
                raise BadInput(problem("host", heartbeat.host, f"it stands under '{key}'"))
        except BadInput as error:
            self._pass_over(key, entry.revision, str(error))
            return None
        needed = math.ceil(silent_exclusive_s(heartbeat) / PULSE_S)
        self._edges.add(needed)  # they are few: every lease that can be counts in whole pulses
        if host is None:
            gone = self._gone.pop(key, None)
            heard = _Heard() if gone is None else gone.heard
            patience = max(needed, heard.pulses)
            host = _Host(heartbeat, content, heartbeat.sequence, entry.revision, needed, patience, heard)
            self._hosts[key] = host
            self._keys.meet(key)
            self._absent.forget(key)
        else:
            host.heartbeat, host.content, host.sequence = heartbeat, content, heartbeat.sequence
            host.revision, host.needed = entry.revision, needed
        self._changed.add(key)
        return self._identity(key, host)

    def _pass_over(self, key: str, revision: int, why: str) -> None:
        """Something is on a key that is no heartbeat of its host. Nobody was heard, and no heartbeat of a session that
        was known can follow it: a tombstone goes over it as over the last heartbeat, or as over a key that is gone."""
        if key not in self._refused and len(self._refused) < REFUSED_MAX:
            self._refused.add(key)
            log.warning("A heartbeat cannot be read.", host=key, why=why)
        host = self._hosts.get(key)
        if host is not None:
            host.revision = revision
        else:
            self._bury(key, revision, None)
        self._changed.add(key)

    def _identity(self, key: str, host: _Host) -> Identity | None:
        if host.heartbeat.dead is not None:
            return None
        heard, identity = host.heard, (host.heartbeat.session.agent, host.heartbeat.session.boot)
        if identity not in heard.patiences:
            heard.identities.append(identity)
            self._identities.meet((key, *identity))
            heard.patiences[identity] = Patience(host.needed)
            heard.living.add(identity)
            host.patience = max(host.patience, host.needed)
            if len(heard.identities) > IDENTITIES_MAX:
                oldest = heard.identities.pop(0)
                self._identities.forget((key, *oldest))
                del heard.patiences[oldest]
                heard.living.discard(oldest)
        return identity

    def _settle(self, key: str, host: _Host, identity: Identity) -> None:
        """A heartbeat of `identity` was heard: how long a silence that begins now has to be."""
        heard, patience = host.heard, host.heard.patiences[identity]
        if host.patience == patience.now == host.needed and not patience.former and heard.living == {identity}:
            return  # what every heartbeat finds while nothing happens
        patience.hear(host.needed, self._keys.pulses)
        heard.living = {
            other
            for other in heard.living
            if self._identities.silence_s((key, *other)) < heard.patiences[other].pulses * PULSE_S
        }
        heard.living.add(identity)
        if host.patience != heard.pulses:
            host.patience = heard.pulses
            self._changed.add(key)

    def _bury(self, key: str, revision: int, heard: _Heard | None) -> None:
        """Remember that a key is gone. `heard` None: it was known to be, or never seen."""
        known = self._gone.get(key)
        if known is not None:
            known.revision = revision
            return
        if len(self._gone) >= GONE_MAX:
            oldest = next(iter(self._gone))
            self._absent.forget(oldest)
            self._unseen.forget(oldest)
            for identity in self._gone.pop(oldest).heard.identities:
                self._identities.forget((oldest, *identity))
        self._gone[key] = _Gone(revision, heard or _Heard())
        self._absent.meet(key)

    def _remove(self, key: str, revision: int) -> None:
        host = self._hosts.pop(key, None)
        self._bury(key, revision, None if host is None else host.heard)
        if host is not None:
            self._keys.forget(key)
            self._changed.add(key)


# An agent's heartbeats differ in nothing else while nothing happens. A quotation mark inside a text is escaped, so this
# finds only a field, and a label of that name holds no bare number.
_SEQUENCE = re.compile(rb'"sequence":\s*(\d{1,18})')


def _apart(value: bytes) -> tuple[bytes, int]:
    """A heartbeat's document but for its sequence, and that."""
    found = _SEQUENCE.search(value)
    if found is None:
        return value, 0
    return value[: found.start()] + value[found.end() :], int(found[1])
