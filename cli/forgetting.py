"""Letting go of a host for good, in the order that keeps what it may still run from being started elsewhere beside it.

    look           what is known of the host when the operator speaks
    objection      why its documents must not be deleted now
    until_let_go   wait for the leader to delete its assignment, which it does only when nothing can run there any more
    delete         heartbeat and report, unless the host was heard meanwhile

An assignment that is not there is no proof by itself: a control stream that was lost has none either, and then the last
heartbeat and the last report are all that keeps another agent of that name from being answered too early.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from cli.cluster import TimedOut
from shared.documents import Heartbeat, Report, decode
from shared.errors import BadInput, Conflict, Refused
from shared.keys import Keys, assign_key
from shared.store import Entry, Store

Read = Callable[[str, str], Awaitable[Entry]]  # bucket, key; as `Store.read`, maybe more patient

_POLL_S = 0.1
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Known:
    """What the store said of a host."""

    host: str
    beat: Entry
    report: Entry
    assignment: Entry


async def look(read: Read, keys: Keys, host: str) -> Known:
    """Read it, as it is now."""
    beat, report = await read(keys.hosts, host), await read(keys.reports, host)
    return Known(host, beat, report, await read(keys.control, assign_key(host)))


def objection(known: Known) -> str:
    """Why it must not be forgotten without another word of the operator; "" if it may."""
    names = straying(known)
    if names:
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        return (
            f"{', '.join(names[:_SHOWN])}{more} may run on {known.host} under a store that it does not obey: let it "
            "come back and end that (`shoal doctor`)"
        )
    if known.assignment.value is not None or known.report.value is None:
        return ""
    try:
        running = [seen.execution for seen in decode(Report, known.report.value).executions]
    except BadInput:
        running = ["whatever its unreadable report named"]
    if not running:
        return ""
    return (
        f"nobody commands {known.host} now, and {', '.join(running)} may run there: take it over first (`shoal doctor`)"
    )


def straying(known: Known) -> list[str]:
    """What no document names, by the last word of the host: what its heartbeat tells of; of one that has not told, what
    its report names. A word that cannot be read says nothing."""
    if known.beat.value is None:
        return []
    try:
        beat = decode(Heartbeat, known.beat.value)
        names = [stray.execution for stray in beat.strays]
        untold = not beat.store_id and beat.strays_unknown and known.assignment.value is None
        if untold and known.report.value is not None:
            names += [seen.execution for seen in decode(Report, known.report.value).executions]
    except BadInput:
        return []
    return names


async def until_let_go(read: Read, keys: Keys, known: Known, timeout_s: float) -> None:
    """Wait until the leader has deleted the assignment. Raises Refused when there is none because the stream is new."""
    clock = asyncio.get_running_loop().time
    deadline = clock() + timeout_s
    while (entry := await read(keys.control, assign_key(known.host))).value is not None:
        if clock() >= deadline:
            raise TimedOut(f"{known.host} still has an assignment; is a scheduler leading? `shoal leader` tells")
        await asyncio.sleep(_POLL_S)
    if entry.revision < known.assignment.revision:
        raise Refused(
            f"the control stream is another one now: nothing of {known.host} was deleted; `shoal doctor` tells more"
        )


async def delete(read: Read, store: Store, keys: Keys, known: Known) -> None:
    """Delete heartbeat and report. Raises Refused when the host has spoken since `look`."""
    spoke = Refused(f"{known.host} is heard again, so it stays: stop its agent first")
    beat = await read(keys.hosts, known.host)
    if beat.value is not None:
        if _life(beat) != _life(known.beat):
            raise spoke
        await _delete(store, keys.hosts, beat, spoke)
    if known.report.value is not None:
        await _delete(store, keys.reports, known.report, spoke)


async def _delete(store: Store, bucket: str, entry: Entry, spoke: Refused) -> None:
    try:
        await store.write(bucket, entry.key, None, expected=entry.revision)
    except Conflict as error:
        raise spoke from error


def _life(entry: Entry) -> object:
    """What differs when the host is heard again; a tombstone over its last heartbeat is no such sign."""
    try:
        beat = decode(Heartbeat, entry.value or b"")
    except BadInput:
        return entry.revision
    return beat.session, beat.sequence
