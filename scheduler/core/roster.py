"""What is known of hosts: their silence as the last pulse saw it, what they report, and whether many fell at once."""

from __future__ import annotations

from collections.abc import Mapping

from scheduler.core import blast
from scheduler.core.adoption import Running
from scheduler.core.blast import Kept
from scheduler.core.changed import Changed
from scheduler.core.decisions import Decisions
from scheduler.core.indexes import changed_pipelines, shown_lost
from scheduler.core.liveness import Liveness, grade
from scheduler.core.problems import same
from scheduler.core.records import Records
from scheduler.core.view import NOTHING, GoneView, HostView, Policy, Told
from shared.documents import STRAYS_MAX, Assignment, Heartbeat, InputMark, Pin, Report, Stray, decode
from shared.ids import parse_execution
from shared.store import Entry


class Roster:
    """Named as in `View`. `outage`: hosts that nothing is moved off."""

    def __init__(self, policy: Policy, decisions: Decisions, records: Records, changed: Changed) -> None:
        self.hosts: dict[str, HostView] = {}
        self.gone: dict[str, GoneView] = {}
        self.silent_exclusive_s = 0.0
        self.term_age_s = 0.0
        self.reports: dict[str, Report] = {}
        self.unanswered: set[str] = set()
        self.found: dict[Running, Pin | None] = {}
        self.outage: Kept | None = None
        self._mark: InputMark | None = None  # how far the hosts were read
        self._given_up: InputMark | None = None  # who was not heard since then is gone, as an operator said
        self._policy = policy
        self._decisions = decisions
        self._records = records
        self._changed = changed
        self._fell: dict[str, float] = {}  # when each silent host fell silent, in pulses of this term
        self._together_s = 0.0  # when too many of them were silent last, in the same
        self._foreign: set[str] = set()  # hosts whose report is of another store
        self._strangers: dict[str, Liveness] = {}  # hosts without a document that obey another store
        self.straying: dict[str, Told] = {}  # what heartbeats tell of strays, by host

    def fold(
        self,
        hosts: Mapping[str, HostView],
        term_age_s: float,
        gone: Mapping[str, GoneView],
        mark: InputMark | None,
    ) -> None:
        """All hosts with their silence, and those whose key is `gone`. Replaces what was known."""
        self._mark = mark
        assignments = self._decisions.assignments
        before = {host: self._level(host) for host in self.hosts.keys() | assignments.keys()}
        were, self.hosts, self.gone, self.term_age_s = self.hosts, dict(hosts), dict(gone), term_age_s
        for view in hosts.values():
            self.silent_exclusive_s = max(self.silent_exclusive_s, view.silent_exclusive_s or 0.0)
        self._fall(hosts, term_age_s)
        self.unanswered = (hosts.keys() | self.reports.keys()) - assignments.keys()
        self._meet_strangers()
        straying = {host: told for host, one in hosts.items() if (told := self._told(host, one.heartbeat)) != NOTHING}
        if _bars(straying) != _bars(self.straying):
            self._everything()  # what waited for them need not wait, or must
        self.straying = straying
        if hosts and not were:
            self._everything()  # a status says nothing of hosts when there is none
        for host, now in hosts.items():
            was = were.get(host)
            assignment = assignments.get(host)
            pending = assignment is None or assignment.session != now.heartbeat.session
            back = was is not None and was.unheard and not now.unheard and self._shown_lost(assignment)
            if pending or was is None or back or _differ(was, now):
                self._changed.hosts.add(host)
        for host, level in before.items():
            if (host in were and host not in hosts) or self._level(host) is not level:
                self._changed.hosts.add(host)

    def apply_report(self, entry: Entry) -> None:
        """Replace what one host reported. BadInput: it is no report of this host, nothing changed."""
        assignments = self._decisions.assignments
        old = self.reports.get(entry.key)
        new = None if entry.value is None else decode(Report, entry.value)
        if new is not None:
            same("host", new.host, entry.key)
        self._changed.pipelines |= changed_pipelines(assignments.get(entry.key), old, new)
        if new is None:
            self.reports.pop(entry.key, None)
        else:
            self.reports[entry.key] = new
            (self._foreign.add if self._of_others(new) else self._foreign.discard)(entry.key)
        if entry.key not in assignments:
            self.unanswered.add(entry.key)
            self._changed.hosts.add(entry.key)
            if self._of_others(old) or self._of_others(new):
                self._everything()  # it may have waited for this word

    def uncommand(self, host: str) -> None:
        """A host's document was written over: if it is gone, what its report names may bar pipelines from now on."""
        if host not in self._decisions.assignments and (host in self.hosts or host in self.reports):
            self.unanswered.add(host)

    def obey(self, store_id: str) -> None:
        """The journal became another store's: see anew whose reports are of others."""
        self._foreign = {host for host, report in self.reports.items() if report.store_id != store_id}

    def fold_found(self, found: Mapping[Running, Pin | None]) -> None:
        """What runs under another store, as its bundles say."""
        if found:
            self.found.update(found)
            self._changed.hosts |= self.unanswered
            self._changed.hosts |= self.straying.keys()

    def give_up(self, heard: InputMark | None) -> None:
        """An operator has said that the hosts which were not heard since then are gone: they count as any silent host.
        As long as the word stands it is so for every leader."""
        self._given_up = heard
        self._fall(self.hosts, self.term_age_s)

    def foreign_reports(self) -> list[Report]:
        """What hosts report under other stores."""
        return [self.reports[host] for host in sorted(self._foreign) if host in self.reports]

    def serials(self) -> int:
        """The highest serial that is reported under another store, or that a host tells of."""
        names = [seen.execution for one in self.foreign_reports() for seen in one.executions]
        names += [stray.execution for told, _ in self.straying.values() for stray in told]
        return max((parse_execution(name).serial for name in names), default=0)

    def ahead(self, store_id: str, term: int, takeover: int) -> str:
        """See `World.ahead`."""
        for host, report in sorted(self.reports.items()):
            if report.store_id == store_id and report.term != term and report.plan >= takeover:
                return host
        return ""

    def _fall(self, hosts: Mapping[str, HostView], now_s: float) -> None:
        """Note who fell silent when, in pulses of this term, and whether those were too many at once.

        Empty hosts count too, as long as one of them all has something, and so does who has something and no key: the
        bucket may have been lost while most agents are cut off. What was dead before, or is given up, counts for
        neither side.
        An outage lasts for those that are still silent until they had time to come back after the others: the first
        one that is heard would otherwise have all the rest moved.
        """
        edge_s = self._policy.silent_shareable_s / 2  # before anything is moved off the first of them
        has = self._decisions.assignments
        living = {host: one for host, one in hosts.items() if one.heartbeat.dead is None}
        keyless = {host for host, one in has.items() if one.executions and host not in hosts}
        heard = {host for host, one in living.items() if one.silence_s < edge_s}
        silent = (living.keys() - heard) | {host for host in keyless if self._unseen_s(host) >= edge_s}
        silent -= {host for host in silent if self._is_given_up(host)}
        self._fell = {host: self._fell.get(host, now_s) for host in silent}
        before, within_s = self.outage, self._policy.silent_exclusive_s
        kept = frozenset() if before is None else frozenset(before.pending)
        together = blast.fell_together(self._fell, len(heard), within_s)
        if not any(host in has and has[host].executions for host in together):
            together = frozenset()
        if together:
            self._together_s = now_s
        elif before is not None and now_s - self._together_s < within_s:
            together = frozenset(before.pending.keys() & silent)
        if not together:
            self.outage = None
        elif before is None:
            mark = InputMark(f"{now_s:g}", 0)  # tells this outage from others of the same commit
            reason = f"more than half of the hosts, {len(together)} of {len(hosts) + len(keyless)}, fell silent at once"
            self.outage = Kept(reason, mark, mark, {host: Entry(host, None, 0) for host in sorted(together)})
        else:
            before.pending = {host: Entry(host, None, 0) for host in sorted(together)}
        self._changed.hosts |= kept ^ together

    def _is_given_up(self, host: str) -> bool:
        """Whether a host has not been heard since an operator said that who is silent is gone."""
        known, gone = self.hosts.get(host), self.gone.get(host)
        heard = known.revision if known is not None else 0 if gone is None else gone.revision
        word, mark = self._given_up, self._mark
        if word is None or mark is None or word.created != mark.created:
            return False  # numbers of another stream say nothing
        return heard <= word.sequence

    def _shown_lost(self, assignment: Assignment | None) -> bool:
        """Whether anything on a host is shown as lost."""
        items = () if assignment is None else assignment.executions
        return any(shown_lost(self._decisions.statuses.get(item.pipeline), item) is not None for item in items)

    def _told(self, host: str, beat: Heartbeat) -> Told:
        """What counts of what a heartbeat tells of strays: what was told last, while an agent that obeys a store has
        not looked since it was started. More of them than fit is no such case."""
        if not beat.store_id or not beat.strays_unknown or len(beat.strays) >= STRAYS_MAX:
            return beat.strays, beat.strays_unknown
        return beat.strays or self.straying.get(host, NOTHING)[0], ""

    def _meet_strangers(self) -> None:
        """See who obeys another store, and mark what waited for one that does so no more. Silent ones are taken over
        when none of them is heard."""
        were, self._strangers = (
            self._strangers,
            {host: self._level(host) for host in filter(self._strange, self.unanswered)},
        )
        if were.keys() - self._strangers.keys():
            self._everything()
        if {host for host, level in were.items() if level is Liveness.ALIVE and self._strangers.get(host) is not level}:
            self._changed.hosts |= self.unanswered

    def _strange(self, host: str) -> bool:
        known, report, journal = self.hosts.get(host), self.reports.get(host), self._decisions.journal
        obeys = known.heartbeat.store_id if known is not None else "" if report is None else report.store_id
        return journal is not None and obeys not in ("", journal.store_id)

    def _of_others(self, report: Report | None) -> bool:
        journal = self._decisions.journal
        return report is not None and (journal is None or report.store_id != journal.store_id)

    def _everything(self) -> None:
        self._changed.pipelines |= self._records.views.keys() | self._decisions.pipelines()

    def _level(self, host: str) -> Liveness:
        """How silent a host is by what is folded now."""
        known = self.hosts.get(host)
        fallback_s = max(self.silent_exclusive_s, self._policy.silent_exclusive_s)
        if known is not None:
            exclusive_s = fallback_s if known.silent_exclusive_s is None else known.silent_exclusive_s
            return grade(known.silence_s, self._policy, exclusive_s)
        return grade(self._unseen_s(host), self._policy, fallback_s)

    def _unseen_s(self, host: str) -> float:
        """How silent a host without a key is."""
        gone = self.gone.get(host)
        return self.term_age_s if gone is None else gone.silence_s


def _bars(straying: Mapping[str, Told]) -> dict[str, tuple[tuple[Stray, ...], bool]]:
    """What of it decides which pipelines wait; the rest are words, for those that do."""
    return {host: (told, bool(unknown)) for host, (told, unknown) in straying.items()}


def _differ(was: HostView, now: HostView) -> bool:
    return was.revision != now.revision and _word(was.heartbeat) != _word(now.heartbeat)


def _word(heartbeat: Heartbeat) -> tuple[object, ...]:
    """What a heartbeat says beyond "I live"."""
    beat = heartbeat
    lease = beat.lease_s, beat.fence_kill_s, beat.poll_s
    offers = beat.cpu, beat.memory_bytes, beat.labels, beat.drivers, beat.volumes
    return beat.session, beat.store_id, beat.dead, beat.strays, beat.strays_unknown, lease, offers
