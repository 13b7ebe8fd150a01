"""What always holds of an agent's decisions, over generated hosts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core.diff import diff
from agent.core.inventory import Inventory, done, failed, listed
from agent.core.restarts import NOTHING, End, EndKind, Memory, Waiting
from agent.core.situation import Action, Bundle, Fetch, Remove, Situation, Start, Stop, Subject
from agent.executor import Found, Life
from shared.bundle import Runtime
from shared.documents import Assigned, Assignment, Session
from shared.states import Overlap, Phase, Wanted

NOW_S = 500.0
NAMES = tuple(f"p{number}-0-1" for number in range(5))
PIPELINE = {name: name.partition("-")[0] for name in NAMES}
DIGESTS = ("d1", "d2")
BOOT = "boot"
SESSION = Session("a", BOOT, 2)

instants = st.sampled_from([0.0, 100.0, NOW_S - 1, NOW_S, NOW_S + 1, NOW_S + 30])
ends = st.builds(End, kind=st.sampled_from(EndKind), reason=st.just("why"))
waits = st.builds(
    Waiting,
    doing=st.sampled_from(["start", "stop", "remove"]),
    cause=st.sampled_from(["image", "configuration", "host", "bundle", "engine"]),
    reason=st.just("why"),
    attempts=st.integers(1, 9),
    until_s=instants,
)
memories = st.one_of(
    st.just(NOTHING),
    st.builds(Memory, alive=st.just(True), since_s=instants, restarts=st.integers(0, 5), waiting=st.none() | waits),
    st.builds(
        Memory,
        owed=st.just(True),
        end=ends,
        delay_s=st.sampled_from([1.0, 4.0]),
        not_before_s=instants,
        waiting=st.none() | waits,
    ),
)
healths = st.builds(
    lambda phase, boot, pid: {"phase": phase, "boot_id": boot, "runner_pid": pid},
    st.sampled_from(["fetching", "starting", "running", "ready", "stopping", "exited", "?"]),
    st.sampled_from([BOOT, "another"]),
    st.sampled_from([7, 8]),
)


def runtime() -> Runtime:
    return Runtime(
        pipeline="p", version="1", env={}, volumes=(), image="", cpu=None, memory_bytes=None, restart_delay_s=1.0,
        restart_delay_max_s=8.0, restart_reset_after_s=60.0, stop_grace_s=5.0, http="auto", config_digest="c",
    )  # fmt: skip


def assigned(name: str, digest: str, wanted: Wanted, bound: bool) -> Assigned:
    return Assigned(
        execution=name, pipeline=PIPELINE[name], slot=0, replicas=1, version="1", digest=digest, wanted=wanted,
        overlap=Overlap.EXCLUSIVE, lease_bound=bound, stop_grace_s=5.0, cpu=0.0, memory_bytes=0,
    )  # fmt: skip


def subject(name: str, digest: str) -> Subject:
    return Subject(execution=name, pipeline=PIPELINE[name], slot=0, version="1", digest=digest)


def found(name: str, digest: str, life: Life, health: Mapping[str, object]) -> Found:
    return Found(
        execution=name, store_id="s", pipeline=PIPELINE[name], slot=0, version="1", digest=digest, life=life,
        runtime="7", exit_code=None if life is Life.ALIVE else 1, health=health,
    )  # fmt: skip


@st.composite
def hosts(draw: st.DrawFn) -> tuple[Situation, dict[str, Memory]]:
    items = {
        name: assigned(name, draw(st.sampled_from(DIGESTS)), draw(st.sampled_from(Wanted)), draw(st.booleans()))
        for name in draw(st.sets(st.sampled_from(NAMES)))
    }
    here = {
        name: found(name, draw(st.sampled_from(DIGESTS)), draw(st.sampled_from(Life)), draw(st.just({}) | healths))
        for name in draw(st.sets(st.sampled_from(NAMES)))
    }
    busy: dict[str, Action] = {}
    for name in draw(st.sets(st.sampled_from(NAMES), max_size=2)):
        who = subject(name, draw(st.sampled_from(DIGESTS)))
        actions: list[Action] = [Fetch(who), Stop(who, 5.0), Remove(who, 5.0)]
        busy[name] = draw(st.sampled_from(actions))
    document = Assignment(
        store_id="s",
        term=1,
        plan=1,
        host="h",
        session=draw(st.sampled_from([SESSION, replace(SESSION, number=1), None])),
        executions=tuple(items[name] for name in sorted(items)),
    )
    situation = Situation(
        assignment=draw(st.just(document) | st.none()) if draw(st.booleans()) else document,
        found=here,
        session=draw(st.sampled_from([SESSION, None])),
        granted={name: draw(st.booleans()) for name in draw(st.sets(st.sampled_from(NAMES)))},
        uncertain={
            name: subject(name, "d1") for name in draw(st.sets(st.sampled_from(NAMES), max_size=2)) - here.keys()
        },
        bundles={digest: Bundle(f"/b/{digest}", runtime()) for digest in draw(st.sets(st.sampled_from(DIGESTS)))},
        busy=busy,
        agent=SESSION.agent,
        boot=BOOT,
    )
    return situation, {name: draw(memories) for name in draw(st.sets(st.sampled_from(NAMES)))}


def wanted(situation: Situation) -> dict[str, Assigned]:
    assert situation.assignment is not None
    return {item.execution: item for item in situation.assignment.executions}


@given(hosts())
def test_at_most_one_action_for_each_execution_and_none_while_one_is_under_way(
    host: tuple[Situation, dict[str, Memory]],
) -> None:
    situation, memory = host
    names = [action.subject.execution for action in diff(situation, memory, NOW_S).actions]
    assert len(names) == len(set(names))
    assert not set(names) & situation.busy.keys()


@given(hosts())
def test_without_a_document_nothing_is_touched(host: tuple[Situation, dict[str, Memory]]) -> None:
    situation, memory = host
    decision = diff(replace(situation, assignment=None), memory, NOW_S)
    assert decision.actions == ()
    assert decision.memory == memory


@given(hosts())
def test_actions_fit_what_is_wanted(host: tuple[Situation, dict[str, Memory]]) -> None:
    situation, memory = host
    if situation.assignment is None:
        return
    items = wanted(situation)
    for action in diff(situation, memory, NOW_S).actions:
        name = action.subject.execution
        item, here = items.get(name), situation.found.get(name)
        match action:
            case Remove():
                assert item is None or (here is not None and here.digest != item.digest), "never what is listed"
                assert here is not None, "only what is there"
            case Stop():
                assert item is not None
                assert item.wanted is Wanted.PAUSE or (item.lease_bound and name not in situation.granted)
                assert item.wanted is Wanted.PAUSE or action.grace_s <= 2.0, "killed, not drained"
                assert here is not None
                assert here.life is Life.ALIVE
            case Fetch():
                assert item is not None
                assert item.wanted is Wanted.RUN
                assert item.digest not in situation.bundles
            case Start():
                assert item is not None
                assert item.wanted is Wanted.RUN
                assert here is None or here.life is not Life.ALIVE
                assert action.spec.digest == item.digest
                assert action.spec.bundle == situation.bundles[item.digest].path
                assert action.bound is item.lease_bound
                assert not item.lease_bound or situation.session == situation.assignment.session == SESSION


@given(hosts())
def test_grants_are_left_for_what_is_wanted_running_only_and_as_it_is_wanted(
    host: tuple[Situation, dict[str, Memory]],
) -> None:
    situation, memory = host
    if situation.assignment is None:
        return
    decision, items = diff(situation, memory, NOW_S), wanted(situation)
    rebound = {one.execution: one.bound for one in decision.rebind}
    assert not rebound.keys() & set(decision.revoke)
    left = {name: bound for name, bound in situation.granted.items() if name not in decision.revoke} | rebound
    assert rebound.keys() <= situation.granted.keys(), "never a grant where there is none"
    for name, bound in left.items():
        item = items[name]
        assert item.wanted is Wanted.RUN
        assert bound is item.lease_bound or not decision.applied
        assert name not in rebound or not bound or situation.session == situation.assignment.session == SESSION
    for one in decision.observed:
        assert one.phase is not Phase.STOPPED or one.execution not in left


@given(hosts())
def test_what_may_be_there_is_listed_and_what_is_listed_may_be_there(
    host: tuple[Situation, dict[str, Memory]],
) -> None:
    """A report confirms a stop by not listing it: so nothing that may run is ever left out."""
    situation, memory = host
    if situation.assignment is None:
        return
    shown = {one.execution for one in diff(situation, memory, NOW_S).observed}
    under_way = {name for name, action in situation.busy.items() if not isinstance(action, Fetch)}
    assert shown == wanted(situation).keys() | situation.found.keys() | situation.uncertain.keys() | under_way


@given(hosts())
def test_nothing_is_shown_as_running_that_is_not(host: tuple[Situation, dict[str, Memory]]) -> None:
    situation, memory = host
    for one in diff(situation, memory, NOW_S).observed:
        if one.phase in (Phase.RUNNING, Phase.READY):
            here = situation.found[one.execution]
            assert here.life is Life.ALIVE
            assert here.health["boot_id"] == BOOT
            assert here.health["runner_pid"] == 7
            assert here.health["phase"] == one.phase.value
        elif one.phase not in (Phase.STOPPED, Phase.READY):
            assert one.reason or one.phase in (Phase.FETCHING, Phase.STARTING, Phase.STOPPING), "people are told why"


@given(hosts())
def test_deciding_again_at_the_same_instant_decides_the_same(host: tuple[Situation, dict[str, Memory]]) -> None:
    situation, memory = host
    first = diff(situation, memory, NOW_S)
    second = diff(situation, first.memory, NOW_S)
    assert second == first


@settings(max_examples=200)
@given(hosts(), st.data())
def test_a_working_executor_gets_there_and_then_nothing_is_left_to_do(
    host: tuple[Situation, dict[str, Memory]], data: st.DataObject
) -> None:
    """Whatever the host was like: after finitely many passes it is as it was told, and stays so."""
    situation, memory = host
    if situation.assignment is None:
        return
    situation = replace(situation, assignment=replace(situation.assignment, session=SESSION), session=SESSION)
    now_s, remembered = NOW_S, dict(memory)
    granted = dict(situation.granted)
    inventory = Inventory(found=situation.found, uncertain=situation.uncertain)
    bundles = dict(situation.bundles)
    for action in situation.busy.values():  # what was under way fails, without a known effect
        inventory = failed(inventory, action, known=False)
    for _ in range(12):
        here = Situation(
            assignment=situation.assignment, found=inventory.found, uncertain=inventory.uncertain, bundles=bundles,
            agent=SESSION.agent, boot=BOOT, session=SESSION, granted=granted,
        )  # fmt: skip
        decision = diff(here, remembered, now_s)
        remembered = dict(decision.memory)
        granted = {name: bound for name, bound in granted.items() if name not in decision.revoke}
        granted |= {one.execution: one.bound for one in decision.rebind}
        if not decision.actions and decision.wake_s is None and not inventory.uncertain:
            break
        for action in decision.actions:
            match action:
                case Fetch():
                    bundles[action.subject.digest] = Bundle(f"/b/{action.subject.digest}", runtime())
                case Start():
                    granted[action.subject.execution] = action.bound
                case Stop() | Remove():
                    granted.pop(action.subject.execution, None)
            inventory = done(inventory, action)
        inventory = listed(inventory, inventory.found.values(), asked=inventory.number, busy=())
        now_s += decision.wake_s or 0.0
    else:
        raise AssertionError("it does not come to rest")
    items = wanted(situation)
    assert inventory.found.keys() <= items.keys()
    assert inventory.uncertain == {}
    for name, item in items.items():
        now = inventory.found.get(name)
        assert now is None or now.digest == item.digest
        assert (now is not None and now.life is Life.ALIVE) is (item.wanted is Wanted.RUN)
        assert not item.lease_bound or granted.get(name, False) is (item.wanted is Wanted.RUN)
    again = diff(replace(here, granted=granted), remembered, now_s)
    assert again.actions == ()
    assert (again.revoke, again.rebind, again.applied) == ((), (), True)
    assert (again.observed, again.memory, again.wake_s) == (decision.observed, decision.memory, decision.wake_s)
