"""Every metric of a scheduler, with its meaning. Labels come from closed sets: states, phases, our own bucket names.

Gauges about the cluster are set by the leader; a standby shows what it sees in its own warm view.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from scheduler.core.view import Policy, View
from scheduler.core.world import Source
from shared.states import Phase, State

_FAST_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_HOST_STATES = ("alive", "silent", "cordoned", "draining")


class SchedulerMetrics:
    """The metrics of one scheduler, in the registry that is passed in."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, meaning: str, *labels: str) -> Gauge:
            return Gauge(f"shoal_scheduler_{name}", meaning, labels, registry=registry)

        def counter(name: str, meaning: str, *labels: str) -> Counter:
            return Counter(f"shoal_scheduler_{name}", meaning, labels, registry=registry)

        def histogram(name: str, meaning: str, *labels: str) -> Histogram:
            return Histogram(f"shoal_scheduler_{name}", meaning, labels, registry=registry, buckets=_FAST_S)

        self.leader = gauge("leader", "1 while this instance leads, else 0.")
        self.term = gauge("term", "Term that this instance leads; 0 while it stands by.")
        self.plan_number = gauge("plan_number", "Number of the last commit that this instance knows.")
        self.pass_seconds = histogram("pass_seconds", "A pass: plan, audit, commit, fold.", "kind")
        self.plan_seconds = histogram("plan_seconds", "Planning and auditing alone.")
        self.commit_seconds = histogram("commit_seconds", "One commit, until its outcome was certain.")
        self.commit_retries = counter("commit_retries_total", "Batches sent again, by what the store said.", "why")
        self.depositions = counter("depositions_total", "Commits refused because another instance leads.")
        self.tombstones = counter("tombstones_total", "Tombstones for sessions of silent hosts, by outcome.", "outcome")
        self.writes = counter("writes_total", "Documents committed, the journal included.")
        self.audit_violations = counter("audit_violations_total", "Plans refused by the audit. Must stay 0.")
        self.held_pipelines = gauge("held_pipelines", "Pipelines kept as they are because the audit refused a plan.")
        self.kept = gauge(
            "kept", "Keys that go on as they were after an accident to a stream, or to many hosts. Must be 0.", "bucket"
        )
        self.full_pass_findings = counter(
            "full_pass_findings_total", "Full passes that found what no change had announced. Must stay 0."
        )
        self.events_dropped = counter("events_dropped_total", "Events that could not be appended to the history.")
        self.documents_unreadable = gauge(
            "documents_unreadable", "Stored documents that are not what their key says; they change nothing.", "bucket"
        )
        self.watch_lists = counter("watch_lists_total", "Complete lists read by the watches.", "bucket")
        self.watch_stalls = counter("watch_stalls_total", "Times a watch lost its source and listed anew.", "bucket")
        self.pulse_seconds = histogram("pulse_seconds", "From writing a pulse until it came back through the watch.")
        self.silence_seconds_max = gauge("silence_seconds_max", "Longest silence of any host, counted in pulses.")
        self.hosts = gauge("hosts", "Hosts by state; one that is cordoned or draining counts as that.", "state")
        self.executions = gauge("executions", "Executions by the phase that their agents report.", "phase")
        self.pipelines = gauge("pipelines", "Pipelines by the state that was decided.", "state")
        self.restarts = gauge("restarts", "Restarts of the executions that exist now, as their agents count them.")
        self.bundles_missing = gauge("bundles_missing", "Pinned versions whose bundle is not in the store.")

    def show(self, census: Census, problems: Iterable[tuple[Source, str]]) -> None:
        """Set the gauges about the cluster. `problems`: the keys whose documents cannot be read."""
        unreadable = Tally(source for source, _ in problems)
        for source in Source:
            self.documents_unreadable.labels(source.value).set(unreadable[source])
        for state in _HOST_STATES:
            self.hosts.labels(state).set(census.hosts.get(state, 0))
        for phase in Phase:
            self.executions.labels(phase.value).set(census.executions.get(phase.value, 0))
        for decided in State:
            self.pipelines.labels(decided.value).set(census.pipelines.get(decided.value, 0))
        self.restarts.set(census.restarts)


@dataclass(frozen=True, slots=True)
class Census:
    """What there is, counted."""

    hosts: Mapping[str, int]
    executions: Mapping[str, int]
    pipelines: Mapping[str, int]
    restarts: int


def census(view: View, policy: Policy) -> Census:
    """Count what `view` shows."""
    hosts: Tally[str] = Tally()
    for name, host in view.hosts.items():
        intent = view.host_intents.get(name)
        if intent is not None and intent.drain:
            hosts["draining"] += 1
        elif intent is not None and intent.cordon:
            hosts["cordoned"] += 1
        else:
            hosts["silent" if host.silence_s >= policy.silent_shareable_s else "alive"] += 1
    executions: Tally[str] = Tally()
    restarts = 0
    for report in view.reports.values():
        for observed in report.executions:
            executions[observed.phase.value] += 1
            restarts += observed.restarts
    pipelines = Tally(status.state.value for status in view.statuses.values())
    return Census(hosts, executions, pipelines, restarts)
