"""What the audit knows: facts that it works out from the documents by itself, sharing no code with the planner."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from scheduler.core.liveness import confirmed_dead
from scheduler.core.view import HostView, Policy, View
from shared.documents import STRAYS_MAX, Assigned, Assignment, Observed, Pin, Session, Stopping, Stray
from shared.record import PipelineRecord
from shared.states import Overlap, Phase


class Facts:
    """Answers about a view, and about the assignments a plan would write over it (`written`, by host)."""

    def __init__(self, view: View, policy: Policy, written: Mapping[str, Assignment | None]) -> None:
        self.view = view
        self.policy = policy
        self.written = written
        self._alive: dict[str, bool] = {}
        self._observed: dict[str, Mapping[str, Observed]] = {}

    def is_alive(self, host: str) -> bool:
        """Whether its silence is below every threshold."""
        known = self._alive.get(host)
        if known is None:
            # A host whose key is gone is silent since then, and believed until that is a silence.
            known = self._alive[host] = not self.quiet(host)
        return known

    def silent_for(self, host: str, seconds: float) -> bool:
        """Whether nobody was heard on its key for so long."""
        known, gone = self.view.hosts.get(host), self.view.gone.get(host)
        if known is not None:
            return known.silence_s >= seconds
        return (self.view.term_age_s if gone is None else gone.silence_s) >= seconds

    def quiet(self, host: str) -> bool:
        """Whether it takes no harm to have a second copy where copies may overlap."""
        known = self.view.hosts.get(host)
        dead = known is not None and known.heartbeat.dead is not None
        return dead or self.silent_for(host, self.policy.silent_shareable_s)

    def has_ended(self, host: str) -> bool:
        """Whether what obeys the lease of a host has stopped, if no heartbeat of it can follow."""
        known, document = self.view.hosts.get(host), self.view.assignments.get(host)
        if known is None:
            return self.silent_for(host, max(self.view.silent_exclusive_s, self.policy.silent_exclusive_s))
        before = None if document is None else document.session
        return self.silent_for(host, self._needed_s(known, None)) and (before is None or self._over(known, before))

    def _over(self, known: HostView, session: Session) -> bool:
        silence_s = known.heard.get((session.agent, session.boot), known.term_age_s)
        return silence_s >= self._needed_s(known, session)

    def _needed_s(self, known: HostView, session: Session | None) -> float:
        """The silence that a host, or one session of it, needs: never less than its present heartbeat says."""
        beat, told = known.heartbeat, known.silent_exclusive_s
        if session is not None:
            told = known.silent_exclusive_of.get((session.agent, session.boot))
        least_s = max(self.view.silent_exclusive_s, self.policy.silent_exclusive_s) if told is None else told
        spoken = session is None or (session.agent, session.boot) == (beat.session.agent, beat.session.boot)
        if not spoken or not (0 < beat.lease_s <= 120 and 0 <= beat.fence_kill_s <= 30 and 0 <= beat.poll_s <= 30):
            return least_s  # what makes no sense was taken for something longer already
        return max(least_s, ((beat.lease_s + beat.fence_kill_s + beat.poll_s) * 1.1 + 0.5) / 0.99)

    def dead(self, host: str) -> bool:
        """Whether no heartbeat of the session that was heard last can be stored any more."""
        known = self.view.hosts.get(host)
        return known is not None and known.heartbeat.dead is not None

    def may_drop(self, host: str, item: Assigned | Stopping, *, any_silence: bool = False, alone: bool = False) -> bool:
        """Whether a host has been silent for long enough that this execution need not be confirmed stopped, and
        (unless `any_silence`) whether an operator has said that the host is to be forgotten."""
        intent = self.view.host_intents.get(host)
        if not any_silence and (intent is None or not intent.forget):
            return False
        if item.overlap is Overlap.SHAREABLE and not alone:
            return self.quiet(host)
        if item.lease_bound and item.bound_in <= self._applied(host):
            return self.dead(host) and self.has_ended(host)
        return confirmed_dead(self.view, host) and self.has_ended(host)

    def forgotten(self, host: str) -> bool:
        """Whether its assignment may be deleted."""
        intent = self.view.host_intents.get(host)
        return intent is not None and intent.forget and self.quiet(host)

    def may_follow(self, known: HostView, before: Session, after: Session | None) -> bool:
        """Whether a document that named one session may name another."""
        if after is not None and (after.agent, after.boot) == (before.agent, before.boot):
            return True
        return self._over(known, before)

    def goes_on(self, host: str) -> bool:
        """Whether the agent that a host's document was made for may run an exclusive execution without any lease."""
        document = self.view.assignments.get(host)
        if document is None or confirmed_dead(self.view, host):
            return False
        items: tuple[Assigned | Stopping, ...] = (*document.executions, *document.stopping)
        exclusive = [item for item in items if item.overlap is Overlap.EXCLUSIVE]
        return any(not item.lease_bound or item.bound_in > self._applied(host) for item in exclusive)

    def _applied(self, host: str) -> int:
        """Newest plan that the agent has applied which the host's document was made for."""
        report, document = self.view.reports.get(host), self.view.assignments.get(host)
        if report is None or document is None or document.session is None:
            return 0
        one, other = report.session, document.session
        return report.plan if (one.agent, one.boot) == (other.agent, other.boot) else 0

    def new_agent(self, host: str, item: Assigned) -> bool:
        """Whether an execution that must not overlap would come under an agent that did not start it."""
        old, new = self.view.assignments.get(host), self.written.get(host)
        before, after = (None if old is None else old.session), (None if new is None else new.session)
        alone = item.lease_bound or item.overlap is Overlap.EXCLUSIVE
        return alone and before is not None and after is not None and before.agent != after.agent

    def record(self, pipeline: str) -> PipelineRecord | None:
        """The record in force, if it is certain."""
        known = self.view.records.get(pipeline)
        return None if known is None or known.held else known.good

    def digest(self, item: Assigned) -> str:
        """What the version of an execution is pinned to."""
        pin = self.view.pins.get((item.pipeline, item.version))
        return "" if pin is None else pin.digest

    def seen(self, host: str) -> Mapping[str, Observed]:
        """What the session that the host's document will name observes, by execution."""
        known = self._observed.get(host)
        if known is None:
            known = self._observed[host] = self._report(host)
        return known

    def runs_already(self, host: str) -> Mapping[str, Observed]:
        """What a host without a document reports, by execution, if it obeys this store or one it was accepted for."""
        report, intent = self.view.reports.get(host), self.view.store_intent
        ours = {self.view.store_id, *self.view.accepted}
        if intent is not None and intent.accept == self.view.store_id:
            ours.add(intent.replaces)
        if report is None or report.problem or report.store_id not in ours:
            return {}
        return {seen.execution: seen for seen in report.executions}

    def strays(self, host: str) -> set[str]:
        """What a host tells of executions that no store commands."""
        told = self.view.straying.get(host)
        return set() if told is None else {stray.execution for stray in told[0]}

    def beside(self, item: Assigned) -> Iterator[str]:
        """Hosts that tell of an execution of the same slot which no document of this store names, and which must not
        run beside `item`; and hosts with more of those than they can tell."""
        for host in sorted(self.view.straying):
            known, document = self.view.hosts[host], self.view.assignments.get(host)
            word = self.view.host_intents.get(host)
            spoken_of = word is not None and word.session in (None, known.heartbeat.session)
            if spoken_of and confirmed_dead(self.view, host) and known.silence_s >= self._needed_s(known, None):
                continue
            told, unknown = self.view.straying[host]
            if unknown and len(told) >= STRAYS_MAX:
                yield host
                continue
            commanded: tuple[Assigned | Stopping, ...] = ()
            if document is not None:
                commanded = (*document.executions, *document.stopping)
            for stray in told:
                if (stray.pipeline, stray.slot) != (item.pipeline, item.slot):
                    continue
                named = any(one.execution == stray.execution for one in commanded)
                if document is not None and stray.store_id == self.view.store_id:
                    continue
                if document is not None and named and stray.store_id in document.accepted:
                    continue
                if not self._may_overlap(item, stray):
                    yield host

    def _may_overlap(self, item: Assigned, stray: Stray) -> bool:
        pin = self.view.pins.get((stray.pipeline, stray.version))
        if pin is None or pin.digest != stray.digest:
            pin = self.view.found.get((stray.pipeline, stray.version, stray.digest))
        return pin is not None and Overlap.EXCLUSIVE not in (pin.overlap, item.overlap)

    def _report(self, host: str) -> Mapping[str, Observed]:
        report, document = self.view.reports.get(host), self.written.get(host) or self.view.assignments.get(host)
        if report is None or document is None or report.store_id != self.view.store_id:
            return {}
        return {seen.execution: seen for seen in report.executions} if report.session == document.session else {}

    def phase(self, host: str, item: Assigned) -> Phase | None:
        """The phase of an execution, as far as it can be relied on."""
        if not self.is_alive(host):
            return None
        seen = self.seen(host).get(item.execution)
        return None if seen is None else seen.phase


def gone(view: View, host: str, document: Assignment, stop: Stopping) -> bool:
    """Whether the session that was asked has said, in full knowledge of the asking plan, that nothing is left."""
    report = view.reports.get(host)
    if report is None or report.problem or report.store_id != view.store_id or stop.asked_of is None:
        return False
    if not (document.session == stop.asked_of == report.session) or report.plan < stop.asked_in:
        return False
    return stop.execution not in {seen.execution for seen in report.executions}


def meets(record: PipelineRecord, labels: Mapping[str, str], host: str) -> bool:
    """Whether a host has every label that a record requires."""
    for name, wanted in record.placement.required.items():
        has = host if name == "host" else labels.get(name)
        if has != wanted and (isinstance(wanted, str) or has not in wanted):
            return False
    return True


def identity(item: Assigned) -> tuple[object, ...]:
    """What must not change about an execution while it keeps its name."""
    return (
        item.pipeline,
        item.slot,
        item.version,
        item.digest,
        item.overlap,
        item.stop_grace_s,
        item.cpu,
        item.memory_bytes,
        item.restart,
    )


def same_version(item: Assigned, pin: Pin) -> bool:
    """Whether an execution is what its version is pinned to."""
    return (item.digest, item.overlap, item.cpu, item.memory_bytes, item.stop_grace_s) == (
        pin.digest,
        pin.overlap,
        pin.cpu,
        pin.memory_bytes,
        pin.stop_grace_s,
    )


def what(item: Assigned | Stopping) -> tuple[object, ...]:
    """What an execution and the stop of it have in common."""
    return (
        item.pipeline,
        item.slot,
        item.version,
        item.overlap,
        item.lease_bound,
        item.bound_in,
        item.memory_bytes,
        item.cpu,
    )
