"""What one leadership holds of the users' streams after an accident to them: begun, written down, ended.

    accident ──> World keeps ──> Hold in the journal, event, metric ──┬─ nothing is missing any more ──> ended
                                                                     └─ confirm.<input> names it ──> World follows

What is kept lives in the `World`; which hold that is, by name, in the journal. This compares the two.
"""

from __future__ import annotations

from collections.abc import Mapping

import structlog

from scheduler.catchup import CatchUp
from scheduler.core.blast import HOSTS, confirmed, replaced
from scheduler.core.world import BLAST, World
from scheduler.takeover import Leadership
from shared.documents import Hold, InputMark

log = structlog.get_logger()

_UNSEEN = "the stream is not what the last leader had read"


class Holds:
    """`known`: as the last journal has them."""

    def __init__(self, leadership: Leadership) -> None:
        self.known: Mapping[str, Hold] = leadership.holds
        self._inputs = leadership.inputs

    def waits_for(self) -> dict[str, InputMark]:
        """How far each input has to be read. Of one that is held the journal has the mark from before the accident,
        which no reading will reach."""
        held = {name: hold.mark for name, hold in self.known.items() if name != HOSTS}
        return {name: held.get(name, mark) for name, mark in self._inputs.items()}

    def begin(self, world: World, catch_up: CatchUp, marks: Mapping[str, InputMark]) -> None:
        """Once, when everything is read: keep what the predecessor kept, and what it did not live to see."""
        for source in sorted(BLAST):
            name = source.value
            now, trusted, hold = marks[name], self._inputs.get(name), self.known.get(name)
            if trusted is None:
                continue
            if name in catch_up.changed:
                world.doubt(source, trusted, now, replaced(trusted, now) or _UNSEEN)
            elif hold is not None:
                world.doubt(source, trusted, hold.mark, hold.reason)
        world.miss()

    def end(self, world: World, store_id: str) -> tuple[str, ...]:
        """Release what an operator has confirmed; the inputs."""
        done = []
        for source in sorted(world.kept):
            if confirmed(self.known.get(source.value), world.confirms.get(source.value), store_id):
                world.release(source)
                done.append(source.value)
        return tuple(done)

    def stale(self, world: World) -> bool:
        """Whether the journal does not say yet what is kept."""
        now = {name: kept.mark for name, kept in world.all_kept().items()}
        return now != {name: hold.mark for name, hold in self.known.items()}

    def written(self, holds: Mapping[str, Hold]) -> dict[str, str]:
        """The journal has these now. The sentences for people, by input."""
        said = {}
        for name in sorted(holds.keys() - self.known.keys()):
            remedy = f"publish the records again, restore the stream, or say `shoal store confirm {name}`"
            kept = "what it no longer says goes on as it was"
            if name == HOSTS:
                kept = "nothing is moved off them"
                remedy = f"bring them back, or say `shoal store confirm {name}`"
            log.error("An input is held.", input=name, why=holds[name].reason, consequence=kept)
            said[name] = f"{holds[name].reason}; {kept}: {remedy}"
        for name in sorted(self.known.keys() - holds.keys()):
            log.info("An input is held no longer.", input=name)
            said[name] = "held no longer" if name == HOSTS else "held no longer: what the stream says counts"
        self.known = holds
        return said
