"""What a plan does, scenario by scenario: the public contract, and the moves."""

from __future__ import annotations

from typing import Any

import pytest

from scheduler.core.candidates import Rejected, Unavailable
from scheduler.core.view import Policy
from scheduler.core.world import Source
from shared.documents import Assigned, InputMark, Status, Stopping, encode
from shared.intents import RestartIntent
from shared.keys import restart_intent_key
from shared.states import Overlap, Phase, State, Wanted
from shared.store import Change, Entry, Listing, Mark
from tests.support.clusters import Cluster


def cluster_of(hosts: int = 3, **options: Any) -> Cluster:
    cluster = Cluster(**options)
    for number in range(1, hosts + 1):
        cluster.host(f"h{number}", labels={"zone": "ab"[number % 2]})
    return cluster


def stops(cluster: Cluster, name: str) -> list[tuple[str, Stopping]]:
    places = cluster.view.places.get(name, ())
    return [(place.host, place.item) for place in places if isinstance(place.item, Stopping)]


def executions(cluster: Cluster, name: str) -> list[str]:
    places = cluster.view.places.get(name, ())
    return [place.item.execution for place in places if isinstance(place.item, Assigned)]


# --- published, paused, draft, deleted


def test_published_runs_on_as_many_hosts_as_it_has_slots() -> None:
    cluster = cluster_of()
    cluster.publish("orders", replicas=3)
    cluster.settle()
    assert cluster.running("orders") == {0: "h1", 1: "h2", 2: "h3"}
    status = cluster.status("orders")
    assert (status.state, status.version, status.wanted) == (State.RUNNING, "1", "published")
    assert [row.phase for row in status.slots] == ["ready", "ready", "ready"]
    assert cluster.item("orders", 1).execution == "orders-1-1"


def test_the_pin_is_written_with_the_plan_that_places_it() -> None:
    cluster = cluster_of()
    cluster.publish("orders")
    made = cluster.plan()
    pin = made.pins["orders", "1"]
    assert pin is not None
    assert (pin.store_id, pin.term, pin.plan) == (cluster.view.store_id, cluster.view.term, made.number)
    assert next(key for key, _ in made.documents()) == "version.orders.1"


def test_paused_keeps_its_executions_where_they_are() -> None:
    cluster = cluster_of()
    cluster.publish("orders", replicas=2)
    cluster.settle()
    before = executions(cluster, "orders")
    cluster.edit("orders", status="paused")
    cluster.commit(cluster.plan())
    assert cluster.status("orders").state is State.PAUSING, "wanted stopped is not stopped"
    cluster.settle()
    assert cluster.status("orders").state is State.PAUSED
    assert executions(cluster, "orders") == before
    assert cluster.item("orders").wanted is Wanted.PAUSE
    cluster.edit("orders", status="published")
    cluster.settle()
    assert cluster.status("orders").state is State.RUNNING
    assert executions(cluster, "orders") == before


def test_first_seen_paused_is_admitted_and_not_placed() -> None:
    cluster = cluster_of()
    cluster.publish("orders", status="paused")
    cluster.settle()
    assert ("orders", "1") in cluster.view.pins
    assert not cluster.places("orders")
    assert cluster.status("orders").state is State.PAUSED
    assert cluster.status("orders").reason == "admitted; nothing of it is on any host"


@pytest.mark.parametrize("derived", list(Overlap))
def test_a_new_version_while_paused_replaces_on_publishing(derived: Overlap) -> None:
    cluster = cluster_of()
    cluster.publish("orders", derived=derived)
    cluster.settle()
    cluster.edit("orders", status="paused")
    cluster.settle()
    cluster.publish("orders", "2", derived=derived, status="paused")
    cluster.settle()
    assert ("orders", "2") in cluster.view.pins
    assert cluster.item("orders").version == "1"
    cluster.edit("orders", status="published")
    cluster.settle()
    assert cluster.item("orders").version == "2"
    assert cluster.running("orders") == {0: "h1"}
    assert cluster.status("orders").state is State.RUNNING


def test_paused_on_a_lost_host_stays_and_is_placed_elsewhere_on_publishing() -> None:
    cluster = cluster_of()
    cluster.publish("orders")
    cluster.settle()
    cluster.edit("orders", status="paused")
    cluster.settle()
    cluster.down("h1", 100.0)
    cluster.settle()
    assert cluster.running("orders") == {0: "h1"}
    cluster.edit("orders", status="published")
    cluster.settle()
    assert cluster.running("orders") == {0: "h2"}


def test_paused_on_a_draining_host_is_removed_from_it() -> None:
    cluster = cluster_of()
    cluster.publish("orders")
    cluster.settle()
    cluster.edit("orders", status="paused")
    cluster.settle()
    cluster.intend("h1", drain=True)
    cluster.settle()
    assert not cluster.view.places.get("orders")
    assert cluster.status("orders").state is State.PAUSED


def test_draft_removes_every_trace_and_keeps_the_pins() -> None:
    cluster = cluster_of(lag=True)
    cluster.publish("orders", replicas=2)
    cluster.settle()
    cluster.edit("orders", status="draft")
    cluster.commit(cluster.plan())
    assert cluster.status("orders").state is State.REMOVING
    assert len(stops(cluster, "orders")) == 2
    cluster.settle()
    assert "orders" not in cluster.view.statuses
    assert not cluster.view.places
    assert ("orders", "1") in cluster.view.pins


def test_a_deleted_record_forgets_its_pins_at_once() -> None:
    cluster = cluster_of(lag=True)
    cluster.publish("orders")
    cluster.settle()
    cluster.delete("orders")
    cluster.commit(cluster.plan())
    assert not cluster.view.pins
    assert cluster.status("orders").state is State.REMOVING
    cluster.settle()
    assert not cluster.view.statuses


def test_rolling_back_is_publishing_an_older_version() -> None:
    cluster = cluster_of()
    for version in ("1", "2", "1"):
        cluster.publish("orders", version)
        cluster.settle()
        assert cluster.item("orders").version == version
        assert cluster.status("orders").version == version


# --- versions, invalid input


def test_the_newest_record_is_wrong_so_the_last_good_one_stays_in_force() -> None:
    cluster = cluster_of()
    cluster.publish("orders")
    cluster.settle()
    cluster.put("orders", b'{"id": "orders", "statos": "published", "version": "2"}')
    cluster.settle()
    status = cluster.status("orders")
    assert status.state is State.RUNNING
    assert any("statos" in problem and "status" in problem for problem in status.problems)
    assert "version '1' goes on" in status.reason
    cluster.down("h1", 60.0)
    cluster.settle()
    assert cluster.running("orders") == {0: "h2"}, "the last good record still decides"


def test_never_a_good_record_and_nothing_runs_is_refused() -> None:
    cluster = cluster_of()
    cluster.put("orders", b"not json")
    cluster.settle()
    status = cluster.status("orders")
    assert status.state is State.REFUSED
    assert "record" in status.problems[0]
    cluster.put("orders", None)
    cluster.settle()
    assert not cluster.view.statuses


def test_a_rejected_version_leaves_the_last_good_one_running_under_the_new_fields() -> None:
    cluster = cluster_of()
    cluster.publish("orders")
    cluster.settle()
    cluster.publish("orders", "2", candidate=Rejected(("input.kafka is wrong: use kafka_franz",)), replicas=2)
    cluster.settle()
    assert {item.version for item in (cluster.item("orders", 0), cluster.item("orders", 1))} == {"1"}
    status = cluster.status("orders")
    assert status.version == "1"
    assert status.problems == ("input.kafka is wrong: use kafka_franz",)


@pytest.mark.parametrize(
    ("candidate", "state", "problems"),
    [
        (Rejected(("no such input",)), State.REFUSED, ("no such input",)),
        (Unavailable("object orders/1 is missing", missing=True), State.WAITING, ("object orders/1 is missing",)),
        (Unavailable("the store does not answer"), State.WAITING, ()),
    ],
)
def test_no_version_can_run(candidate: Any, state: State, problems: tuple[str, ...]) -> None:
    cluster = cluster_of()
    cluster.publish("orders", candidate=candidate)
    cluster.settle()
    status = cluster.status("orders")
    assert (status.state, status.problems) == (state, problems)
    assert not cluster.view.places
    assert not cluster.view.pins


def test_being_checked_is_said_once_and_changes_nothing() -> None:
    cluster = cluster_of()
    cluster.publish("orders", admitted=False)
    cluster.settle()
    assert cluster.status("orders").reason == "its configuration is being checked"
    cluster.publish("orders")
    cluster.settle()
    before = cluster.status("orders")
    cluster.publish("orders", "2", admitted=False, replicas=3)
    assert cluster.plan().empty
    assert cluster.status("orders") == before


def test_a_version_admitted_from_an_older_edit_is_not_pinned() -> None:
    cluster = cluster_of()
    cluster.publish("orders", resources={"cpu": 1})
    cluster.edit("orders", resources={"cpu": 2})
    cluster.settle()
    assert not cluster.view.pins
    assert cluster.status("orders").reason == "its configuration is being checked"


def test_captured_fields_take_effect_with_the_next_version() -> None:
    cluster = cluster_of()
    cluster.publish("orders", resources={"memory": "64MiB"})
    cluster.settle()
    before = executions(cluster, "orders")
    cluster.edit("orders", resources={"memory": "1GiB"}, env={"A": "b"})
    cluster.settle()
    assert cluster.status("orders").notes == (
        "env, resources: edited under version '1'; takes effect with the next version",
    )
    assert executions(cluster, "orders") == before
    assert cluster.item("orders").memory_bytes == 64 * 2**20


@pytest.mark.parametrize(("digest", "word"), [("other", "overwritten"), (None, "deleted")])
def test_a_changed_object_is_reported_and_changes_nothing(digest: str | None, word: str) -> None:
    cluster = cluster_of()
    cluster.publish("orders")
    cluster.settle()
    before = executions(cluster, "orders")
    cluster.config("orders", "1", digest)
    cluster.settle()
    assert word in cluster.status("orders").notes[0]
    assert executions(cluster, "orders") == before


def test_replicas_of_an_exclusive_version_are_refused_and_not_pinned() -> None:
    cluster = cluster_of()
    cluster.publish("poll", replicas=2, derived=Overlap.EXCLUSIVE)
    cluster.settle()
    status = cluster.status("poll")
    assert status.state is State.REFUSED
    assert "replicas is 2" in status.problems[0]
    assert "generate" in status.problems[0]
    assert not cluster.view.pins
    cluster.publish("poll", replicas=2, overlap="forbid")
    cluster.settle()
    assert len(cluster.running("poll")) == 2
    assert cluster.item("poll").overlap is Overlap.EXCLUSIVE


def test_replicas_of_a_running_exclusive_version_leave_it_as_it_was() -> None:
    cluster = cluster_of()
    cluster.publish("poll", derived=Overlap.EXCLUSIVE)
    cluster.settle()
    before = executions(cluster, "poll")
    cluster.edit("poll", replicas=3)
    cluster.settle()
    assert executions(cluster, "poll") == before
    assert cluster.status("poll").state is State.RUNNING
    assert cluster.status("poll").problems


def test_a_held_record_changes_nothing() -> None:
    cluster = cluster_of()
    cluster.publish("orders", replicas=2)
    cluster.settle()
    before = executions(cluster, "orders")
    cluster.world._records.hold("orders", True)
    cluster.settle()
    assert executions(cluster, "orders") == before
    assert "second list" in cluster.status("orders").notes[0]


def test_a_pipeline_on_hold_stays_exactly_as_it_is() -> None:
    cluster = cluster_of(policy=Policy(hold=frozenset({"orders"})))
    cluster.policy = Policy()
    cluster.publish("orders")
    cluster.settle()
    before = executions(cluster, "orders")
    cluster.policy = Policy(hold=frozenset({"orders"}))
    cluster.delete("orders")
    cluster.settle()
    assert executions(cluster, "orders") == before
    assert "on hold" in cluster.status("orders").notes[0]


# --- rollout


def test_an_update_to_what_must_not_overlap_goes_on_while_the_next_version_is_missing() -> None:
    cluster = cluster_of(lag=True)
    cluster.publish("orders", replicas=2)
    cluster.settle()
    cluster.publish("orders", "2", replicas=2, overlap="forbid")
    for _ in range(40):
        if {"1", "2"} == {place.item.version for place in cluster.view.places["orders"]}:
            break
        cluster.step()
    cluster.publish("orders", "3", replicas=2, overlap="forbid", candidate=Unavailable("it is missing", missing=True))
    cluster.settle()
    assert {place.item.version for place in cluster.view.places["orders"]} == {"2"}


def test_a_shareable_update_starts_the_new_one_before_the_old_one_stops() -> None:
    cluster = cluster_of(lag=True)
    cluster.publish("orders", replicas=2)
    cluster.settle()
    cluster.publish("orders", "2", replicas=2)
    seen_ready = []
    for _ in range(40):
        cluster.step()
        ready = {
            item.slot
            for machine in cluster.machines.values()
            for execution, item in machine.items.items()
            if machine.phases[execution] is Phase.READY
        }
        seen_ready.append(len(ready))
        assert len(executions(cluster, "orders")) <= 3, "one at a time"
    assert min(seen_ready) == 2, "no slot was ever down"
    assert {cluster.item("orders", slot).version for slot in (0, 1)} == {"2"}


def test_an_exclusive_update_stops_waits_for_the_proof_and_starts_on_the_same_host() -> None:
    cluster = cluster_of(lag=True)
    cluster.publish("poll", derived=Overlap.EXCLUSIVE)
    cluster.settle()
    home = cluster.running("poll")[0]
    cluster.publish("poll", "2", derived=Overlap.EXCLUSIVE)
    cluster.commit(cluster.plan())
    assert not executions(cluster, "poll")
    assert cluster.status("poll").state is State.UPDATING
    assert "waits until h1 confirms" in cluster.status("poll").slots[0].reason
    assert cluster.plan().empty, "nothing is placed before the stop is confirmed"
    cluster.act(home)
    (execution,) = cluster.machines[home].items
    cluster.machines[home].reasons[execution] = "the engine is silent"
    cluster.report(home)
    cluster.commit(cluster.plan())
    assert cluster.status("poll").slots[0].reason.endswith("has stopped; there: the engine is silent")
    cluster.settle()
    assert cluster.running("poll") == {0: home}
    assert cluster.item("poll").version == "2"


@pytest.mark.parametrize("derived", list(Overlap))
def test_what_has_no_place_does_not_stop_what_runs(derived: Overlap) -> None:
    cluster = cluster_of(hosts=1)
    cluster.publish("orders", derived=derived)
    cluster.settle()
    before = executions(cluster, "orders")
    cluster.publish("orders", "2", derived=derived, resources={"memory": "40GiB"})
    cluster.settle()
    assert executions(cluster, "orders") == before
    status = cluster.status("orders")
    assert status.state is State.WAITING
    assert "memory short by" in status.reason
    assert status.slots[0].phase == "ready"


def test_a_version_that_never_becomes_ready_stops_the_rollout_at_one_slot() -> None:
    cluster = cluster_of()
    cluster.publish("orders", replicas=3)
    cluster.settle()
    cluster.broken.add(("orders", "2"))
    cluster.publish("orders", "2", replicas=3)
    cluster.settle()
    versions = [place.item.version for place in cluster.view.places["orders"]]
    assert sorted(versions) == ["1", "1", "1", "2"]
    assert cluster.status("orders").state is State.FAILING
    cluster.publish("orders", "1", replicas=3)
    cluster.settle()
    assert [place.item.version for place in cluster.view.places["orders"]] == ["1", "1", "1"]


def test_what_is_broken_may_be_replaced_at_once() -> None:
    cluster = cluster_of()
    cluster.broken.add(("orders", "1"))
    cluster.publish("orders", replicas=3)
    cluster.settle()
    assert cluster.status("orders").state is State.FAILING
    cluster.publish("orders", "2", replicas=3)
    cluster.commit(cluster.plan())
    assert {cluster.item("orders", slot).version for slot in range(3)} == {"2"}


def test_replicas_up_and_down_keep_the_surviving_slots() -> None:
    cluster = cluster_of()
    cluster.publish("orders", replicas=2)
    cluster.settle()
    before = executions(cluster, "orders")
    cluster.edit("orders", replicas=5)
    cluster.settle()
    assert set(before) < set(executions(cluster, "orders"))
    assert cluster.item("orders").replicas == 5
    cluster.edit("orders", replicas=2)
    cluster.settle()
    assert executions(cluster, "orders") == before
    cluster.edit("orders", replicas=0)
    cluster.settle()
    assert not executions(cluster, "orders")
    assert cluster.status("orders").state is State.RUNNING


def test_a_restart_intent_replaces_once() -> None:
    cluster = cluster_of()
    cluster.publish("orders", replicas=2)
    cluster.settle()
    before = executions(cluster, "orders")
    cluster.restart("orders")
    cluster.settle()
    after = executions(cluster, "orders")
    assert not set(before) & set(after)
    cluster.settle(scoped=False)
    assert executions(cluster, "orders") == after


@pytest.mark.parametrize("revision", [1, 10**6], ids=["below the last one", "above it"])
def test_a_restart_that_is_asked_for_in_another_operator_stream(revision: int) -> None:
    """A stream that was made again counts from 1: which request is the newer one, its revision does not say."""
    cluster = cluster_of()
    cluster.publish("orders", replicas=2)
    cluster.restart("orders", "first")
    cluster.settle()
    before = executions(cluster, "orders")
    cluster.world.fold_replaced(
        Source.OPERATOR, Listing({}, {}, Mark("second", 0)), InputMark("first", 99), "it was made again"
    )
    cluster.settle()
    assert executions(cluster, "orders") == before, "what is lost is no request"
    entry = Entry(restart_intent_key("orders"), encode(RestartIntent(request="second")), revision)
    cluster.world.fold_change(Source.OPERATOR, Change(entry))
    cluster.settle()
    after = executions(cluster, "orders")
    assert not set(before) & set(after)
    cluster.settle(scoped=False)
    assert executions(cluster, "orders") == after


def test_a_placement_that_is_no_longer_met_moves_the_slot() -> None:
    cluster = cluster_of()
    cluster.publish("orders")
    cluster.settle()
    cluster.edit("orders", placement={"required": {"host": ["h2", "h3"]}})
    cluster.settle()
    assert cluster.running("orders") == {0: "h2"}
    cluster.relabel("h3", labels={"zone": "z"})
    cluster.settle()
    assert cluster.running("orders") == {0: "h2"}


def test_drain_moves_and_cordon_does_not() -> None:
    cluster = cluster_of()
    cluster.publish("orders", replicas=3)
    cluster.publish("poll", derived=Overlap.EXCLUSIVE)
    cluster.settle()
    cluster.intend("h1", cordon=True)
    cluster.settle()
    assert "h1" in cluster.running("orders").values()
    cluster.intend("h1", drain=True)
    cluster.settle()
    assert "h1" not in {*cluster.running("orders").values(), *cluster.running("poll").values()}
    cluster.intend("h1")
    cluster.publish("new", replicas=3)
    cluster.settle()
    assert "h1" in cluster.running("new").values()


def test_on_partition_acts_at_once_and_in_place() -> None:
    cluster = cluster_of()
    cluster.publish("poll", derived=Overlap.EXCLUSIVE, on_partition="continue")
    cluster.settle()
    first = cluster.item("poll")
    assert not first.lease_bound
    cluster.edit("poll", on_partition="auto")
    cluster.settle()
    now = cluster.item("poll")
    assert (now.execution, now.lease_bound) == (first.execution, True)
    assert now.bound_in > 0


# --- statuses


def status_of(cluster: Cluster, name: str = "orders") -> Status:
    cluster.settle()
    return cluster.status(name)


def test_what_nobody_has_reported_is_not_running() -> None:
    cluster = cluster_of()
    for machine in cluster.machines.values():
        machine.reporting = False
    cluster.publish("orders")
    status = status_of(cluster)
    assert status.state is State.STARTING
    assert status.slots[0].reason == "h1 has not reported on it yet"


def test_a_report_of_another_session_says_nothing() -> None:
    cluster = cluster_of()
    cluster.publish("orders")
    cluster.settle()
    machine = cluster.machines["h1"]
    session = machine.heartbeat.session
    machine.reporting = False
    cluster.up("h1", session=type(session)(session.agent, session.boot, 2))
    assert status_of(cluster).state is State.STARTING
    machine.reporting = True
    assert status_of(cluster).state is State.RUNNING


def test_the_reason_of_a_failing_slot_comes_first() -> None:
    cluster = cluster_of()
    cluster.broken.add(("orders", "1"))
    cluster.publish("orders")
    cluster.settle()
    cluster.machines["h1"].reasons["orders-0-1"] = "connection refused"
    cluster.report("h1")
    assert status_of(cluster).reason == "slot 0 on h1 is backoff: connection refused"


def test_a_quiet_cluster_writes_nothing() -> None:
    cluster = cluster_of()
    cluster.publish("orders", replicas=3)
    cluster.publish("poll", derived=Overlap.EXCLUSIVE)
    cluster.publish("huge", resources={"memory": "1TiB"})
    cluster.settle()
    assert cluster.plan().empty
    cluster.pass_time(3600.0)
    assert cluster.world.take_scope().empty
    assert cluster.plan().empty


def test_events_and_reasons_tell_what_was_done() -> None:
    cluster = cluster_of()
    cluster.publish("orders", replicas=2)
    made = cluster.plan()
    told = [(event.kind, event.subject) for event in made.events]
    assert ("admitted", "orders") in told
    assert ("placed", "orders") in told
    assert all(event.at == "" and event.plan == made.number for event in made.events)
    assert "executions placed: 2" in made.reasons


def test_many_withdrawn_at_once_rewrite_each_host_once() -> None:
    """A commit takes few documents; taken pipeline by pipeline, each would need those of all hosts."""
    cluster = cluster_of(6, policy=Policy(writes_max=4))
    for number in range(8):
        cluster.publish(f"p{number}", replicas=6)
    cluster.settle()
    for number in range(8):
        cluster.edit(f"p{number}", status="draft")
    rewritten: list[str] = []
    while (made := cluster.plan(cluster.world.take_scope())).assignments or made.rest is not None:
        assert len(made.assignments) <= 3
        rewritten += sorted(made.assignments)
        cluster.commit(made)
    assert rewritten == [f"h{number}" for number in range(1, 7)]
    assert not any(executions(cluster, f"p{number}") for number in range(8))
    cluster.settle()
    assert not any(assignment.stopping for assignment in cluster.view.assignments.values())


def test_what_starts_does_not_wait_for_a_great_withdrawal() -> None:
    cluster = cluster_of(3, policy=Policy(writes_max=3))
    cluster.publish("a", replicas=3)
    cluster.settle()
    cluster.edit("a", status="draft")
    cluster.publish("b", replicas=1)
    made = cluster.plan(cluster.world.take_scope())
    placed = [item.pipeline for document in made.assignments.values() if document for item in document.executions]
    assert "b" in placed
    assert made.rest is not None
    cluster.commit(made)
    cluster.settle()
    assert not executions(cluster, "a")
