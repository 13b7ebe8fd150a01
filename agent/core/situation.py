"""The words of an agent's decisions: what they depend on, the actions they consist of, what they say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from agent.core.restarts import Memory
from agent.executor import Found, Spec
from shared.bundle import Runtime
from shared.documents import Assignment, Observed, Session


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """Which execution is meant."""

    execution: str
    pipeline: str
    slot: int
    version: str
    digest: str


@dataclass(frozen=True, slots=True)
class Fetch:
    """Get the bundle from the store."""

    subject: Subject


@dataclass(frozen=True, slots=True)
class Start:
    """Create and start it, or start again what is kept of it. It needs a grant first, of the store in `spec`."""

    subject: Subject
    spec: Spec
    bound: bool


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop it and keep what can be started again."""

    subject: Subject
    grace_s: float


@dataclass(frozen=True, slots=True)
class Remove:
    """Stop it if needed and leave no trace."""

    subject: Subject
    grace_s: float


Action = Fetch | Start | Stop | Remove


@dataclass(frozen=True, slots=True)
class Rebind:
    """Rewrite the grant of what may be running in place: it has become lease-bound, or is no longer."""

    execution: str
    bound: bool
    store_id: str


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle that lies on this host."""

    path: str
    runtime: Runtime


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """All that a decision depends on.

    `found` is what the executor has, as far as we know: its last list, and what our own actions did since.
    `uncertain`: starts that got no answer and may still come true. The next list settles it; until then such an
    execution counts as there.
    `session`: the one that holds now; None while none does.
    `granted`: who has a grant, and whether it is bound. A bound one of a session that is over is none.
    """

    assignment: Assignment | None
    found: Mapping[str, Found]
    session: Session | None
    granted: Mapping[str, bool]
    uncertain: Mapping[str, Subject] = field(default_factory=dict)
    bundles: Mapping[str, Bundle] = field(default_factory=dict)  # by digest
    busy: Mapping[str, Action] = field(default_factory=dict)  # under way, by execution
    agent: str = ""  # our agent id
    boot: str = ""  # boot id of this machine
    reachable_s: float | None = None  # for how long the store has been reachable; None = it is not
    problem: str = ""  # why the executor does not say what it has now

    @property
    def answered(self) -> bool:
        """Whether the assignment was made for the session that holds now."""
        return self.assignment is not None and self.session is not None and self.assignment.session == self.session

    @property
    def addressed(self) -> bool:
        """Whether the assignment was made for this agent on this boot, whatever has become of its session since."""
        session = None if self.assignment is None else self.assignment.session
        return session is not None and (session.agent, session.boot) == (self.agent, self.boot)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What to do now and what to say. `wake_s`: decide again after so long even if nothing happens.

    `revoke`: whose grant must be gone, and `rebind`: what must be written, before `observed` is said. `applied`: then
    the host is as the assignment says, but for what `observed` shows.
    """

    actions: tuple[Action, ...]
    revoke: tuple[str, ...] = ()
    rebind: tuple[Rebind, ...] = ()
    applied: bool = True
    observed: tuple[Observed, ...]
    memory: Mapping[str, Memory]
    wake_s: float | None
