"""The journal, read and, when somebody has overwritten it, made again from what it was the journal of.

The leader's documents lie in the same stream, and nothing was committed after the damage: every commit expects the
journal that is gone. So together they are what the last leader decided, and only its numbers have to be found: the
store id, and a plan number above all that were ever given out. The chain goes on from there under the same store id;
agents see the next plan of a later term, as after any takeover, and nothing restarts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from cli.cluster import Cluster, select
from shared.documents import Assignment, InputMark, Journal, Pin, Report, Status, decode, encode
from shared.errors import BadInput, Refused
from shared.ids import parse_execution
from shared.keys import JOURNAL

INPUTS = ("pipelines", "configs", "operator", "reports", "hosts")
UNREADABLE = (
    "the journal cannot be read: somebody has overwritten it. What runs goes on, but nothing is placed, moved or "
    "removed until it is made again: `shoal store repair`"
)
_OTHERWISE = (
    "have a new store take over what runs: delete the journal (`nats kv del {} journal`), then `shoal store accept` "
    "with the id that `shoal leader` shows"
)


async def read_journal(cluster: Cluster) -> Journal:
    """The journal, with its term. Refused with what to do if there is none, or it is not one."""
    entry = await cluster.read(cluster.keys.control, JOURNAL)
    if entry.value is None:
        raise Refused("no scheduler has ever led here. Start one with `shoal scheduler`")
    try:
        found = decode(Journal, entry.value)
        return replace(found, term=found.term or entry.revision)
    except BadInput as error:
        raise Refused(UNREADABLE) from error


async def repair_journal(cluster: Cluster, who: str) -> Journal:
    """Make the journal again over the damaged one; what was written. Refused if it is none the worse, or if the other
    documents do not tell enough. Whoever writes at the same time wins: it is a compare-and-set like any commit."""
    keys, store = cluster.keys, cluster.store
    entry = await cluster.read(keys.control, JOURNAL)
    if entry.value is None:
        raise Refused("there is no journal: a scheduler makes one when it leads. Start one with `shoal scheduler`")
    try:
        found = decode(Journal, entry.value)
    except BadInput:
        pass
    else:
        raise Refused(f"the journal is whole: plan {found.plan} of store {found.store_id}")
    control = await cluster.entries(keys.control)
    reports = await cluster.documents(keys.reports, Report)
    inputs = {}
    for name in INPUTS:
        mark = await store.mark(getattr(keys, name))
        inputs[name] = InputMark(mark.created, mark.sequence)
    try:
        made = rebuilt(
            list(select(control, Assignment, "assign.").values()),
            list(select(control, Status, "status.").values()),
            list(select(control, Pin, "version.").values()),
            list(reports.values()),
            sequence=(await store.mark(keys.control)).sequence,
            inputs=inputs,
            who=who,
        )
    except Refused as error:
        raise Refused(f"{error}; {_OTHERWISE.format(keys.control)}") from error
    await store.write(keys.control, JOURNAL, encode(made), expected=entry.revision)
    return made


def rebuilt(
    assignments: Sequence[Assignment],
    statuses: Sequence[Status],
    pins: Sequence[Pin],
    reports: Sequence[Report],
    *,
    sequence: int,
    inputs: Mapping[str, InputMark],
    who: str,
) -> Journal:
    """A journal to go on from. `sequence`: the last of the control stream. Refused: they do not tell whose it was, or
    they are older than what hosts obey."""
    decisions: list[Assignment | Status] = [*assignments, *statuses]
    if not decisions:
        raise Refused("no document of the leader is left that tells which store this is")
    # Terms are revisions of this stream, so the last leader's documents are those of the latest one.
    last = max(decisions, key=lambda one: (one.term, one.plan, one.store_id))
    known = max(one.plan for one in (*decisions, *pins) if one.store_id == last.store_id)
    applied = max((one.plan for one in reports if one.store_id == last.store_id), default=0)
    if applied > known:
        raise Refused(f"hosts have applied plan {applied} of store {last.store_id}, of which nothing is left here")
    named = [item.execution for one in assignments for item in one.executions]
    named += [item.execution for one in assignments for item in one.stopping]
    named += [item.execution for one in reports for item in one.executions]
    serials = max((parse_execution(name).serial for name in named), default=0)
    return Journal(
        store_id=last.store_id,
        term=0,
        # Each commit took a message at least. So however many of them left no document, the last was not above this.
        plan=max(known, serials) + sequence,
        attempt="",
        holder=who,
        reasons=("the journal was made again by an operator",),
        inputs=inputs,
        accepted=next((one.accepted for one in assignments if one.store_id == last.store_id), ()),
    )
