"""Rules of the planner that hold for every cluster: random users, operators, hosts and agents, then a check.

A run is a list of events and passes. Whatever happens, the audit finds nothing, no exclusive slot has two executions
that may run, planning again gives nothing, and the same view gives the same bytes. When the events stop and the agents
have done what they were told, everything that can be placed runs, and refusals name every host.
"""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scheduler.core.filters import need_of
from scheduler.core.goals import Run, resolve
from scheduler.core.liveness import Liveness, liveness
from scheduler.core.placement import Seats
from scheduler.core.plan import plan
from scheduler.core.sheets import Draft
from scheduler.core.view import Plan, Policy, Scope
from shared.documents import REFUSALS_MAX, Assigned, Driver, Session, encode
from shared.ids import parse_execution
from shared.states import Overlap, Phase, State, Wanted
from tests.support.clusters import GIB, Cluster

HOSTS = ("h1", "h2", "h3", "h4")
PIPELINES = ("alpha", "beta", "gamma", "delta")
EXCLUSIVE = {"beta", "delta"}
SHARDED = {"delta"}  # overlap "forbid": several slots, each exclusive by itself

RUNS = settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)

hosts = st.sampled_from(HOSTS)
pipelines = st.sampled_from(PIPELINES)
placements = st.sampled_from(
    [
        {},
        {"required": {"zone": "a"}},
        {"required": {"zone": ["a", "b"]}, "spread": "zone"},
        {"preferred": {"zone": "b"}},
        {"required": {"host": "h2"}},
        {"spread": "zone"},
    ]
)
memory = st.sampled_from(["64MiB", "1GiB", "3GiB"])
events = st.one_of(
    st.tuples(st.just("publish"), pipelines, st.sampled_from("123"), st.integers(0, 4), placements, memory),
    st.tuples(st.just("status"), pipelines, st.sampled_from(["published", "paused", "draft"])),
    st.tuples(st.just("replicas"), pipelines, st.integers(0, 5)),
    st.tuples(st.just("placement"), pipelines, placements),
    st.tuples(st.just("partition"), pipelines, st.sampled_from(["auto", "stop", "continue"])),
    st.tuples(st.just("delete"), pipelines),
    st.tuples(st.just("invalid"), pipelines),
    st.tuples(st.just("restart"), pipelines),
    st.tuples(st.just("breaks"), pipelines, st.sampled_from("123")),
    st.tuples(st.just("down"), hosts),
    st.tuples(st.just("up"), hosts, st.sampled_from(["same", "lapse", "boot", "agent"])),
    st.tuples(st.just("intent"), hosts, st.sampled_from(["", "cordon", "drain", "forget", "confirm_dead"])),
    st.tuples(st.just("zone"), hosts, st.sampled_from("ab")),
    st.tuples(st.just("stuck"), hosts, st.booleans()),
    st.tuples(st.just("time"), st.sampled_from([1.0, 5.0, 13.0])),
    st.tuples(st.just("pass")),
    st.tuples(st.just("pass")),
)
histories = st.lists(events, min_size=3, max_size=25)


def new_cluster(lag: bool) -> Cluster:
    cluster = Cluster(lag=lag)
    for number, name in enumerate(HOSTS):
        cluster.host(name, labels={"zone": "ab"[number % 2]}, memory_bytes=4 * GIB)
    return cluster


def happen(cluster: Cluster, event: tuple[Any, ...]) -> None:
    match event:
        case ("publish", name, version, replicas, placement, size):
            derived = Overlap.EXCLUSIVE if name in EXCLUSIVE else Overlap.SHAREABLE
            fields = {"replicas": replicas, "placement": placement, "resources": {"memory": size}}
            fields |= {"overlap": "forbid"} if name in SHARDED else {}
            cluster.publish(name, version, derived=derived, **fields)
        case ("status", name, status) if name in cluster.records:
            cluster.edit(name, status=status)
        case ("replicas", name, count) if name in cluster.records:
            cluster.edit(name, replicas=count)
        case ("placement", name, placement) if name in cluster.records:
            cluster.edit(name, placement=placement)
        case ("partition", name, policy) if name in cluster.records:
            cluster.edit(name, on_partition=policy)
        case ("delete", name):
            cluster.delete(name)
        case ("invalid", name):
            cluster.put(name, b'{"id": "x", "status": "runing"}')
        case ("restart", name):
            cluster.restart(name)
        case ("breaks", name, version):
            cluster.broken ^= {(name, version)}
        case ("down", host):
            cluster.down(host)
        case ("up", host, how) if not cluster.machines[host].up:
            comes_back(cluster, host, how)
        case ("intent", host, word):
            cluster.intend(host, **({word: True} if word else {}))
        case ("zone", host, zone) if cluster.machines[host].up:
            cluster.relabel(host, labels={"zone": zone})
        case ("stuck", host, stuck):
            cluster.machines[host].reporting = not stuck
        case ("time", seconds):
            cluster.pass_time(seconds)
        case ("pass",):
            one_pass(cluster)
        case _:
            pass  # an edit of what was never published, a return of what is there


def comes_back(cluster: Cluster, host: str, how: str) -> None:
    now = cluster.machines[host].heartbeat.session
    match how:
        case "lapse":
            cluster.up(host, session=Session(now.agent, now.boot, now.number + 1))
        case "boot":
            cluster.up(host, session=Session(now.agent, now.boot + "x", 1), kept=False)
        case "agent":
            cluster.up(host, session=Session(now.agent + "x", now.boot, 1), kept=False)
        case _:
            cluster.up(host)


def one_pass(cluster: Cluster) -> None:
    """Plan over what changed, compare with a plan over everything, commit, check, let the agents act."""
    scope = cluster.world.take_scope()
    made = cluster.plan(scope)
    assert document_bytes(made) == document_bytes(plan(cluster.view, cluster.policy, scope)), "not deterministic"
    full = cluster.plan(None)
    assert document_bytes(made) == document_bytes(full), "the scope missed something"
    cluster.commit(made)
    check_never_twice(cluster)
    again = cluster.plan(None)
    assert again.empty, again.documents()
    assert again.tombstones == full.tombstones, "asked for until it is there"
    cluster.bury(full)
    for host in HOSTS:
        cluster.act(host)


def document_bytes(made: Plan) -> list[tuple[int, str, bytes | None]]:
    parts = [made, *made.then]
    return [
        (part.number, key, None if document is None else encode(document))
        for part in parts
        for key, document in part.documents()
    ]


def check_never_twice(cluster: Cluster) -> None:
    """No exclusive slot has two executions of which both may run."""
    view = cluster.view
    for name in EXCLUSIVE:
        by_slot: dict[int, list[tuple[str, Any]]] = {}
        for place in view.places.get(name, ()):
            by_slot.setdefault(place.item.slot, []).append((place.host, place.item))
        for found in by_slot.values():
            live = [(host, item) for host, item in found if isinstance(item, Assigned)]
            assert len(live) <= 1, live
            newest = max((serial(item) for _, item in live), default=0)
            for host, item in found:
                if live and not isinstance(item, Assigned):  # placed elsewhere while that host had been silent
                    lost = liveness(view, cluster.policy, host) is not Liveness.ALIVE
                    assert lost or serial(item) < newest


def serial(item: Any) -> int:
    return parse_execution(item.execution).serial


@RUNS
@given(histories, st.booleans())
def test_every_history_is_planned_safely_and_comes_to_rest(history: list[tuple[Any, ...]], lag: bool) -> None:
    play_out(history, lag)


def play_out(history: list[tuple[Any, ...]], lag: bool) -> None:
    """A history, planned and checked at every step, until the cluster comes to rest."""
    cluster = new_cluster(lag)
    for event in history:
        happen(cluster, event)
    for host in HOSTS:
        cluster.machines[host].reporting = True
    cluster.pass_time(60.0)
    cluster.settle(steps=200)
    one_pass(cluster)
    check_never_twice(cluster)
    check_placed_where_it_fits(cluster)
    check_statuses(cluster)


def check_placed_where_it_fits(cluster: Cluster) -> None:
    """Every published slot runs, unless no host takes it or its exclusive predecessor is not confirmed."""
    view = cluster.view
    for name in PIPELINES:
        goal = resolve(view, cluster.policy, name)
        if not isinstance(goal.wish, Run):
            continue
        places = cluster.places(name)
        missing = [slot for slot in range(goal.wish.replicas) if slot not in places]
        halting = {place.item.slot for place in view.places.get(name, ()) if not isinstance(place.item, Assigned)}
        open_slots = [slot for slot in missing if slot not in halting]
        if open_slots:
            seats = Seats(Draft(view, cluster.policy))
            need = need_of(goal.wish.record, goal.wish.pin)
            assert not any(seat.has_room(need) and seats.will_do(need, seat) for seat in seats.every())
            status = cluster.status(name)
            assert status.state in (State.WAITING, State.FAILING)
            assert status.refused_hosts == len(HOSTS)
            assert {refusal.host for refusal in status.refusals} == set(HOSTS[:REFUSALS_MAX])
            assert all(refusal.reasons for refusal in status.refusals)


def check_statuses(cluster: Cluster) -> None:
    """Nothing is shown as running that is not; what is gone has no status."""
    view = cluster.view
    for name, status in view.statuses.items():
        places = {place.item.execution: place for place in view.places.get(name, ())}
        for row in status.slots:
            if row.phase == Phase.READY:
                assert cluster.machines[row.host].up
                assert cluster.machines[row.host].phases[row.execution] is Phase.READY
                item = places[row.execution].item
                assert isinstance(item, Assigned)
                assert item.wanted is Wanted.RUN
    for name in view.places:
        assert name in view.statuses


@settings(RUNS, max_examples=30)
@given(histories, st.sampled_from(["host", "pipeline", "label", "cordon"]))
def test_nothing_moves_when_something_unrelated_changes(history: list[tuple[Any, ...]], what: str) -> None:
    cluster = new_cluster(lag=False)
    for event in history:
        happen(cluster, event)
    for host in HOSTS:
        cluster.intend(host)
        if not cluster.machines[host].up:
            cluster.up(host)
        cluster.machines[host].reporting = True
    cluster.broken.clear()
    cluster.pass_time(60.0)
    cluster.settle(steps=200)
    before = {name: cluster.places(name) for name in PIPELINES if cluster.places(name)}
    match what:
        case "host":
            cluster.host("h9", labels={"zone": "b"})
        case "pipeline":
            cluster.publish("other", replicas=3)
        case "label":
            cluster.relabel("h1", labels={**cluster.machines["h1"].heartbeat.labels, "rack": "7"})
        case _:
            cluster.intend("h1", cordon=True)
    cluster.settle(steps=200)
    for name, slots in before.items():
        now = cluster.places(name)
        assert {slot: now.get(slot) for slot in slots} == slots


@settings(RUNS, max_examples=25)
@given(
    st.lists(st.tuples(st.integers(1, 9), placements, memory), min_size=1, max_size=12),
    st.integers(3, 12),
    st.integers(3, 9),
)
def test_plans_are_cut_into_commits_that_fit(
    wanted: list[tuple[int, dict[str, Any], str]], writes_max: int, hosts_count: int
) -> None:
    cluster = Cluster(Policy(writes_max=writes_max))
    for number in range(hosts_count):
        cluster.host(f"m{number}", labels={"zone": "ab"[number % 2]})
    for number, (replicas, placement, size) in enumerate(wanted):
        cluster.publish(f"p{number}", replicas=replicas, placement=placement, resources={"memory": size})
    made = cluster.plan()
    documents = [key for part in (made, *made.then) for key, _ in part.documents()]
    assert len(documents) == len(set(documents)), "each document is written once, however many commits it takes"
    assert all(1 + len(part.documents()) <= writes_max for part in (made, *made.then))
    cluster.commit(made)
    assert cluster.plan().empty
    cluster.settle(steps=100)
    for number in range(len(wanted)):
        if number % 2:
            cluster.edit(f"p{number}", status="draft")
        else:
            cluster.delete(f"p{number}")
    cluster.settle(steps=300)
    assert not cluster.view.places
    assert not cluster.view.statuses


@settings(RUNS, max_examples=20)
@given(histories)
def test_a_host_that_says_nothing_new_changes_nothing(history: list[tuple[Any, ...]]) -> None:
    cluster = new_cluster(lag=False)
    for event in history:
        happen(cluster, event)
    cluster.settle(steps=200)
    cluster.world.take_scope()
    for machine in cluster.machines.values():
        machine.heartbeat = machine.heartbeat  # a beat with the same word under a new revision
    cluster.beat()
    quiet = all(
        cluster.view.assignments[host].session == machine.heartbeat.session
        for host, machine in cluster.machines.items()
        if host in cluster.view.assignments
    )
    scope = cluster.world.take_scope()
    if quiet and all(host in cluster.view.assignments for host in cluster.machines):
        assert scope == Scope()
    assert cluster.plan(scope).empty


def test_driver_words_are_part_of_a_heartbeat() -> None:
    cluster = new_cluster(lag=False)
    cluster.publish("alpha")
    cluster.settle()
    cluster.world.take_scope()
    cluster.relabel("h1", drivers={"process": Driver(False, "no space left")})
    assert cluster.world.take_scope().hosts == {"h1"}
