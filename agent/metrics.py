"""What an agent counts, each with its meaning. A registry of its own: two agents fit into one process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from agent.core.situation import Decision
from shared.errors import CannotStart, ExecutorUnavailable
from shared.states import Phase

_CALL_BUCKETS = (0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)


class AgentMetrics:
    """Label values are bounded: phases, kinds of calls and outcomes are closed lists."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self.registry = registry = CollectorRegistry()
        self.heartbeats = Counter(
            "shoal_agent_heartbeats", "Heartbeats sent, by what became of them.", ["outcome"], registry=registry
        )
        self.heartbeat_age = Gauge(
            "shoal_agent_heartbeat_age_seconds",
            "Time since a heartbeat was acknowledged; since the start before the first.",
            registry=registry,
        )
        self.sessions_ended = Counter(
            "shoal_agent_sessions_ended", "Sessions that ended: leases that ran out, names lost.", registry=registry
        )
        self.executions = Gauge("shoal_agent_executions", "Executions, by phase.", ["phase"], registry=registry)
        self.restarts = Gauge(
            "shoal_agent_execution_restarts",
            "Restarts after ending by themselves, of the executions that are here now.",
            registry=registry,
        )
        self.heals = Gauge(
            "shoal_agent_execution_heals",
            "Starts of the executions that are here now because Bento had lost NATS for good.",
            registry=registry,
        )
        self.plan = Gauge("shoal_agent_plan", "Number of the plan that was applied last.", registry=registry)
        self.refused = Counter(
            "shoal_agent_assignments_refused",
            "Assignments that were not obeyed: older, or of another store.",
            registry=registry,
        )
        self.passes = Histogram(
            "shoal_agent_pass_seconds",
            "Time to decide over all executions once.",
            registry=registry,
            buckets=(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1),
        )
        self.calls = Histogram(
            "shoal_agent_executor_call_seconds",
            "Time of calls to the executor, by call and outcome.",
            ["call", "outcome"],
            registry=registry,
            buckets=_CALL_BUCKETS,
        )
        self.reports = Counter(
            "shoal_agent_reports", "Reports written, by what became of them.", ["outcome"], registry=registry
        )

    @contextmanager
    def call(self, name: str) -> Iterator[None]:
        """Time one call to the executor."""
        begun, outcome = self._monotonic(), "cancelled"
        try:
            yield
            outcome = "ok"
        except ExecutorUnavailable:
            outcome = "unavailable"
            raise
        except CannotStart:
            outcome = "refused"
            raise
        finally:
            self.calls.labels(call=name, outcome=outcome).observe(self._monotonic() - begun)

    def decided(self, decision: Decision) -> None:
        """Show what a pass has found."""
        counts = dict.fromkeys(Phase, 0)
        for item in decision.observed:
            counts[item.phase] += 1
        for phase, count in counts.items():
            self.executions.labels(phase=phase.value).set(count)
        self.restarts.set(sum(item.restarts for item in decision.observed))
        self.heals.set(sum(item.healed for item in decision.observed))
