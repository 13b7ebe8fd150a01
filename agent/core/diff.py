"""The difference between what an agent was told and what its executor has: the next action for each execution.

    assigned, wants run      remove what has other bytes; fetch the bundle; start; start again after a delay
    assigned, wants pause    stop, keep what can be started again
    not assigned             remove: no trace may remain

What is lease-bound is started only under an assignment that answers the session that holds now, and is stopped when the
session under which it ran is over: its grant tells. What must not overlap and goes on through a partition is started
without a session, but only under an assignment that was made for this very agent on this boot: one for another agent
of the same host name says what runs there, and after a reboot an operator may have said that this host is dead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import assert_never

from agent.core import heal, restarts
from agent.core.grants import Verdict, judge
from agent.core.health import RunnerPhase, believed
from agent.core.restarts import NOTHING, SESSION_OVER, EndKind, Memory
from agent.core.situation import Action, Bundle, Decision, Fetch, Rebind, Remove, Situation, Start, Stop, Subject
from agent.executor import Found, Life, Spec
from runner.contract import FENCE_KILL_S
from shared.documents import Assigned, Observed, Session
from shared.states import Overlap, Phase, Wanted

UNCERTAIN = "the engine gave no answer when it was to be started; waiting for its list"
NOT_ADDRESSED = "waiting: the leader has not answered this agent on this boot yet, and another copy may run elsewhere"
NO_SESSION = "waiting: no heartbeat of this host has been acknowledged lately, so it may not run here"
STOP_GRACE_S = 30.0  # of an execution whose bundle is gone: Bento's default is 20 s and a margin


@dataclass(frozen=True, slots=True)
class _Look:
    """What is decided for one execution. `observed` None: no trace of it."""

    memory: Memory
    action: Action | None = None
    phase: Phase | None = None
    reason: str = ""
    wait_s: float | None = None


def diff(situation: Situation, memory: Mapping[str, Memory], now_s: float) -> Decision:
    """What to do next for every execution, what is observed of it, and what is to be remembered."""
    if situation.assignment is None:
        return Decision(actions=(), observed=(), memory=memory, wake_s=None)
    assigned = {item.execution: item for item in situation.assignment.executions}
    healing, heal_wait_s = _healing(situation, memory)
    names = assigned.keys() | situation.found.keys() | situation.busy.keys() | situation.uncertain.keys()
    actions: list[Action] = []
    observed: list[Observed] = []
    remembered: dict[str, Memory] = {}
    waits: list[float] = [] if heal_wait_s is None else [heal_wait_s]
    revoke = sorted(situation.granted.keys() - names)
    rebind: list[Rebind] = []
    applied = True
    for name in sorted(names):
        item = assigned.get(name)
        known = memory.get(name, NOTHING)
        look = _look(name, item, situation, known, now_s)
        if name in healing and look.action is None and look.phase in (Phase.RUNNING, Phase.READY):
            # Only what is wanted runs so.
            look = _heal(_subject(name, item, situation), look, known, healing[name], now_s)
        if look.phase is not None:
            subject = _subject(name, item, situation)
            observed.append(_observed(subject, look, situation.found.get(name)))
            remembered[name] = look.memory
        if look.action is not None:
            actions.append(look.action)
        if look.wait_s is not None:
            waits.append(look.wait_s)
        match judge(name, item, situation):
            case Verdict.REVOKE:
                revoke.append(name)
            case Verdict.REBIND:
                assert item is not None, "only what is wanted keeps a grant"
                rebind.append(Rebind(name, item.lease_bound, _store_id(name, situation)))
            case Verdict.LATER:
                applied = False
            case Verdict.KEEP:
                pass
    kept = restarts.trimmed(remembered)
    return Decision(
        actions=tuple(actions),
        revoke=tuple(revoke),
        rebind=tuple(rebind),
        applied=applied,
        observed=tuple(observed),
        memory=kept,
        wake_s=min(waits) if waits else None,
    )


def _look(name: str, item: Assigned | None, situation: Situation, memory: Memory, now_s: float) -> _Look:
    busy = situation.busy.get(name)
    found = situation.found.get(name)
    if item is None:
        return _unwanted(name, found, busy, situation, memory, now_s)
    if busy is not None:
        return _under_way(busy, memory, situation.problem)
    if found is not None and found.digest != item.digest:
        # Never a change of ours: an id stands for one digest. Another store may have given it out anew.
        return _removal(_subject(name, None, situation), situation, memory, now_s)
    match item.wanted:
        case Wanted.RUN:
            return _run(item, found, situation, memory, now_s)
        case Wanted.PAUSE:
            return _pause(item, found, situation, memory, now_s)
        case _:
            assert_never(item.wanted)


def _under_way(busy: Action, memory: Memory, problem: str) -> _Look:
    """`problem`: of an engine that does not answer, which is why it takes so long."""
    reason = memory.waiting.reason if memory.waiting else ""
    match busy:
        case Fetch():
            return _Look(memory, phase=Phase.FETCHING, reason=reason)
        case Start():
            return _Look(memory, phase=Phase.STARTING, reason=problem or reason)
        case Stop() | Remove():
            return _Look(memory, phase=Phase.STOPPING, reason=problem)
        case _:
            assert_never(busy)


def _unwanted(
    name: str, found: Found | None, busy: Action | None, situation: Situation, memory: Memory, now_s: float
) -> _Look:
    """Not in the list: gone, or to be removed."""
    if busy is not None and not isinstance(busy, Fetch):
        return _Look(memory, phase=Phase.STOPPING, reason=situation.problem)
    if found is None and name not in situation.uncertain:
        return _Look(NOTHING)  # a fetch that is under way leaves no trace of the execution
    if busy is not None:
        return _Look(memory, phase=Phase.STOPPING)
    if found is None:
        return _Look(memory, phase=Phase.STOPPING, reason=UNCERTAIN)
    return _removal(_subject(name, None, situation), situation, memory, now_s)


def _removal(subject: Subject, situation: Situation, memory: Memory, now_s: float) -> _Look:
    if (waiting := restarts.held(memory, "remove", now_s)) is not None:
        reason = f"waiting: {waiting.cause}: {waiting.reason}"
        return _Look(memory, phase=Phase.STOPPING, reason=reason, wait_s=waiting.until_s - now_s)
    grace_s = _grace(subject.digest, situation)
    if not memory.alive and memory.end is not None and memory.end.kind is EndKind.LEASE:
        grace_s = min(grace_s, FENCE_KILL_S)  # it may run elsewhere by now: killed, not drained
    return _Look(memory, action=Remove(subject, grace_s), phase=Phase.STOPPING)


def _pause(item: Assigned, found: Found | None, situation: Situation, memory: Memory, now_s: float) -> _Look:
    if found is None and item.execution in situation.uncertain:
        return _Look(memory, phase=Phase.STOPPING, reason=UNCERTAIN)
    if found is None or found.life is not Life.ALIVE:
        return _Look(restarts.rested(memory), phase=Phase.STOPPED)
    if (waiting := restarts.held(memory, "stop", now_s)) is not None:
        reason = f"waiting: {waiting.cause}: {waiting.reason}"
        return _Look(memory, phase=Phase.STOPPING, reason=reason, wait_s=waiting.until_s - now_s)
    subject = _subject(item.execution, item, situation)
    return _Look(memory, action=Stop(subject, item.stop_grace_s), phase=Phase.STOPPING)


def _run(item: Assigned, found: Found | None, situation: Situation, memory: Memory, now_s: float) -> _Look:
    if found is not None and found.life is Life.ALIVE:
        if item.lease_bound and item.execution not in situation.granted:
            return _fence(item, situation, memory, now_s)
        return _alive(found, situation, restarts.seen_alive(memory, now_s))
    if memory.alive and memory.healing:
        memory = restarts.stopped_to_heal(memory)
    elif memory.alive:
        end = restarts.classify(found, believed(found, situation.boot) if found else None)
        memory = restarts.ended(memory, end, _policy(item.digest, situation), now_s)
    if (waiting := restarts.held(memory, "start", now_s)) is not None:
        reason = f"waiting: {waiting.cause}: {waiting.reason}"
        return _Look(memory, phase=_HINDERED[waiting.cause], reason=reason, wait_s=waiting.until_s - now_s)
    if now_s < memory.not_before_s:
        return _backing_off(memory, now_s)
    if item.lease_bound and not situation.answered:
        return _Look(memory, phase=Phase.STARTING, reason=_unanswered(situation.session))
    if item.overlap is Overlap.EXCLUSIVE and not situation.addressed:
        return _Look(memory, phase=Phase.STARTING, reason=NOT_ADDRESSED)
    subject = _subject(item.execution, item, situation)
    bundle = situation.bundles.get(item.digest)
    if bundle is None:
        return _Look(memory, action=Fetch(subject), phase=Phase.FETCHING, reason=_why_again(memory))
    spec = _spec(item, bundle, situation)
    start = Start(subject, spec, item.lease_bound)
    return _Look(memory, action=start, phase=Phase.STARTING, reason=_why_again(memory))


def _fence(item: Assigned, situation: Situation, memory: Memory, now_s: float) -> _Look:
    """It runs, and the session under which it was started is over: killed, not drained. Its runner does it, too."""
    memory = restarts.fenced(memory)
    if (waiting := restarts.held(memory, "stop", now_s)) is not None:
        reason = f"waiting: {waiting.cause}: {waiting.reason}"
        return _Look(memory, phase=Phase.STOPPING, reason=reason, wait_s=waiting.until_s - now_s)
    stop = Stop(_subject(item.execution, item, situation), min(item.stop_grace_s, FENCE_KILL_S))
    return _Look(memory, action=stop, phase=Phase.STOPPING, reason=SESSION_OVER)


def _unanswered(session: Session | None) -> str:
    return NO_SESSION if session is None else f"waiting: the leader has not answered session {session} of this host yet"


def _alive(found: Found, situation: Situation, memory: Memory) -> _Look:
    health = believed(found, situation.boot)
    if health is None:
        return _Look(memory, phase=Phase.STARTING, reason="its runner has not reported yet")
    match health.phase:
        case RunnerPhase.FETCHING:
            return _Look(memory, phase=Phase.FETCHING, reason=health.reason)
        case RunnerPhase.STARTING:
            return _Look(memory, phase=Phase.STARTING, reason=health.reason)
        case RunnerPhase.RUNNING:
            return _Look(memory, phase=Phase.RUNNING, reason=health.reason or "Bento lives and is not ready yet")
        case RunnerPhase.READY:
            return _Look(memory, phase=Phase.READY)
        case RunnerPhase.STOPPING:
            return _Look(memory, phase=Phase.STOPPING, reason=health.reason)
        case RunnerPhase.EXITED:
            return _Look(memory, phase=Phase.BACKOFF, reason=health.reason or "Bento has ended")
        case _:
            assert_never(health.phase)


def _healing(situation: Situation, memory: Mapping[str, Memory]) -> tuple[Mapping[str, str], float | None]:
    """Whom to start again now because Bento has lost NATS for good, and why; when to look again."""
    stuck, well = {}, set()
    assert situation.assignment is not None
    bound = {item.execution for item in situation.assignment.executions if item.lease_bound}
    for name, found in situation.found.items():
        if name in bound and not situation.answered:
            continue  # it could not be started again
        health = believed(found, situation.boot) if found.life is Life.ALIVE else None
        if health is not None and health.stuck:
            stuck[name] = health.stuck
        elif found.life is Life.ALIVE and name not in situation.busy:
            well.add(name)
    under_way = frozenset(name for name, one in memory.items() if one.healing and name not in well)
    chosen = heal.choose(stuck, under_way, situation.reachable_s)
    return {name: stuck[name] for name in chosen}, heal.wait_s(bool(stuck), situation.reachable_s)


def _heal(subject: Subject, look: _Look, before: Memory, why: str, now_s: float) -> _Look:
    """Stop it; it is started again because it is wanted."""
    if (waiting := restarts.held(before, "stop", now_s)) is not None:
        return replace(look, memory=replace(look.memory, waiting=waiting), wait_s=waiting.until_s - now_s)
    return _Look(restarts.healing(look.memory), action=Stop(subject, heal.GRACE_S), phase=Phase.STOPPING, reason=why)


def _backing_off(memory: Memory, now_s: float) -> _Look:
    """It ended by itself, and it is not yet time to start it again."""
    assert memory.end is not None, "only an end delays a start"
    match memory.end.kind:
        case EndKind.CONFIGURATION:
            phase = Phase.FAILED
        case EndKind.LEASE:
            phase = Phase.STARTING
        case _:
            phase = Phase.BACKOFF
    return _Look(memory, phase=phase, reason=memory.end.reason, wait_s=memory.not_before_s - now_s)


# What is missing is on its way; what the host lacks is the start; only a configuration needs its owner.
_HINDERED = {
    "image": Phase.FETCHING,
    "bundle": Phase.FETCHING,
    "host": Phase.STARTING,
    "engine": Phase.STARTING,
    "configuration": Phase.FAILED,
}


def _why_again(memory: Memory) -> str:
    if memory.waiting is not None:
        return f"{memory.waiting.cause}: {memory.waiting.reason}"
    if memory.healing:
        return "its Bento had lost NATS for good"
    return memory.end.reason if memory.owed and memory.end is not None else ""


def _observed(subject: Subject, look: _Look, found: Found | None) -> Observed:
    assert look.phase is not None, "no trace of it is not observed"
    end = look.memory.end
    return Observed(
        execution=subject.execution,
        pipeline=subject.pipeline,
        slot=subject.slot,
        version=subject.version,
        digest=subject.digest,
        phase=look.phase,
        reason=look.reason,
        restarts=look.memory.restarts,
        healed=look.memory.healed,
        last_words=end.last_words if end else (),
        exit_code=end.exit_code if end else None,
        runtime=found.runtime if found else "",
    )


def _subject(name: str, item: Assigned | None, situation: Situation) -> Subject:
    """Who it is, from the first that knows: the assignment, the executor, the action under way."""
    known: Assigned | Found | Subject | None = item or situation.found.get(name)
    if known is None and name in situation.busy:
        known = situation.busy[name].subject
    if known is None:
        known = situation.uncertain[name]
    return Subject(execution=name, pipeline=known.pipeline, slot=known.slot, version=known.version, digest=known.digest)


def _store_id(name: str, situation: Situation) -> str:
    """Of an execution: what an older store has started goes on under its name."""
    assert situation.assignment is not None
    found = situation.found.get(name)
    return situation.assignment.store_id if found is None else found.store_id


def _grace(digest: str, situation: Situation) -> float:
    bundle = situation.bundles.get(digest)
    return bundle.runtime.stop_grace_s if bundle else STOP_GRACE_S


def _policy(digest: str, situation: Situation) -> restarts.Policy:
    bundle = situation.bundles.get(digest)
    if bundle is None:
        return restarts.Policy()
    runtime = bundle.runtime
    return restarts.Policy(
        delay_s=runtime.restart_delay_s,
        delay_max_s=runtime.restart_delay_max_s,
        reset_after_s=runtime.restart_reset_after_s,
    )


def _spec(item: Assigned, bundle: Bundle, situation: Situation) -> Spec:
    assert situation.assignment is not None
    runtime = bundle.runtime
    return Spec(
        execution=item.execution,
        store_id=_store_id(item.execution, situation),
        pipeline=item.pipeline,
        slot=item.slot,
        replicas=item.replicas,
        version=item.version,
        digest=item.digest,
        bundle=bundle.path,
        env=runtime.env,
        volumes=runtime.volumes,
        image=runtime.image,
        cpu=runtime.cpu,
        memory_bytes=runtime.memory_bytes,
        stop_grace_s=item.stop_grace_s,
        http=runtime.http,
    )
