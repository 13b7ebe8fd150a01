"""What the executor has, as far as an agent knows: its last list, corrected by what the agent itself has done since.

A list takes time, and is older than an action that was under way meanwhile. So each own action is numbered, and for the
executions that it touched the list is not believed; the next one is. Thus nothing has to be listed before something is
started, and a removal is not forgotten because of a list that was asked for earlier.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from agent.core.situation import Fetch, Remove, Start, Stop, Subject
from agent.executor import Found, Life


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """`found` by execution. `uncertain`: starts without an answer, which may still come true."""

    found: Mapping[str, Found] = field(default_factory=dict)
    uncertain: Mapping[str, Subject] = field(default_factory=dict)
    number: int = 0  # of the last own action that ended
    touched: Mapping[str, int] = field(default_factory=dict)  # number of the last own action, by execution
    begun_s: Mapping[str, float] = field(default_factory=dict)  # boot clock when we began to start it


def listed(inventory: Inventory, items: Iterable[Found], *, asked: int, busy: Collection[str]) -> Inventory:
    """Take over a list that was asked for when the inventory had number `asked`. `busy`: under way then or now.

    It settles what was uncertain: an engine that answers has answered for the start, too, or has dropped it.
    """
    ours = {name for name, number in inventory.touched.items() if number > asked} | set(busy)
    found: dict[str, Found] = {}
    for item in items:
        name = item.execution
        if name not in ours:
            found[name] = _believed(found.get(name, item), item, inventory.found.get(name))
    found |= {name: item for name, item in inventory.found.items() if name in ours}
    return replace(
        inventory,
        found=found,
        uncertain={name: item for name, item in inventory.uncertain.items() if name in ours and name not in found},
        touched={name: number for name, number in inventory.touched.items() if name in ours},
        begun_s={name: at_s for name, at_s in inventory.begun_s.items() if name in found or name in ours},
    )


def _believed(one: Found, other: Found, before: Found | None) -> Found:
    """Which of two of the same execution, under two stores: the one that lives; of two that do, the one that has for
    longer. The other is a late start without a grant, and ends by itself. Else the one that was believed before."""

    def order(found: Found) -> tuple[bool, float, bool]:
        lives = found.life is Life.ALIVE
        since_s = math.inf if found.started_s is None else found.started_s
        return not lives, since_s if lives else 0.0, before is None or found.store_id != before.store_id

    return min(one, other, key=order)


def healthy(inventory: Inventory, healths: Mapping[str, Mapping[str, Any]]) -> Inventory:
    """Take over health files that were read anew. The same inventory if nothing has changed."""
    changed = {
        name: replace(inventory.found[name], health=health)
        for name, health in healths.items()
        if name in inventory.found and inventory.found[name].health != health
    }
    return replace(inventory, found={**inventory.found, **changed}) if changed else inventory


def starting(inventory: Inventory, execution: str, now_s: float) -> Inventory:
    """We begin to start it."""
    return replace(inventory, begun_s={**inventory.begun_s, execution: now_s})


def done(inventory: Inventory, action: Fetch | Start | Stop | Remove) -> Inventory:
    """An action has succeeded."""
    subject = action.subject
    name = subject.execution
    before = inventory.found.get(name)
    after: Found | None
    match action:
        case Fetch():
            return inventory
        case Start():
            after = _started(subject, before, action.spec.store_id)
        case Stop():
            after = replace(before, life=Life.EXITED) if before is not None else None
        case Remove():
            after = None
    others = {other: item for other, item in inventory.found.items() if other != name}
    return _touched(replace(inventory, found=others if after is None else {**others, name: after}), name)


def failed(inventory: Inventory, action: Fetch | Start | Stop | Remove, *, known: bool) -> Inventory:
    """An action has failed. `known`: surely without effect; else a start may still come true."""
    subject = action.subject
    if isinstance(action, Fetch):
        return inventory
    inventory = _touched(inventory, subject.execution)
    if isinstance(action, Start) and not known and subject.execution not in inventory.found:
        return replace(inventory, uncertain={**inventory.uncertain, subject.execution: subject})
    return inventory


def _touched(inventory: Inventory, name: str) -> Inventory:
    number = inventory.number + 1
    return replace(inventory, number=number, touched={**inventory.touched, name: number})


def _started(subject: Subject, before: Found | None, store_id: str) -> Found:
    """As the next list will show it, as far as we can know."""
    return Found(
        execution=subject.execution,
        store_id=store_id,
        pipeline=subject.pipeline,
        slot=subject.slot,
        version=subject.version,
        digest=subject.digest,
        life=Life.ALIVE,
        # A container that is started again is the same one; a process has a new number now, which the list will tell.
        runtime="" if before is None or before.runtime.isdecimal() else before.runtime,
        health={},
    )
