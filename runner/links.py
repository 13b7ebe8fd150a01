"""Whether Bento has lost connections to NATS for good, by what can be seen from outside of it. Pure.

The client library inside Bento gives up on a server after 60 tries, two seconds apart, and nothing in Bento tells: it
stays ready, its gauges say connected, and an input or output without traffic logs nothing. What does tell is its
sockets: one for each NATS component, none for one that has given up.

    held ── gone ──▶ lost ── replaced by a new connection ──▶ held           it reconnected by itself
                      ├── its server was there all the time ──▶ forgotten    it closed it on purpose
                      ├── what answers there is not NATS ──▶ forgotten       nothing that we know how to heal
                      └── its server was away for long, answers again, and still no connection ──▶ stuck

In a cluster the library goes to another server, so a new connection to any NATS server may stand for the lost one.

Servers are recognized by asking: a NATS server greets whoever connects. Nobody is asked before a connection to him was
lost, or stands where a lost one might have been replaced; who greets otherwise, or never, is not asked again.
"""

from __future__ import annotations

from enum import StrEnum

from runner.value import replace, value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import TypeAlias

FIRST_LOOK_S = 2.0  # after the start of a Bento that is not ready before
LOOK_S = 5.0  # between two looks at its sockets
HELD_S = 30.0  # a connection counts from this age on, or if it was made so soon after the start; others come and go
LOOK_CLOSELY_S = 1.0  # while one is lost
GIVES_UP_S = 100.0  # the library tries for at least 120 s; a server that was away for less is being reconnected to
RETURNS_S = 5.0  # so long a server must have answered again; who still tries has connected by then
RETRIES_S = 30.0  # the same for a Bento that says itself that it is not connected: it is trying on its own
ON_PURPOSE_S = 15.0  # gone so long although its server was there: Bento has closed it
ASK_S = 2.0  # between two questions to a server that is away, as the library itself does
ASK_SILENT_MAX_S = 60.0  # one that accepts and says nothing is asked less and less often (something on ...
SILENT_MAX = 12  # ... the way to the server, or the server is starting), and so many times at most
ASKED_MAX = 3  # times that somebody is asked who may be the server of a new connection
LOST_MAX = 32  # more than a Bento has NATS components
STRANGERS_MAX = 1000  # remembered; then it begins anew
LINKS_MAX = 256  # a Bento with more connections than this is not watched

Peer: TypeAlias = "tuple[str, int]"  # address and port


class Greeting(StrEnum):
    """What somebody says to whom connects."""

    NATS = "nats"
    OTHER = "other"  # something, but not what a NATS server says
    SILENT = "silent"  # accepts and says nothing
    AWAY = "away"  # cannot be connected to


@value
class Held:
    """A connection of Bento's that is there."""

    peer: Peer
    since: float  # first seen
    spent: bool = False  # it stands for one that was lost


@value
class Lost:
    """A connection that was held and is gone."""

    peer: Peer
    since: float
    away: bool = False  # its server was seen away since
    back: float | None = None  # since when its server answers


@value
class Links:
    """Bento's connections. Keys of `held` tell one connection from the next to the same server."""

    held: Mapping[str, Held]
    lost: tuple[Lost, ...]
    servers: frozenset[Peer]  # known to be NATS servers
    strangers: frozenset[Peer]  # known to be something else
    silent: Mapping[Peer, int]  # how often somebody said nothing, since he said something
    asked: Mapping[Peer, int]  # how often somebody else than the server of a lost connection was asked
    look_at: float
    ask_at: float
    begun: float  # when Bento was started
    last: Peer | None = None  # who was asked last


def begin(now: float) -> Links:
    """Of a Bento that starts now."""
    nobody: frozenset[Peer] = frozenset()
    return Links(
        held={},
        lost=(),
        servers=nobody,
        strangers=nobody,
        silent={},
        asked={},
        look_at=now + FIRST_LOOK_S,
        ask_at=now,
        begun=now,
    )


def looked(links: Links, found: Mapping[str, Peer], now: float) -> Links:
    """After a look at the sockets: `found` are all connections that Bento has made."""
    if len(found) > LINKS_MAX:
        return replace(links, held={}, lost=(), look_at=now + LOOK_S)
    held = {key: links.held.get(key) or Held(peer=peer, since=now) for key, peer in found.items()}
    gone = [one for key, one in sorted(links.held.items()) if key not in held]
    gone = [one for one in gone if one.since <= max(now - HELD_S, links.begun + HELD_S)]
    lost = [*links.lost, *(Lost(peer=one.peer, since=now) for one in gone if one.peer not in links.strangers)]
    lost = [one for one in lost if not _on_purpose(one, now)]
    lost = sorted(lost, key=lambda one: (one.peer not in links.servers, one.since))[:LOST_MAX]
    kept = _unreplaced(lost, held, links.servers)
    return replace(
        links,
        held=held,
        lost=tuple(kept),
        asked=links.asked if kept else {},
        look_at=now + (LOOK_CLOSELY_S if kept else LOOK_S),
        ask_at=links.ask_at if links.lost else now,
    )


def whom_to_ask(links: Links) -> Peer | None:
    """Whose greeting is to be heard at `ask_at`: in turn the servers of lost connections, and whoever a connection was
    made to since. None if nobody's is."""
    if not links.lost:
        return None
    first = min(one.since for one in links.lost)
    known = links.servers | links.strangers
    made = {one.peer for one in links.held.values() if one.since >= first and not one.spent}
    others = {peer for peer in made - known if links.asked.get(peer, 0) < ASKED_MAX}
    peers = sorted({one.peer for one in links.lost} | others)
    later = [peer for peer in peers if links.last is not None and peer > links.last]
    return (later or peers)[0]


def heard(links: Links, peer: Peer, greeting: Greeting, now: float) -> Links:
    """After `peer` was asked."""
    servers, strangers = links.servers, links.strangers
    before = links.silent.get(peer, 0)
    silenced = {Greeting.SILENT: before + 1, Greeting.AWAY: before}.get(greeting, 0)
    silent = {**links.silent, peer: silenced} if len(links.silent) < STRANGERS_MAX else {peer: silenced}
    if greeting is Greeting.NATS:
        servers |= {peer}
    elif greeting is Greeting.OTHER or (peer not in servers and _silent_enough(links, peer, silenced)):
        strangers = frozenset({peer}) | (strangers if len(strangers) < STRANGERS_MAX else frozenset())
    lost = tuple(_heard(one, greeting, now) if one.peer == peer else one for one in links.lost)
    lost = tuple(one for one in lost if one.peer not in strangers)
    quiet = min((silent.get(one.peer, 0) for one in lost), default=0)
    return replace(
        links,
        lost=lost,
        servers=servers,
        strangers=strangers,
        silent=silent,
        asked={**links.asked, peer: links.asked.get(peer, 0) + 1},
        ask_at=now + min(ASK_S * 2.0 ** min(quiet, 10), ASK_SILENT_MAX_S),
        last=peer,
    )


def stuck(links: Links, *, ready: bool, now: float) -> tuple[float, str] | None:
    """Since when Bento has been without connections that it will not make again, and why that is known."""
    returns_s = RETURNS_S if ready else RETRIES_S
    dead = [(one.since, one.back, one.peer) for one in links.lost if one.back is not None and _given_up(one)]
    dead = sorted(row for row in dead if now - row[1] >= returns_s)
    if not dead:
        return None
    since, back, (address, port) = dead[0]
    made = [one for one in links.held.values() if one.since >= since and not one.spent and one.peer in links.servers]
    if len(made) >= len(dead):
        return None
    many = "a connection" if len(dead) == 1 else f"{len(dead)} connections"
    where = f"the server at {address}:{port} was away for {back - since:.0f} s and answers again"
    return since, f"Bento has given up {many} to NATS: {where}"


def _heard(one: Lost, greeting: Greeting, now: float) -> Lost:
    if greeting is Greeting.NATS:
        return replace(one, back=now if one.back is None else one.back)
    return replace(one, away=True, back=None)


def _silent_enough(links: Links, peer: Peer, silent: int) -> bool:
    """Whether one that accepts and says nothing is no NATS server: at once, if he is there though a connection to him
    was lost just now, as with whoever closes idle connections."""
    away = any(one.away for one in links.lost if one.peer == peer)
    there = any(one.peer == peer for one in links.lost) and not away
    return silent > 0 and (there or silent >= SILENT_MAX)


def _given_up(one: Lost) -> bool:
    return one.away and one.back is not None and one.back - one.since >= GIVES_UP_S


def _on_purpose(one: Lost, now: float) -> bool:
    return one.back is not None and not _given_up(one) and now - one.back >= ON_PURPOSE_S


def _unreplaced(lost: list[Lost], held: dict[str, Held], servers: frozenset[Peer]) -> list[Lost]:
    """What is still lost. Connections that were made since, and stand for one that is gone, are marked in `held`: one
    to the same server, or one to another NATS server if there are enough for all."""
    kept = []
    for one in lost:
        same = [key for key, new in sorted(held.items()) if _made(new, one.since) and new.peer == one.peer]
        if same:
            held[same[0]] = replace(held[same[0]], spent=True)
        else:
            kept.append(one)
    first = min((one.since for one in kept), default=0.0)
    others = [key for key, new in sorted(held.items()) if _made(new, first) and new.peer in servers]
    if len(others) < len(kept):
        return kept
    for key in others[: len(kept)]:
        held[key] = replace(held[key], spent=True)
    return []


def _made(new: Held, since: float) -> bool:
    return new.since >= since and not new.spent
