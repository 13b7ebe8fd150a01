"""One run: bursts of faults until the time is over, each followed by a wait until all is well."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from shared.connection import ConnectionSettings
from shared.keys import Keys
from shared.nats_store import connect
from tests.chaos.copies import Copies, Copy
from tests.chaos.faults import Faults
from tests.chaos.ledger import Ledger
from tests.chaos.report import Burst, Findings
from tests.chaos.site import CLUSTER, Site, running_site
from tests.chaos.timetable import RULES, Kind, Part, Planned
from tests.chaos.users import Users

WELL_S = 90.0  # every burst is over so long after its last fault, or never
STUCK_MAX = 2  # bursts in a row that it does not come back from: nothing more can be learned then
START_S = 120.0  # five daemons of Python and a dozen Bentos on a busy machine
DELIVER_S = 120.0  # what a lost copy had in its hands is delivered again after 10 s, some faults later again
LOOK_S = 0.25
STAYS_S = 2.0  # what a fault has just ended still looks well for a moment: longer than `users.FRESH_S`
REST_S = 1.5  # between two bursts
CONTROL_PLANE = frozenset(kind for kind, rule in RULES.items() if rule.part in (Part.SCHEDULER, Part.SERVER))
# These leave every execution as it is, if they are over in time.
GENTLE = frozenset({Kind.AGENT_KILL, Kind.AGENT_RESTART} | {k for k, r in RULES.items() if r.part is Part.SCHEDULER})
GENTLE_S = 6.0  # of a lease of 12 s: the rest is for the start of an agent on a busy machine
# These leave alone what has `on_partition: continue`: its process lives, and nobody may decide otherwise.
ALIVE = CONTROL_PLANE | {
    Kind.AGENT_KILL,
    Kind.AGENT_FREEZE,
    Kind.AGENT_RESTART,
    Kind.AGENT_CUT,
    Kind.HOST_CUT,
    Kind.HOST_UNPLUG,
    Kind.HOST_DEAF,
    Kind.HOST_MUTE,
    Kind.HOST_LOSSY,
    Kind.HOSTS_CUT,
    Kind.LEASE_GONE,
}


@dataclass
class Run:
    """A run and what it has found."""

    site: Site
    users: Users
    copies: Copies
    faults: Faults
    ledger: Ledger
    findings: Findings
    say: Callable[[str], None]
    began_s: float = field(default_factory=time.monotonic)
    _healed_s: float = 0.0  # when the last fault of this burst ended
    _victims: set[str] = field(default_factory=set)  # of this burst
    _named: set[str] = field(default_factory=set)  # violations that were said

    def note(self, words: str) -> None:
        self.say(f"{time.monotonic() - self.began_s:7.1f}  {words}")

    def violated(self, words: str) -> None:
        self.findings.violations.append(words)
        self.note(f"VIOLATION: {words}")

    async def start(self, solos: int) -> None:
        """Publish, and wait until all is well."""
        await self.copies.create()
        await self.users.publish_all(solos)
        took_s = await self.until_well(START_S)
        assert took_s is not None, f"the cluster never came up: {await self.users.unwell()}"
        self.note(f"all is well after {took_s:.1f} s")

    async def until_well(self, bound_s: float) -> float | None:
        """Seconds until all was well, and stayed so for a moment; None: it was not within the bound."""
        began_s = time.monotonic()
        since_s: float | None = None
        while True:
            now_s = time.monotonic()
            if await self.users.unwell():
                since_s = None
                if now_s - began_s > bound_s:
                    return None
            elif since_s is None:
                since_s = now_s
            elif now_s - since_s > STAYS_S:
                return since_s - began_s
            await asyncio.sleep(LOOK_S)

    async def burst(self, planned: tuple[Planned, ...]) -> bool:
        """One burst, and back to normal. False: it did not come back."""
        began_s = time.time()
        slots, before = self.users.slots, self.ledger.counts()
        self._victims.clear()
        async with asyncio.TaskGroup() as group:
            for one in planned:
                group.create_task(self._fault(one), name=str(one.kind))
        over_s = time.monotonic()
        waited_s = await self.until_well(WELL_S)
        back_s = None if waited_s is None else over_s + waited_s - self._healed_s
        ended_s = time.time()
        after, now = self.ledger.counts(), self.users.slots
        kept = [name for name, pipeline in slots.items() if name in now and pipeline not in self._victims]
        may_move = [name for name in kept if name != "stay.0"]  # which waits for its host
        still_s = max((self.ledger.slots[name].pause_s(began_s, ended_s) for name in may_move), default=0.0)
        started = {name: after[name][0] - before[name][0] for name in kept}
        moved = {name: after[name][1] - before[name][1] for name in kept}
        kinds = tuple(one.kind for one in planned)
        self.findings.bursts.append(Burst(kinds, still_s, back_s, sum(started.values())))
        if back_s is None:
            self.violated(f"not well {WELL_S:g} s after {', '.join(kinds)}: {await self.users.unwell()}")
        else:
            self.note(
                f"all is well after {back_s:.1f} s; stood still {still_s:.1f} s; "
                f"{sum(started.values())} copies started, {sum(moved.values())} elsewhere"
            )
        self._check_needless(planned, started, moved)
        self._check()
        return back_s is not None

    def _check_needless(
        self, planned: tuple[Planned, ...], started: Mapping[str, int], moved: Mapping[str, int]
    ) -> None:
        """What a burst must not have started or moved, by slot."""
        kinds = {one.kind for one in planned}
        words = ", ".join(sorted(kinds))
        length_s = max(one.end_s for one in planned)
        if kinds <= GENTLE and len(planned) == 1 and length_s <= GENTLE_S and any(started.values()):
            self.violated(f"started again because of {words}: {_named(started)}")
        if (kinds <= CONTROL_PLANE or kinds == {Kind.HOSTS_CUT}) and any(moved.values()):
            self.violated(f"moved because of {words}: {_named(moved)}")
        if kinds <= ALIVE and started["stay.0"]:
            self.violated(f"stay.0, which goes on alone, was started again because of {words}")

    async def _fault(self, planned: Planned) -> None:
        await asyncio.sleep(planned.begin_s)
        async with self.faults.during(planned) as victim:
            length_s = planned.end_s - planned.begin_s
            self.note(f"{planned.kind}: {victim} for {length_s:.1f} s")
            self._victims.add(victim)
            await asyncio.sleep(length_s)
            self._healed_s = time.monotonic()
        self.note(f"{planned.kind}: {victim} over")

    def _check(self) -> None:
        """What must hold at any time; each violation is named once."""
        found = {
            overlap.key: f"{overlap.slot}: {overlap.first.name} was not over when {overlap.second.name} began, "
            f"{overlap.seconds:.3f} s"
            for overlap in self.ledger.overlaps()
        }
        for stray in self.ledger.strays():
            found[str(stray)] = f"{stray.execution}: message {stray.sequence} at {stray.at_s:.3f} follows none"
        found |= {words: words for words in self.site.ended()}
        for key, words in found.items():
            if key not in self._named:
                self._named.add(key)
                self.violated(words)

    async def finish(self) -> None:
        """The final account: everything delivered, everything removed."""
        self.copies.stopped.set()
        deadline_s = time.monotonic() + DELIVER_S
        while waiting := await self.copies.undelivered():
            if time.monotonic() > deadline_s:
                self.violated(f"{waiting} messages were never delivered or acknowledged")
                break
            await asyncio.sleep(LOOK_S)
        for copy in self.copies.copies:
            verdict = await self.copies.judge(copy)
            self.findings.published += verdict.published
            self.findings.lost += len(verdict.lost)
            self.findings.duplicates += verdict.duplicates
            if verdict.lost:
                self.violated(f"{copy.name} lost {len(verdict.lost)} of {verdict.published}, first {verdict.lost[:5]}")
        await self.users.delete_all()
        deadline_s = time.monotonic() + WELL_S
        while left := await self.users.gone() or ", ".join(self.site.left()):
            if time.monotonic() > deadline_s:
                self.violated(f"after deleting everything: {left}")
                break
            await asyncio.sleep(LOOK_S)
        self.ledger.read()
        self._check()
        slots = self.ledger.slots.values()
        overlaps = self.ledger.overlaps()
        findings = self.findings
        findings.messages = sum(len(slot.times_s) for slot in slots)
        findings.copies = sum(len(slot.copies) for slot in slots)
        findings.overlaps, findings.overlap_s = len(overlaps), sum(overlap.seconds for overlap in overlaps)
        findings.gap_s = min((gap for slot in slots for gap in slot.gaps_s()), default=None)


def _named(counts: Mapping[str, int]) -> str:
    return ", ".join(name for name, count in counts.items() if count)


async def chaos(
    directory: Path,
    run_dir: Path,
    *,
    seed: int,
    minutes: float,
    timetable: Iterator[tuple[Planned, ...]],
    hosts: int = 4,
    solos: int = 3,
    say: Callable[[str], None] = print,
) -> Findings:
    """Run it. `minutes` is for the bursts; start and final account come on top."""
    findings = Findings(seed)
    ledger = Ledger(directory / "ledger")
    with running_site(directory, run_dir, hosts=hosts) as site:
        copies = await Copies.connect([Copy("a", group=False), Copy("b", group=True)], site.urls)
        store = await connect(ConnectionSettings(servers=tuple(site.urls)), name="chaos-users")
        users = Users(store, Keys(CLUSTER), ledger, copies, sorted(site.hosts))
        run = Run(site, users, copies, Faults(site, users), ledger, findings, say)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(copies.publish(), name="publish")
                listening = group.create_task(users.listen(), name="listen")
                await run.start(solos)
                began_s, stuck = time.monotonic(), 0
                for planned in timetable:
                    stuck = 0 if await run.burst(planned) else stuck + 1
                    if time.monotonic() - began_s > minutes * 60 or stuck == STUCK_MAX:
                        break
                    await asyncio.sleep(REST_S)
                findings.minutes = (time.monotonic() - began_s) / 60
                await run.finish()
                listening.cancel()
        finally:
            await store.close()
            await copies.close()
    return findings
