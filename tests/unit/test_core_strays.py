"""Executions that nobody commands: what must not overlap with them waits, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from scheduler.core import adoption, goals, plan
from scheduler.core.audit import audit
from scheduler.core.goals import Goal
from scheduler.core.view import Policy, Scope, View
from scheduler.core.world import Source
from shared.documents import STRAYS_MAX, Session, Stray
from shared.ids import parse_execution
from shared.keys import assign_key
from shared.states import Overlap, State
from shared.store import Change, Entry
from tests.support.clusters import STORE, Cluster, pin_of

NEW = "store-new"
LOST = "store-lost"  # before STORE
SHARED = pin_of({"id": "shared", "status": "published", "version": "1"})


def stray(pipeline: str = "shared", slot: int = 0, *, store_id: str = LOST, serial: int = 70) -> Stray:
    return Stray(
        store_id=store_id,
        execution=f"{pipeline}-{slot}-{serial}",
        pipeline=pipeline,
        slot=slot,
        version="1",
        digest=f"{pipeline}-1".ljust(64, "0"),
    )


def cluster(*strays: Stray, **fields: Any) -> Cluster:
    """Two hosts; the agent of one obeys no store and finds these."""
    found = Cluster(store_id=NEW)
    found.host("fresh", store_id="")
    found.host("back", store_id="", strays=strays, **fields)
    return found


def publish_alone(found: Cluster) -> None:
    """A version that must not overlap with what may run."""
    found.publish("shared", "2", overlap="forbid")
    found.settle()


def planned(found: Cluster, scope: Scope) -> set[str]:
    """The pipelines that a plan over a scope looks at."""
    with pytest.MonkeyPatch.context() as patch:
        resolved: set[str] = set()

        def resolve(view: View, policy: Policy, pipeline: str) -> Goal:
            resolved.add(pipeline)
            return goals.resolve(view, policy, pipeline)

        patch.setattr(plan, "resolve", resolve)
        found.plan(scope)
    return resolved


def removes(found: Cluster, host: str = "back") -> None:
    """The agent has done what its document says, and finds nothing any more."""
    found.machines[host].reporting = True
    found.relabel(host, strays=())
    found.settle()


def quiet(found: Cluster) -> None:
    assert found.settle(scoped=False) == 0


def test_a_host_that_finds_nothing_is_answered_at_once() -> None:
    found = cluster()
    publish_alone(found)
    assert set(found.view.assignments) == {"back", "fresh"}
    assert found.status("shared").state is State.RUNNING


def test_what_must_not_overlap_waits_for_an_operators_word_and_for_the_end_of_the_stray() -> None:
    found = cluster(stray())
    publish_alone(found)
    assert set(found.view.assignments) == {"back", "fresh"}, "both take other work"
    assert not found.running("shared")
    told = found.status("shared")
    assert told.state is State.WAITING
    assert "shared-0-70 may run on back" in told.reason
    assert f"shoal store accept {NEW} --replaces {LOST}" in told.reason
    quiet(found)

    found.machines["back"].reporting = False  # it takes its time to stop it
    found.accept(LOST)
    found.settle()
    document = found.view.assignments["back"]
    assert (document.accepted, document.executions) == ((LOST,), ())
    (stop,) = document.stopping
    assert (stop.execution, stop.asked_of, stop.asked_in) == ("shared-0-70", document.session, document.plan)
    assert not found.running("shared"), "it may be on its way to its end"

    removes(found)
    assert found.status("shared").state is State.RUNNING
    assert not found.view.assignments["back"].stopping
    quiet(found)


def test_a_host_that_is_found_to_have_it_is_of_use_for_everything_else() -> None:
    found = cluster(stray())
    found.publish("other", overlap="forbid", placement={"required": {"host": "back"}})
    found.settle()
    assert found.running("other") == {0: "back"}


def test_its_end_is_enough() -> None:
    found = cluster(stray())
    publish_alone(found)
    assert not found.running("shared")
    found.relabel("back", strays=())
    found.settle()
    assert found.running("shared")
    assert "back" in found.view.assignments
    quiet(found)


def test_nothing_else_waits() -> None:
    found = cluster(stray())
    found.publish("other", overlap="forbid")
    found.settle()
    assert found.status("other").state is State.RUNNING


def test_a_slot_that_does_not_exist_is_in_nobodys_way() -> None:
    found = cluster(stray(slot=1))
    publish_alone(found)
    assert found.status("shared").state is State.RUNNING


def test_two_copies_that_may_overlap_do_not_wait() -> None:
    found = cluster(stray())
    found.publish("shared")
    found.settle()
    assert found.status("shared").state is State.WAITING, "nothing says yet that the stray may overlap"
    assert ("shared", "1", SHARED.digest) in adoption.wanted(found.view), "its bundle is looked at"
    found.find({("shared", "1"): SHARED})
    found.settle()
    assert found.status("shared").state is State.RUNNING
    found.publish("shared", "2", overlap="forbid")
    found.settle()
    assert found.item("shared").version == "1", "the next one must not"
    told = found.status("shared")
    assert (told.version, told.state) == ("2", State.UPDATING), "what runs is not called what it is not"
    assert "shared-0-70 may run on back" in told.reason
    quiet(found)
    found.relabel("back", strays=())
    found.settle()
    told = found.status("shared")
    assert (told.version, told.state, told.reason) == ("2", State.RUNNING, "")


def test_a_stray_that_must_not_overlap_is_waited_for_by_whatever_comes() -> None:
    found = cluster(stray())
    found.publish("shared")
    found.find({("shared", "1"): replace(SHARED, overlap=Overlap.EXCLUSIVE)})
    found.settle()
    assert found.status("shared").state is State.WAITING


def test_what_is_wanted_no_more_goes_all_the_same() -> None:
    found = cluster()
    found.publish("shared")
    found.settle()
    found.relabel("back", strays=(stray(),))
    found.settle()
    assert found.running("shared")
    found.edit("shared", status="draft")
    found.settle()
    assert not found.running("shared")


def test_a_host_that_cannot_tell_is_not_answered_and_its_last_report_stands() -> None:
    old = Cluster()
    old.host("back")
    old.publish("shared")
    old.settle()
    new = old.successor(NEW)
    new.up("back", session=Session("another", "boot-back", 1), kept=False)
    new.relabel("back", store_id="", strays_unknown="the engine does not answer")
    new.host("fresh", store_id="")
    new.pass_time(60.0)
    new.publish("other", overlap="forbid")
    publish_alone(new)
    assert set(new.view.assignments) == {"fresh"}
    assert not new.running("shared")
    assert "the engine does not answer" in new.status("shared").reason
    assert new.running("other") == {0: "fresh"}, "of this one nobody said that it runs there"
    quiet(new)
    new.relabel("back", strays_unknown="")
    new.settle()
    assert "back" in new.view.assignments
    assert new.running("shared")
    quiet(new)


def test_more_strays_than_a_heartbeat_holds_are_not_taken_over() -> None:
    found = cluster(stray(), strays_unknown="there are too many")
    publish_alone(found)
    found.accept(LOST)
    found.settle()
    assert "back" not in found.view.assignments
    assert not found.running("shared")


TOO_MANY = f"it has more than {STRAYS_MAX} executions of other stores and can tell {STRAYS_MAX} of them"


def test_nothing_is_placed_beside_what_a_heartbeat_has_no_room_for() -> None:
    told = tuple(stray("many", slot, serial=slot) for slot in range(STRAYS_MAX))
    found = cluster(*told, strays_unknown=TOO_MANY)
    publish_alone(found)
    assert not found.running("shared"), "it may be what is not told"
    assert f"shoal store accept {NEW} --replaces {LOST}" in found.status("shared").reason
    assert "back" not in found.view.assignments
    quiet(found)

    found.machines["back"].reporting = False
    found.accept(LOST)
    found.settle()
    assert len(found.view.assignments["back"].stopping) == STRAYS_MAX, "these make room"
    assert not found.running("shared")
    found.relabel("back", store_id=NEW)  # it has admitted that, and done nothing yet
    found.settle()
    assert not found.running("shared")
    found.machines["back"].reporting = True
    found.relabel("back", strays=(stray(),), strays_unknown="")
    found.settle()
    assert not found.running("shared")
    assert "until its agent has removed it" in found.status("shared").reason
    found.relabel("back", strays=())
    found.settle()
    assert found.running("shared")
    quiet(found)


def test_what_is_taken_over_from_the_report_of_a_host_is_no_stray() -> None:
    """It obeys this store, has more of another one than it can tell of, and its document was deleted."""
    found = cluster()
    publish_alone(found)
    (host,) = found.running("shared").values()
    told = tuple(stray("many", slot, serial=slot) for slot in range(STRAYS_MAX))
    found.relabel(host, strays=told, strays_unknown=TOO_MANY)
    found.world.fold_change(Source.CONTROL, Change(Entry(assign_key(host), None, 10**6)))
    found.revision = 10**6
    found.settle()
    document = found.view.assignments[host]
    assert ([item.slot for item in document.executions], document.stopping) == ([0], ())


def test_a_dead_host_with_more_than_it_could_tell_is_let_go_by_an_operators_word() -> None:
    found = cluster(*(stray("many", slot, serial=slot) for slot in range(STRAYS_MAX)), strays_unknown=TOO_MANY)
    found.down("back", 100.0)
    publish_alone(found)
    assert "shoal hosts forget back --confirm-dead" in found.status("shared").reason
    quiet(found)
    found.intend("back", confirm_dead=True)
    found.settle()
    assert found.running("shared") == {0: "fresh"}
    quiet(found)


def test_the_audit_refuses_to_place_beside_what_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    found = cluster(*(stray("many", slot, serial=slot) for slot in range(STRAYS_MAX)), strays_unknown=TOO_MANY)
    found.settle()
    monkeypatch.setattr(plan, "strays", lambda _: {})
    found.publish("shared", "2", overlap="forbid")
    (wrong,) = audit(found.view, plan.plan(found.view, found.policy), found.policy)
    assert "back tells of another copy" in wrong.message


def test_an_agent_that_starts_again_and_has_not_looked_yet_takes_nothing_back() -> None:
    found = cluster(stray())
    publish_alone(found)
    assert not found.running("shared")
    found.relabel("back", strays=(), strays_unknown="it has not looked yet")
    found.settle()
    assert not found.running("shared")
    found.relabel("back", strays_unknown="")
    found.settle()
    assert found.running("shared")


def test_an_agent_that_cannot_tell_bars_nothing_where_documents_tell() -> None:
    found = cluster()
    found.settle()
    found.relabel("back", strays_unknown="the engine does not answer")
    publish_alone(found)
    assert found.status("shared").state is State.RUNNING


def test_what_a_host_has_not_told_concerns_nothing_but_what_is_known_of_it() -> None:
    """It is looked at with each pulse, as it has no document."""
    found = Cluster(store_id=NEW)
    found.host("fresh", store_id="")
    found.publish("other")
    found.settle()
    found.host("back", store_id="", strays=(stray(),), strays_unknown="it has not looked yet")
    publish_alone(found)
    assert not found.running("shared")
    found.beat()
    scope = found.world.take_scope()
    assert (set(scope.hosts), set(scope.pipelines)) == ({"back"}, set())
    assert planned(found, scope) == {"shared"}
    found.relabel("back", strays_unknown="the engine does not answer")
    scope = found.world.take_scope()
    assert planned(found, scope) == {"shared"}, "other words bar nothing more"
    found.world.mark(scope)
    quiet(found)
    found.accept(LOST)
    found.settle()
    assert "the engine does not answer" in found.status("shared").reason
    found.relabel("back", strays_unknown="")
    found.settle()
    assert found.running("shared")


def test_a_host_that_has_a_document_tells_until_it_has_removed_it() -> None:
    found = cluster()
    found.settle()
    found.accept(LOST)
    found.settle()
    found.relabel("back", strays=(stray(),))  # an engine got to it late
    publish_alone(found)
    assert not found.running("shared")
    assert "until its agent has removed it" in found.status("shared").reason
    found.relabel("back", strays=())
    found.settle()
    assert found.running("shared")
    quiet(found)


def test_a_stray_of_a_store_that_is_not_accepted_has_its_own_name() -> None:
    """That this store gave the same one says nothing of it."""
    found = cluster()
    publish_alone(found)
    item, (host,) = found.item("shared"), found.running("shared").values()
    found.relabel(host, strays=(replace(stray(), execution=item.execution),))
    found.publish("shared", "3", overlap="forbid")
    found.settle()
    assert found.item("shared") == item, "nothing is placed beside it"
    found.accept(LOST)
    found.settle()
    document = found.view.assignments[host]
    assert (LOST in document.accepted, document.stopping) == (True, ()), "the agent keeps one of that name"
    assert found.item("shared").version == "3"


def test_the_audit_knows_a_stray_by_its_store(monkeypatch: pytest.MonkeyPatch) -> None:
    found = cluster()
    found.publish("shared", "2", overlap="forbid", replicas=1)
    found.settle()
    item, (host,) = found.item("shared"), found.running("shared").values()
    found.relabel(host, strays=(replace(stray(slot=1), execution=item.execution),))
    monkeypatch.setattr(plan, "strays", lambda _: {})
    found.edit("shared", replicas=2)
    (wrong,) = audit(found.view, plan.plan(found.view, found.policy), found.policy)
    assert f"{host} tells of another copy" in wrong.message


def test_what_a_document_names_is_no_stray() -> None:
    found = cluster()
    found.accept(LOST)
    publish_alone(found)
    item, (host,) = found.item("shared"), found.running("shared").values()
    found.relabel(host, strays=(replace(stray(), execution=item.execution, version="2", digest=item.digest),))
    found.edit("shared", replicas=2)
    found.settle()
    assert found.status("shared").state is State.RUNNING
    assert found.running("shared").keys() == {0, 1}


def test_what_is_left_on_a_host_whose_document_is_gone_is_stopped_before_it_is_placed_elsewhere() -> None:
    found = cluster(stray(store_id=NEW))
    found.machines["back"].reporting = False
    publish_alone(found)
    assert [stop.execution for stop in found.view.assignments["back"].stopping] == ["shared-0-70"]
    assert not found.running("shared")
    removes(found)
    assert found.running("shared")
    quiet(found)


def test_a_silent_host_is_waited_for_until_an_operator_says_that_it_is_dead() -> None:
    """Whether a stray obeys a lease nobody knows."""
    found = cluster(stray())
    publish_alone(found)
    found.down("back")
    found.pass_time(100.0)
    found.settle()
    assert not found.running("shared")
    found.intend("back", confirm_dead=True)
    found.settle()
    assert found.running("shared") == {0: "fresh"}
    quiet(found)


@pytest.mark.parametrize("accepted", [True, False])
def test_of_a_silent_host_people_are_told_what_ends_it(accepted: bool) -> None:
    """Its agent hears nothing of a store that is accepted."""
    found = cluster(stray())
    publish_alone(found)
    found.down("back", 100.0)
    if accepted:
        found.accept(LOST)
    found.settle()
    assert "shoal hosts forget back --confirm-dead" in found.status("shared").reason
    assert "store accept" not in found.status("shared").reason
    quiet(found)
    found.up("back")
    found.settle()
    assert "--confirm-dead" not in found.status("shared").reason


def test_a_word_on_a_host_that_never_had_a_document_is_of_the_session_that_was_heard() -> None:
    old = Cluster()
    old.host("back")
    old.publish("shared")
    old.settle()
    new = old.successor(NEW)
    new.host("fresh", store_id="")
    new.up("back", session=Session("another", "boot-back", 1), kept=False)
    new.relabel("back", store_id="", strays_unknown="the engine does not answer")
    new.down("back", 100.0)
    new.pass_time(100.0)
    publish_alone(new)
    assert "shoal hosts forget back --confirm-dead" in new.status("shared").reason
    new.intend("back", confirm_dead=True, session=Session("before", "boot-back", 1))
    new.settle()
    assert not new.running("shared"), "that one was another life of it"
    new.intend("back", confirm_dead=True, session=new.machines["back"].heartbeat.session)
    new.settle()
    assert new.running("shared") == {0: "fresh"}
    quiet(new)


def test_a_word_on_an_agent_that_was_there_before_lets_go_of_no_stray() -> None:
    found = cluster()
    publish_alone(found)
    (host,) = found.running("shared").values()
    before = found.machines[host].heartbeat.session
    found.intend(host, confirm_dead=True, session=before)
    found.up(host, session=Session("another", before.boot, 1), kept=False)
    found.relabel(host, store_id="", strays=(stray("found"),))
    found.publish("found", "2", overlap="forbid")
    found.machines[host].up = False
    found.step()
    found.pass_time(100.0)
    found.settle()
    assert not found.running("found")
    found.intend(host, confirm_dead=True)
    found.settle()
    assert found.running("found")


def test_to_forget_a_host_lets_go_of_no_stray() -> None:
    found = cluster(stray())
    publish_alone(found)
    found.intend("back", forget=True)
    found.down("back")
    found.pass_time(100.0)
    found.settle()
    assert not found.running("shared")
    assert "back" in found.view.assignments, "whoever forgets it waits"
    found.intend("back", forget=True, confirm_dead=True)
    found.settle()
    assert "back" not in found.view.assignments
    found.lose_key("back")
    found.settle()
    assert found.running("shared") == {0: "fresh"}
    quiet(found)


def test_an_operators_word_on_a_host_counts_when_its_silence_is_long_enough() -> None:
    found = cluster(stray())
    publish_alone(found)
    found.intend("back", forget=True, confirm_dead=True)
    found.down("back", 4.0)
    found.settle()
    assert not found.running("shared")
    assert "back" in found.view.assignments
    found.pass_time(8.0)
    found.settle()
    assert found.running("shared") == {0: "fresh"}
    assert "back" not in found.view.assignments


def test_the_audit_believes_no_word_that_is_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    found = cluster(stray())
    found.settle()
    found.down("back", 100.0)
    found.publish("shared", "2", overlap="forbid")
    monkeypatch.setattr(plan, "strays", lambda _: {})
    found.intend("back", forget=True)
    assert audit(found.view, plan.plan(found.view, found.policy), found.policy)
    found.intend("back", forget=True, confirm_dead=True)
    assert not audit(found.view, plan.plan(found.view, found.policy), found.policy)


def test_no_execution_gets_the_name_of_a_stray() -> None:
    found = cluster(stray("elsewhere"))
    publish_alone(found)
    assert parse_execution(found.item("shared").execution).serial > 70


def test_the_audit_refuses_to_place_beside_a_stray(monkeypatch: pytest.MonkeyPatch) -> None:
    found = cluster(stray())
    found.settle()
    monkeypatch.setattr(plan, "strays", lambda _: {})
    found.publish("shared", "2", overlap="forbid")
    made = plan.plan(found.view, found.policy)
    (wrong,) = audit(found.view, made, found.policy)
    assert "back tells of another copy" in wrong.message
    assert wrong.pipelines == ("shared",)


def test_the_audit_lets_what_a_host_tells_of_be_stopped() -> None:
    found = cluster(stray(store_id=STORE))
    found.accept(STORE)
    assert found.plan().assignments["back"], "audited"
