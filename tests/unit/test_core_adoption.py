"""A store that was lost: what runs is taken over as it runs, on an operator's word and not before."""

from __future__ import annotations

import json

import pytest

from scheduler.core.world import Source
from shared.documents import Assigned, Session
from shared.ids import parse_execution
from shared.keys import assign_key
from shared.states import Overlap, Phase, State, Wanted
from shared.store import Change, Entry, Listing, Mark
from tests.support.clusters import STORE, Cluster

NEW = "store-new"
_CONTROL = Source.CONTROL


@pytest.fixture
def old() -> Cluster:
    """Three hosts with a shareable pipeline, an exclusive one and a paused one."""
    cluster = Cluster()
    for name in ("h1", "h2", "h3"):
        cluster.host(name)
    cluster.publish("shared", replicas=3)
    cluster.publish("alone", derived=Overlap.EXCLUSIVE)
    cluster.publish("resting", derived=Overlap.EXCLUSIVE)
    cluster.settle()
    cluster.edit("resting", status="paused")
    cluster.settle()
    return cluster


def running(cluster: Cluster) -> dict[str, list[str]]:
    """What every host really has, by host."""
    return {name: sorted(machine.items) for name, machine in sorted(cluster.machines.items())}


def quiet(cluster: Cluster) -> None:
    """Nothing is left to do, whoever looks."""
    assert cluster.settle(scoped=False) == 0


def test_nothing_is_decided_about_what_runs_elsewhere(old: Cluster) -> None:
    before = running(old)
    new = old.successor(NEW)
    new.host("fresh", store_id="")
    new.publish("other")
    new.settle()
    assert set(new.view.assignments) == {"fresh"}
    assert new.running("other") == {0: "fresh"}, "what nobody runs is placed where it may be"
    for pipeline in ("shared", "alone", "resting"):
        status = new.status(pipeline)
        assert status.state is State.WAITING
        assert f"shoal store accept {NEW}" in status.reason
        assert not new.view.pins_of.get(pipeline), "nor is it said what its version is: that may run already"
    assert {name: items for name, items in running(new).items() if name != "fresh"} == before
    quiet(new)


def test_everything_is_taken_over_as_it_runs(old: Cluster) -> None:
    before, pins = running(old), dict(old.view.pins)
    new = old.successor(NEW)
    new.settle()
    new.accept(STORE)
    new.settle()
    assert not new.view.assignments, "not before it is known what runs"
    new.find(pins)
    new.settle()
    assert running(new) == before
    assert {host: [item.execution for item in one.executions] for host, one in new.view.assignments.items()} == before
    assert {name: pin.digest for name, pin in new.view.pins.items()} == {name: p.digest for name, p in pins.items()}
    assert new.status("shared").state is State.RUNNING
    assert new.status("alone").state is State.RUNNING
    assert new.status("resting").state is State.PAUSED
    assert new.item("alone").lease_bound
    assert new.item("resting").wanted is Wanted.PAUSE
    quiet(new)


def test_serials_go_on_above_those_of_the_lost_store(old: Cluster) -> None:
    for version in ("2", "3", "4"):
        old.publish("shared", version, replicas=3)
        old.settle()
    new = old.successor(NEW)
    new.accept(STORE)
    new.find(old.view.pins)
    new.settle()
    highest = max(parse_execution(execution).serial for items in running(new).values() for execution in items)
    new.publish("later")
    new.settle()
    assert parse_execution(new.item("later").execution).serial > highest


def test_what_nobody_can_explain_goes_on_until_its_next_version(old: Cluster) -> None:
    before = running(old)
    new = old.successor(NEW)
    new.accept(STORE)
    new.find({})
    new.settle()
    assert running(new) == before
    new.publish("alone", "2", derived=Overlap.EXCLUSIVE)
    new.settle()
    assert new.item("alone").version == "2"
    assert new.status("alone").state is State.RUNNING


def test_a_silent_host_is_taken_over_last_and_loses_to_who_has_its_slot_now(old: Cluster) -> None:
    silent = next(iter(old.running("alone").values()))
    old.down(silent, 100.0)
    old.settle()
    assert old.running("alone")[0] != silent
    heard = old.item("alone").execution
    new = old.successor(NEW)
    new.accept(STORE)
    new.find(old.view.pins)
    new.settle()
    assert new.item("alone").execution == heard
    assert [stop.pipeline for stop in new.view.assignments[silent].stopping].count("alone") == 1
    assert new.running("shared").keys() == {0, 1, 2}
    new.up(silent)
    new.settle()
    assert not new.view.assignments[silent].stopping
    assert new.item("alone").execution == heard
    quiet(new)


@pytest.mark.parametrize("first", ["h1", "h3"])
def test_a_host_that_is_back_loses_to_who_was_given_its_slot(old: Cluster, first: str) -> None:
    """Hosts are looked at in the order of their names; who has a slot does not hang on that."""
    old.edit("alone", placement={"required": {"host": [first]}})
    old.settle()
    stale = old.item("alone").execution
    assert old.running("alone") == {0: first}
    old.down(first, 100.0)
    old.edit("alone", placement={"required": {"host": ["h2"]}})
    old.settle()
    current = old.item("alone").execution
    assert old.running("alone") == {0: "h2"}
    old.up(first)
    old.machines[first].phases[stale] = Phase.BACKOFF  # it would be started again
    old.report(first)
    new = old.successor(NEW)
    new.accept(STORE)
    new.find(old.view.pins)
    while new.step():
        assert stale not in {item.execution for item in new.view.assignments[first].executions}
    assert new.item("alone").execution == current
    assert new.running("alone") == {0: "h2"}
    quiet(new)


def test_a_silent_host_that_had_nothing_is_taken_over_as_it_reported(old: Cluster) -> None:
    """Its last session never reported; what is heard last is not what the document names."""
    idle = old.host("idle")
    old.settle()
    old.up("idle", session=Session("agent-idle", "boot-idle", 2))
    old.down("idle", 20.0)
    new = old.successor(NEW)
    new.accept(STORE)
    new.find(old.view.pins)
    new.settle()
    assert new.view.assignments["idle"].session == Session("agent-idle", "boot-idle", 1)
    assert idle.heartbeat.session.number == 2


def test_what_a_stranger_barred_is_looked_at_again_when_it_is_answered(old: Cluster) -> None:
    """Of a host that has not said what it runs nobody knows what that is: it bars everything, also with nothing."""
    idle = old.host("idle")
    idle.reporting = False
    old.settle()
    new = old.successor(NEW)
    new.age_s = 0.0
    new.accept(STORE)
    new.find(old.view.pins)
    new.publish("other")
    new.delete("alone")
    new.settle()
    assert new.status("other").state is State.WAITING
    assert "idle" in new.status("other").reason
    assert new.running("alone"), "nor is anything taken away"
    idle.reporting = True
    new.report("idle")
    new.settle()
    assert new.status("other").state is State.RUNNING
    assert not new.running("alone")
    quiet(new)


def test_a_host_that_dies_with_the_store_is_failed_over_as_ever(old: Cluster) -> None:
    host = old.running("alone")[0]
    new = old.successor(NEW)
    new.down(host, 5.0)
    new.accept(STORE)
    new.find(old.view.pins)
    new.settle()
    assert new.running("alone") == {0: host}, "it may still run there"
    new.pass_time(10.0)
    new.settle()
    assert new.running("alone")[0] != host


def test_a_document_that_is_lost_alone_is_made_again_from_the_report(old: Cluster) -> None:
    before = running(old)
    host = old.running("alone")[0]
    old._fold(_CONTROL, f"assign.{host}", None)
    old.settle()
    assert running(old) == before
    quiet(old)


def test_what_was_being_stopped_is_not_started_again(old: Cluster) -> None:
    host = old.running("alone")[0]
    machine = old.machines[host]
    machine.phases[old.item("alone").execution] = Phase.STOPPING
    old.report(host)
    new = old.successor(NEW)
    new.accept(STORE)
    new.find(old.view.pins)
    new.step()
    kept: tuple[Assigned, ...] = new.view.assignments[host].executions
    assert "alone" not in {item.pipeline for item in kept}
    new.settle()
    assert new.status("alone").state is State.RUNNING


def test_a_slot_that_was_lost_with_the_store_is_not_forgotten_while_a_version_is_being_checked(old: Cluster) -> None:
    host = old.running("shared")[0]
    old.machines[host].items.clear()
    old.report(host)
    new = old.successor(NEW)
    new.publish("shared", "2", replicas=3, admitted=False)
    new.accept(STORE)
    new.find(old.view.pins)
    new.settle()
    status = new.status("shared")
    assert [(row.slot, bool(row.execution)) for row in status.slots] == [(0, False), (1, True), (2, True)]
    assert status.state is State.WAITING
    quiet(new)


def test_another_agent_under_a_hosts_name_waits_until_nothing_of_the_first_one_can_run(old: Cluster) -> None:
    """It obeys no store, so nothing of it has to be accepted; but who reported last may be alive, cut off."""
    host = old.running("alone")[0]
    old.pass_time(1.0)
    old.up(host, session=Session("other", "boot-other", 1), kept=False)
    old.relabel(host, store_id="")
    new = old.successor(NEW)
    new.age_s = 0.0
    for other in {"h1", "h2", "h3"} - {host}:
        new.machines.pop(other)  # they are of no interest here
    new.host("fresh", store_id="")
    new.publish("alone", derived=Overlap.EXCLUSIVE)
    new.settle()
    assert host not in new.view.assignments
    assert not new.running("alone"), "what was reported under that name may run there"
    new.pass_time(11.0)
    new.settle()
    assert host not in new.view.assignments
    assert not new.running("alone")
    new.pass_time(1.0)
    new.settle()
    assert new.view.assignments[host].session == Session("other", "boot-other", 1)
    assert new.running("alone")
    quiet(new)


def test_what_waited_for_a_predecessor_is_looked_at_when_that_must_have_ended(old: Cluster) -> None:
    """Only the document is lost. What was reported under the host's name waits, also after somebody else is heard."""
    host = old.running("alone")[0]
    for other in {"h1", "h2", "h3"} - {host}:
        old.intend(other, cordon=True)
    old.settle()
    old.pass_time(1.0)
    old.up(host, session=Session("other", "boot-other", 1), kept=False)
    old.world.fold_change(Source.CONTROL, Change(Entry(assign_key(host), None, old.revision + 1)))
    old.revision += 1
    old.settle()
    assert "another agent is heard there now" in old.status("alone").reason
    old.down(host)
    old.pass_time(20.0)
    old.settle()
    assert "no host can take it" in old.status("alone").reason
    quiet(old)


def test_a_document_that_is_lost_while_another_agent_is_heard_moves_nothing(old: Cluster) -> None:
    """From the very moment on, and not only when the hosts are looked at next."""
    host = old.running("alone")[0]
    old.pass_time(1.0)
    old.up(host, session=Session("other", "boot-other", 1), kept=False)
    old.settle()
    old.world.fold_change(Source.CONTROL, Change(Entry(assign_key(host), None, old.revision + 1)))
    old.revision += 1
    old.settle()
    assert not old.running("alone"), "who reported it may run it yet"


def test_of_a_host_without_key_what_it_reported_is_taken_over_when_no_other_stranger_is_heard(old: Cluster) -> None:
    host = old.running("alone")[0]
    first, second = sorted({"h1", "h2", "h3"} - {host})
    old.lose_key(host)
    old.pass_time(20.0)
    new = old.successor(NEW)
    new.gone = old.gone
    new.world.fold_change(Source.REPORTS, Change(Entry(first, None, new.revision + 1)))
    new.revision += 1
    new.accept(STORE)
    new.find(old.view.pins)
    new.beat()
    new.settle()
    assert second in new.view.assignments
    assert host not in new.view.assignments, "the slot may be somebody else's who has not said so"
    new.down(first)
    new.pass_time(20.0)
    new.settle()
    assert host in new.view.assignments
    quiet(new)


def test_when_a_stranger_is_gone_what_has_no_record_is_looked_at_too(old: Cluster) -> None:
    idle = old.host("idle")
    idle.reporting = False
    old.settle()
    new = old.successor(NEW)
    new.age_s = 0.0
    new.accept(STORE)
    new.find(old.view.pins)
    new.delete("alone")
    new.settle()
    assert new.running("alone")
    new.lose_key("idle")
    new.settle()
    assert not new.running("alone")
    quiet(new)


def test_a_stranger_that_says_nothing_is_waited_for_so_long(old: Cluster) -> None:
    idle = old.host("idle")
    idle.reporting = False
    old.settle()
    new = old.successor(NEW)
    new.age_s = 30.0
    new.beat()
    new.publish("other")
    new.settle()
    assert new.status("other").state is State.WAITING
    assert new.plan(new.world.take_scope()).wake_s == 45.0
    new.pass_time(45.0)
    new.publish("another")
    new.settle()
    assert "idle" not in new.status("other").reason
    quiet(new)


def test_a_record_that_is_lost_as_well_does_not_remove_what_runs(old: Cluster) -> None:
    before = running(old)
    old.records = {"shared": old.records["shared"]}
    new = old.successor(NEW)
    entry = Entry("shared", json.dumps(old.records["shared"]).encode(), new.revision)
    new.world.fold_listing(Source.PIPELINES, Listing({"shared": entry}, {}, Mark("made", new.revision)))
    new.world.miss()
    new.accept(STORE)
    new.find(old.view.pins)
    new.settle()
    assert running(new) == before
    assert "kept as it was" in new.status("alone").notes[0]


def test_a_host_that_says_something_later_than_the_journal_shows_that_it_went_back(old: Cluster) -> None:
    view = old.view
    applied = max(report.plan for report in view.reports.values())
    term = view.term
    assert not old.world.ahead(STORE, term, 1), "its own plans"
    assert not old.world.ahead(STORE, term + 9, view.plan + 1), "a successor's takeover comes after all plans"
    assert old.world.ahead(STORE, term + 9, applied) in old.machines, "also if takeovers have got as far by now"
    assert not old.world.ahead("another", term + 9, applied), "numbers of different stores cannot be compared"
