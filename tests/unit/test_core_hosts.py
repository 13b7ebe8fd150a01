"""Silence, sessions, confirmed stops and operators' words: what a plan does about hosts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from scheduler.core.candidates import Rejected
from scheduler.core.liveness import wake_s
from scheduler.core.world import Source
from shared.documents import Report, Session, Stopping, encode
from shared.intents import StoreIntent
from shared.states import Overlap, State
from shared.store import Change, Entry
from tests.support.clusters import STORE, Cluster


def cluster_of(hosts: int = 3, **options: Any) -> Cluster:
    cluster = Cluster(**options)
    for number in range(1, hosts + 1):
        cluster.host(f"h{number}")
    return cluster


def running(derived: Overlap, **fields: Any) -> Cluster:
    cluster = cluster_of()
    cluster.publish("orders", derived=derived, **fields)
    cluster.settle()
    assert cluster.running("orders") == {0: "h1"}
    return cluster


def stops(cluster: Cluster, host: str) -> list[Stopping]:
    return list(cluster.view.assignments[host].stopping)


# --- assignments for hosts


def test_every_host_of_this_store_gets_a_document_even_an_empty_one() -> None:
    cluster = cluster_of()
    cluster.machines["h3"].heartbeat = replace(cluster.machines["h3"].heartbeat, store_id="")
    cluster.beat()
    cluster.settle()
    assert set(cluster.view.assignments) == {"h1", "h2", "h3"}
    assert cluster.view.assignments["h2"].session == cluster.machines["h2"].heartbeat.session


def test_a_host_of_another_store_gets_nothing_until_an_operator_accepts_it() -> None:
    cluster = cluster_of(hosts=1)
    cluster.host("old", store_id="another-store")
    session = cluster.machines["old"].heartbeat.session
    report = Report(store_id="another-store", host="old", session=session, term=1, plan=1)
    cluster.world.fold_change(Source.REPORTS, Change(Entry("old", encode(report), 1)))
    cluster.publish("orders", placement={"required": {"host": "old"}})
    cluster.settle()
    assert "old" not in cluster.view.assignments
    reasons = {refusal.host: refusal.reasons for refusal in cluster.status("orders").refusals}
    assert reasons["old"] == ("belongs to store another- (see `shoal store accept`)",)
    intent = encode(StoreIntent(accept=STORE, replaces="another-store"))
    cluster.world.fold_change(Source.OPERATOR, Change(Entry("store", intent, cluster.revision + 1)))
    cluster.settle()
    assert cluster.view.assignments["old"].accepted == ("another-store",)
    assert cluster.running("orders") == {0: "old"}


# --- silence


@pytest.mark.parametrize(
    ("derived", "fields", "silence_s", "moves"),
    [
        (Overlap.SHAREABLE, {}, 3.9, False),
        (Overlap.SHAREABLE, {}, 4.0, True),
        (Overlap.SHAREABLE, {"on_partition": "stop"}, 4.0, True),
        (Overlap.EXCLUSIVE, {}, 11.9, False),
        (Overlap.EXCLUSIVE, {}, 12.0, True),
        (Overlap.EXCLUSIVE, {"on_partition": "continue"}, 3600.0, False),
    ],
)
def test_when_silence_moves_an_execution(
    derived: Overlap, fields: dict[str, Any], silence_s: float, moves: bool
) -> None:
    cluster = running(derived, **fields)
    cluster.down("h1", silence_s)
    cluster.settle()
    assert cluster.running("orders") == {0: "h2" if moves else "h1"}
    assert [stop.execution for stop in stops(cluster, "h1")] == (["orders-0-1"] if moves else [])


def test_a_silent_host_shows_nothing_as_running() -> None:
    cluster = running(Overlap.EXCLUSIVE)
    cluster.down("h1", 5.0)
    cluster.settle()
    status = cluster.status("orders")
    assert (status.state, status.slots[0].phase) == (State.WAITING, "lost")
    assert "h1 is silent" in status.reason
    cluster.up("h1")
    cluster.settle()
    assert cluster.status("orders").state is State.RUNNING


def test_continue_says_so_and_waits_for_confirm_dead() -> None:
    cluster = running(Overlap.EXCLUSIVE, on_partition="continue")
    cluster.down("h1", 100.0)
    cluster.settle()
    assert "it may go on there" in cluster.status("orders").reason
    assert "`shoal hosts confirm-dead h1`" in cluster.status("orders").reason
    assert cluster.machines["h1"].dead is None, "a tombstone would not end what obeys no lease"
    cluster.intend("h1", confirm_dead=True)
    cluster.settle()
    assert cluster.running("orders") == {0: "h2"}


def test_confirm_dead_speaks_of_one_session_only() -> None:
    cluster = running(Overlap.EXCLUSIVE, on_partition="continue")
    named = cluster.view.assignments["h1"].session
    cluster.up("h1", session=Session("agent-h1", "boot-h1", 2))
    cluster.settle()
    cluster.down("h1", 100.0)
    cluster.intend("h1", confirm_dead=True, session=named)
    cluster.settle()
    assert cluster.running("orders") == {0: "h1"}, "it was said of an earlier life of the host"
    cluster.intend("h1", confirm_dead=True, session=Session("agent-h1", "boot-h1", 2))
    cluster.settle()
    assert cluster.running("orders") == {0: "h2"}


def test_a_heartbeat_takes_back_the_word_that_its_session_is_dead() -> None:
    cluster = running(Overlap.EXCLUSIVE, on_partition="continue")
    machine = cluster.machines["h1"]
    said = replace(machine.heartbeat, sequence=7)
    cluster.down("h1", 5.0)
    cluster.intend("h1", confirm_dead=True, session=said.session, sequence=said.sequence)
    machine.heartbeat = replace(said, sequence=8)
    cluster.up("h1")
    cluster.settle()
    cluster.down("h1", 100.0)
    cluster.settle()
    assert cluster.running("orders") == {0: "h1"}, "it was heard since: another silence needs another word"
    cluster.intend("h1", confirm_dead=True, session=said.session, sequence=8)
    cluster.settle()
    assert cluster.running("orders") == {0: "h2"}


def test_what_may_overlap_holds_up_a_version_that_must_not_and_says_what_to_do() -> None:
    """No lease ends it, so nobody but a person can know that it has stopped."""
    cluster = running(Overlap.SHAREABLE)
    cluster.down("h1", 100.0)
    cluster.edit("orders", status="draft")
    cluster.settle()
    cluster.publish("orders", "2", overlap="forbid")
    cluster.settle()
    assert "`shoal hosts confirm-dead h1`" in cluster.status("orders").reason
    cluster.intend("h1", confirm_dead=True)
    cluster.settle()
    assert cluster.running("orders") == {0: "h2"}


def test_becoming_lease_bound_counts_only_once_the_agent_has_applied_it() -> None:
    cluster = running(Overlap.EXCLUSIVE, on_partition="continue")
    cluster.machines["h1"].reporting = False
    cluster.edit("orders", on_partition="stop")
    cluster.settle()
    cluster.down("h1", 100.0)
    cluster.settle()
    assert cluster.running("orders") == {0: "h1"}


def test_that_it_became_lease_bound_may_be_said_after_the_host_fell_silent() -> None:
    cluster = running(Overlap.EXCLUSIVE, on_partition="continue")
    cluster.edit("orders", on_partition="stop")
    cluster.commit(cluster.plan(cluster.world.take_scope()))
    cluster.down("h1", 100.0)
    cluster.settle()
    assert cluster.running("orders") == {0: "h1"}, "it may go on there"
    machine = cluster.machines["h1"]
    document = cluster.view.assignments["h1"]
    machine.applied = (document.term, document.plan)
    cluster.report("h1")
    cluster.settle()
    assert cluster.running("orders") == {0: "h2"}


def test_the_first_host_after_none_is_given_what_waits() -> None:
    cluster = Cluster()
    cluster.host("h1")
    cluster.publish("orders")
    cluster.settle()
    cluster.lose_key("h1")
    cluster.pass_time(10.0)
    cluster.settle()
    assert cluster.running("orders") == {0: "h1"}
    cluster.host("h2")
    cluster.settle()
    assert cluster.running("orders") == {0: "h2"}


@pytest.mark.parametrize("field", ["lease_s", "fence_kill_s", "poll_s"])
def test_a_lease_that_can_be_relied_on_again_is_looked_at(field: str) -> None:
    cluster = Cluster()
    cluster.host("h1")
    cluster.relabel("h1", **{field: 121.0})
    cluster.publish("orders", derived=Overlap.EXCLUSIVE)
    cluster.settle()
    assert not cluster.running("orders")
    cluster.relabel("h1", **{field: 8.0})
    cluster.settle()
    assert cluster.running("orders") == {0: "h1"}


def test_a_host_that_returns_is_told_what_it_must_no_longer_run() -> None:
    cluster = running(Overlap.EXCLUSIVE)
    cluster.down("h1", 20.0)
    cluster.settle()
    cluster.up("h1")
    assert cluster.machines["h1"].items
    cluster.settle()
    assert not cluster.machines["h1"].items
    assert not stops(cluster, "h1")
    assert cluster.running("orders") == {0: "h2"}, "no needless move back"


def test_nothing_moves_when_there_is_no_other_host() -> None:
    cluster = cluster_of(hosts=1)
    cluster.publish("orders")
    cluster.settle()
    cluster.down("h1", 60.0)
    cluster.settle()
    assert cluster.running("orders") == {0: "h1"}
    assert cluster.status("orders").reason == "no host can take it: 1 of 1 are silent; nearest h1: is silent"


def test_a_host_without_a_heartbeat_key_is_as_silent_as_the_term_is_old() -> None:
    cluster = running(Overlap.EXCLUSIVE)
    cluster.age_s = 5.0
    del cluster.machines["h1"]
    cluster.beat()
    cluster.settle()
    assert cluster.running("orders") == {0: "h1"}
    cluster.pass_time(7.0)
    cluster.settle()
    assert cluster.machines["h1"].dead is not None, "its tombstone makes the key anew"
    assert cluster.running("orders") == {0: "h1"}, "and silence is counted from there"
    cluster.pass_time(16.5)
    cluster.settle()
    assert cluster.running("orders") == {0: "h2"}


def test_a_host_whose_key_was_deleted_is_silent_since_then() -> None:
    """However old the term is: its agent was heard a moment ago, and makes the key anew in a second."""
    cluster = running(Overlap.SHAREABLE)
    cluster.lose_key("h1")
    cluster.settle()
    cluster.pass_time(3.5)
    cluster.settle()
    assert cluster.running("orders") == {0: "h1"}
    cluster.pass_time(0.5)
    cluster.settle()
    assert cluster.running("orders") == {0: "h2"}


def test_what_a_host_said_counts_until_its_deleted_key_is_silence() -> None:
    """Whatever is decided meanwhile: the audit believes it as long as the planner does."""
    cluster = running(Overlap.SHAREABLE)
    cluster.lose_key("h1")
    cluster.settle()
    cluster.publish("orders", "2", candidate=Rejected(("no such input",)))
    cluster.settle()
    status = cluster.status("orders")
    assert (status.state, status.problems) == (State.RUNNING, ("no such input",))


# --- tombstones


def test_lease_bound_work_moves_only_when_its_tombstone_is_seen() -> None:
    cluster = running(Overlap.EXCLUSIVE)
    cluster.tombstones = False
    cluster.down("h1", 11.5)
    cluster.settle()
    assert not cluster.plan().tombstones
    cluster.pass_time(60.0)
    cluster.settle()
    made = cluster.plan()
    (stone,) = made.tombstones
    assert made.empty
    assert (stone.host, stone.revision) == ("h1", cluster.machines["h1"].revision)
    assert stone.dead == cluster.view.assignments["h1"].session
    assert stone.document(STORE) == replace(cluster.machines["h1"].heartbeat, dead=stone.dead)
    assert cluster.running("orders") == {0: "h1"}
    assert "its session is ended, then it is replaced" in cluster.status("orders").reason
    cluster.tombstones = True
    cluster.settle()
    assert cluster.running("orders") == {0: "h2"}
    assert not cluster.plan().tombstones


def test_the_status_does_not_change_between_silence_and_the_move() -> None:
    cluster = running(Overlap.EXCLUSIVE)
    cluster.tombstones = False
    cluster.down("h1", 5.0)
    cluster.settle()
    silent = cluster.status("orders")
    cluster.pass_time(60.0)
    cluster.settle()
    assert cluster.status("orders") == silent


def test_a_host_that_is_heard_before_the_tombstone_keeps_everything() -> None:
    cluster = running(Overlap.EXCLUSIVE)
    before = cluster.item("orders").execution
    cluster.down("h1", 20.0)
    made = cluster.plan()
    cluster.up("h1")
    assert not cluster.bury(made), "the store refuses it"
    cluster.settle()
    assert (cluster.running("orders"), cluster.item("orders").execution) == ({0: "h1"}, before)


def test_a_tombstone_without_own_silence_releases_nothing() -> None:
    """Another leader wrote it, maybe a deposed one: this one has not counted yet."""
    cluster = running(Overlap.EXCLUSIVE)
    cluster.down("h1", 20.0)
    cluster.bury(cluster.plan())
    machine = cluster.machines["h1"]
    machine.silence_s, machine.heard = 0.0, {("agent-h1", "boot-h1"): 0.0}
    cluster.beat()
    cluster.settle()
    assert cluster.running("orders") == {0: "h1"}
    cluster.pass_time(12.0)
    cluster.settle()
    assert cluster.running("orders") == {0: "h2"}


def test_nothing_is_placed_on_a_host_whose_session_is_dead() -> None:
    cluster = running(Overlap.EXCLUSIVE)
    machine = cluster.machines["h1"]
    machine.up, machine.dead, machine.silence_s = False, machine.heartbeat.session, 0.0
    cluster.beat()
    cluster.publish("new", placement={"required": {"host": "h1"}})
    cluster.settle()
    assert "is silent" in str(cluster.status("new").refusals)


def test_no_tombstone_where_nothing_lease_bound_wants_to_move() -> None:
    cluster = cluster_of()
    cluster.publish("shared")
    cluster.publish(
        "goes-on", derived=Overlap.EXCLUSIVE, on_partition="continue", placement={"required": {"host": "h2"}}
    )
    cluster.publish("paused", derived=Overlap.EXCLUSIVE, placement={"required": {"host": "h3"}})
    cluster.settle()
    cluster.edit("paused", status="paused")
    cluster.settle()
    for host in ("h1", "h2", "h3"):
        cluster.down(host, 60.0)
        cluster.pass_time(60.0)  # one after the other: all at once would be an outage
    cluster.settle()
    assert not [machine for machine in cluster.machines.values() if machine.dead]
    cluster.edit("paused", status="published", placement={})
    cluster.host("h4")
    cluster.settle()
    assert cluster.machines["h3"].dead
    assert cluster.running("paused") == {0: "h4"}


def test_a_stop_on_a_lost_host_blocks_its_slot_until_the_tombstone() -> None:
    cluster = running(Overlap.EXCLUSIVE)
    cluster.machines["h1"].reporting = False
    cluster.tombstones = False
    cluster.publish("orders", "2", derived=Overlap.EXCLUSIVE)
    cluster.settle()
    assert stops(cluster, "h1")
    cluster.down("h1", 60.0)
    cluster.settle()
    assert not cluster.places("orders")
    assert "h1 is silent" in cluster.status("orders").reason
    cluster.tombstones = True
    cluster.settle()
    assert cluster.running("orders") == {0: "h2"}


def test_the_tombstone_of_an_impostor_moves_nothing_before_the_predecessor_has_ended() -> None:
    """V3 of the model, on the leader's side: what ran under the session that the document names has its own time."""
    cluster = running(Overlap.EXCLUSIVE)
    cluster.machines["h1"].needs[("agent-h1", "boot-h1")] = 60.0
    cluster.up("h1", session=Session("impostor", "boot-x", 1), kept=False)
    cluster.machines["h1"].heard[("agent-h1", "boot-h1")] = 8.0
    cluster.beat()
    cluster.machines["h1"].needs[("agent-h1", "boot-h1")] = 60.0
    cluster.down("h1", 20.0)
    cluster.settle()
    assert cluster.machines["h1"].dead is None
    assert cluster.running("orders") == {0: "h1"}
    cluster.pass_time(60.0)
    cluster.settle()
    assert cluster.machines["h1"].dead == Session("impostor", "boot-x", 1)
    assert cluster.running("orders") == {0: "h2"}


# --- timings


@pytest.mark.parametrize(("lease_s", "needed_s"), [(4.0, 7.5), (8.0, 12.0), (12.0, 16.5), (60.0, 70.0)])
def test_each_host_has_its_own_time(lease_s: float, needed_s: float) -> None:
    cluster = Cluster()
    cluster.host("h1", lease_s=lease_s)
    cluster.host("h2")
    cluster.publish("orders", derived=Overlap.EXCLUSIVE)
    cluster.settle()
    cluster.down("h1", 5.0)
    cluster.settle()
    assert cluster.plan().wake_s == needed_s - 5.0
    cluster.pass_time(needed_s - 5.5)
    cluster.settle()
    assert cluster.running("orders") == {0: "h1"}
    cluster.pass_time(0.5)
    cluster.settle()
    assert cluster.running("orders") == {0: "h2"}


@pytest.mark.parametrize("lease_s", [0.0, -8.0, 1e9, float("nan"), float("inf")])
def test_a_lease_that_cannot_be_is_the_longest_and_gets_nothing_lease_bound(lease_s: float) -> None:
    cluster = running(Overlap.EXCLUSIVE)
    cluster.relabel("h1", lease_s=lease_s)
    cluster.settle()
    assert cluster.running("orders") == {0: "h1"}, "no needless move"
    cluster.publish("new", derived=Overlap.EXCLUSIVE, placement={"required": {"host": "h1"}})
    cluster.publish("shared", placement={"required": {"host": "h1"}})
    cluster.settle()
    (reason,) = next(found.reasons for found in cluster.status("new").refusals if found.host == "h1")
    assert reason.endswith("4 to 120 s can be relied on")
    assert cluster.running("shared") == {0: "h1"}
    cluster.down("h1", 100.0)
    cluster.settle()
    assert cluster.running("orders") == {0: "h1"}
    cluster.pass_time(36.5)
    cluster.settle()
    assert cluster.running("orders") == {0: "h2"}


@pytest.mark.parametrize(
    ("silence_s", "wake"), [(0.0, 4.0), (3.0, 1.0), (4.0, 8.0), (11.5, 0.5), (12.0, None), (90.0, None)]
)
def test_when_to_look_again(silence_s: float, wake: float | None) -> None:
    cluster = cluster_of(hosts=1)
    assert wake_s(cluster.view, cluster.policy) is None
    cluster.publish("orders", derived=Overlap.EXCLUSIVE)
    cluster.settle()
    if silence_s:
        cluster.down("h1", silence_s)
    assert cluster.plan().wake_s == wake


# --- sessions


def test_a_lapse_is_answered_at_once_and_keeps_the_executions() -> None:
    cluster = running(Overlap.EXCLUSIVE)
    before = cluster.item("orders").execution
    session = Session("agent-h1", "boot-h1", 2)
    cluster.up("h1", session=session)
    cluster.commit(cluster.plan())
    assert cluster.view.assignments["h1"].session == session
    assert cluster.item("orders").execution == before


@pytest.mark.parametrize(("agent", "boot"), [("agent-h1", "other-boot"), ("other-agent", "boot-h1")])
def test_another_identity_waits_until_its_predecessor_has_been_silent(agent: str, boot: str) -> None:
    cluster = running(Overlap.EXCLUSIVE)
    before = cluster.view.assignments["h1"].session
    cluster.up("h1", session=Session(agent, boot, 1), kept=False)
    cluster.pass_time(11.9)
    cluster.settle()
    assert cluster.view.assignments["h1"].session == before
    cluster.publish("new", placement={"required": {"host": "h1"}})
    cluster.settle()
    assert "waits for an earlier session" in str(cluster.status("new").refusals[0])
    cluster.pass_time(0.2)
    cluster.settle()
    now = cluster.view.assignments["h1"].session
    assert now is not None
    assert (now.agent, now.boot) == (agent, boot)
    assert cluster.running("new") == {0: "h1"}


def test_a_new_agent_gets_lease_bound_executions_under_new_serials_only() -> None:
    cluster = cluster_of(hosts=1)
    cluster.publish("poll", derived=Overlap.EXCLUSIVE)
    cluster.publish("orders")
    cluster.settle()
    poll, orders = cluster.item("poll").execution, cluster.item("orders").execution
    cluster.up("h1", session=Session("other-agent", "boot-h1", 1), kept=False)
    cluster.pass_time(20.0)
    cluster.settle()
    assert cluster.item("poll").execution != poll
    assert cluster.item("orders").execution == orders


def test_a_new_agent_waits_for_the_word_that_what_goes_on_alone_is_dead() -> None:
    """It may be another machine of that name: it knows nothing of what runs on the first one, which obeys no lease."""
    cluster = cluster_of(hosts=2)
    cluster.publish("poll", derived=Overlap.EXCLUSIVE, on_partition="continue", placement={"required": {"host": "h1"}})
    cluster.settle()
    poll, before = cluster.item("poll").execution, cluster.view.assignments["h1"].session
    cluster.up("h1", session=Session("other-agent", "boot-h1", 1), kept=False)
    cluster.pass_time(100.0)
    cluster.settle()
    cluster.edit("poll", status="draft")
    cluster.settle()
    assert cluster.view.assignments["h1"].session == before
    assert [item.execution for item in cluster.view.assignments["h1"].stopping] == [poll], "asked, and not confirmed"
    cluster.intend("h1", confirm_dead=True, session=before)
    cluster.settle()
    assert cluster.view.assignments["h1"].session == Session("other-agent", "boot-h1", 1)
    assert not cluster.view.assignments["h1"].stopping


def test_a_new_boot_of_the_same_agent_resumes_what_it_had() -> None:
    cluster = running(Overlap.EXCLUSIVE)
    before = cluster.item("orders").execution
    cluster.up("h1", session=Session("agent-h1", "other-boot", 1), kept=False)
    cluster.pass_time(20.0)
    cluster.settle()
    assert cluster.item("orders").execution == before


def test_a_predecessor_is_waited_for_as_long_as_its_own_lease_needs() -> None:
    cluster = Cluster()
    cluster.host("h1", lease_s=60.0)
    cluster.settle()
    before = cluster.view.assignments["h1"].session
    cluster.machines["h1"].heartbeat = replace(cluster.machines["h1"].heartbeat, lease_s=8.0)
    cluster.up("h1", session=Session("other-agent", "boot-x", 1), kept=False)
    cluster.pass_time(69.5)
    cluster.settle()
    assert cluster.view.assignments["h1"].session == before
    cluster.pass_time(0.5)
    cluster.settle()
    assert cluster.view.assignments["h1"].session == Session("other-agent", "boot-x", 1)


def test_a_tombstone_makes_the_wait_for_a_predecessor_no_shorter() -> None:
    cluster = running(Overlap.EXCLUSIVE)
    before = cluster.view.assignments["h1"].session
    machine = cluster.machines["h1"]
    machine.dead = machine.heartbeat.session
    cluster.up("h1", session=Session("other-agent", "boot-x", 1), kept=False)
    cluster.pass_time(11.5)
    cluster.settle()
    assert cluster.view.assignments["h1"].session == before


def test_the_predecessor_is_the_session_that_the_document_names() -> None:
    """V2 of the model: a third session must not be answered as the successor of an unanswered second one."""
    cluster = running(Overlap.EXCLUSIVE)
    before = cluster.view.assignments["h1"].session
    cluster.up("h1", session=Session("impostor", "boot-x", 1), kept=False)
    cluster.pass_time(1.0)
    cluster.settle()
    cluster.up("h1", session=Session("impostor", "boot-x", 2), kept=False)
    cluster.settle()
    assert cluster.view.assignments["h1"].session == before


def test_an_impostor_confirms_nothing() -> None:
    """V1 of the model: a stop asked of one session is not confirmed by another that knows nothing of it."""
    cluster = running(Overlap.EXCLUSIVE)
    cluster.machines["h1"].reporting = False
    cluster.publish("orders", "2", derived=Overlap.EXCLUSIVE)
    cluster.commit(cluster.plan())
    assert stops(cluster, "h1")
    cluster.up("h1", session=Session("impostor", "boot-x", 1), kept=False)
    cluster.machines["h1"].applied = (99, 99)
    cluster.report("h1")
    cluster.settle()
    assert stops(cluster, "h1")
    assert not cluster.places("orders")


def test_answering_asks_every_stop_again() -> None:
    cluster = running(Overlap.EXCLUSIVE)
    cluster.machines["h1"].reporting = False
    cluster.edit("orders", status="draft")
    cluster.commit(cluster.plan())
    asked = stops(cluster, "h1")[0]
    session = Session("agent-h1", "boot-h1", 2)
    cluster.up("h1", session=session)
    made = cluster.plan()
    cluster.commit(made)
    again = stops(cluster, "h1")[0]
    assert (again.asked_of, again.asked_in) == (session, made.number)
    assert again.asked_in > asked.asked_in


@pytest.mark.parametrize("defect", ["session", "plan", "problem", "store", "listed"])
def test_what_does_not_confirm_a_stop(defect: str) -> None:
    cluster = running(Overlap.EXCLUSIVE)
    machine = cluster.machines["h1"]
    machine.reporting = False
    cluster.edit("orders", status="draft")
    cluster.commit(cluster.plan())
    number = cluster.view.plan
    machine.applied = (cluster.view.term, number)
    kept = dict(machine.items)
    machine.items.clear()
    match defect:
        case "session":
            machine.heartbeat = replace(machine.heartbeat, session=Session("agent-h1", "boot-h1", 9))
        case "plan":
            machine.applied = (cluster.view.term, number - 1)
        case "problem":
            machine.problem = "docker does not answer"
        case "listed":
            machine.items.update(kept)
        case _:
            pass  # the report itself is altered below
    cluster.report("h1")
    if defect == "store":
        report = replace(cluster.view.reports["h1"], store_id="another")
        cluster.world.fold_change(Source.REPORTS, Change(Entry("h1", encode(report), cluster.revision + 1)))
        cluster.revision += 1
    assert not [event for event in cluster.plan().assignments if event == "h1"]
    assert stops(cluster, "h1")


def test_a_proper_report_confirms_it() -> None:
    cluster = running(Overlap.EXCLUSIVE)
    cluster.edit("orders", status="draft")
    cluster.commit(cluster.plan())
    assert stops(cluster, "h1")
    cluster.act("h1")
    cluster.commit(cluster.plan(cluster.world.take_scope()))
    assert not stops(cluster, "h1")


# --- operators


def test_forget_drops_shareable_at_once_and_exclusive_when_it_must_have_stopped() -> None:
    cluster = cluster_of(hosts=2)
    cluster.publish("orders", placement={"preferred": {"host": "h1"}})
    cluster.publish("poll", derived=Overlap.EXCLUSIVE, placement={"preferred": {"host": "h1"}})
    cluster.settle()
    assert (cluster.running("orders"), cluster.running("poll")) == ({0: "h1"}, {0: "h1"})
    cluster.intend("h1", forget=True)
    cluster.settle()
    assert cluster.running("orders") == {0: "h1"}, "a host that lives is not forgotten"
    cluster.down("h1", 5.0)
    cluster.settle()
    assert (cluster.running("orders"), cluster.running("poll")) == ({0: "h2"}, {0: "h1"})
    assert "h1" in cluster.view.assignments
    cluster.pass_time(10.0)
    cluster.settle()
    assert cluster.running("poll") == {0: "h2"}
    assert "h1" not in cluster.view.assignments


def test_a_forgotten_host_that_comes_back_gets_an_empty_document_and_nothing_new() -> None:
    cluster = running(Overlap.SHAREABLE)
    cluster.intend("h1", forget=True)
    cluster.down("h1", 20.0)
    cluster.settle()
    cluster.up("h1")
    cluster.publish("more", replicas=3)
    cluster.settle()
    assert not cluster.view.assignments["h1"].executions
    assert not cluster.machines["h1"].items
    assert set(cluster.running("more").values()) == {"h2", "h3"}


def test_what_is_still_asked_to_stop_on_a_lost_host_is_dropped_when_it_is_forgotten() -> None:
    cluster = running(Overlap.EXCLUSIVE)
    cluster.down("h1", 20.0)
    cluster.edit("orders", status="draft")
    cluster.settle()
    assert cluster.status("orders").state is State.REMOVING
    cluster.intend("h1", forget=True)
    cluster.settle()
    assert not cluster.view.statuses
    assert "h1" not in cluster.view.assignments


def test_pausing_says_what_it_waits_for_when_a_former_host_is_lost() -> None:
    cluster = running(Overlap.SHAREABLE)
    cluster.down("h1", 60.0)
    cluster.settle()
    assert cluster.running("orders") == {0: "h2"}
    cluster.edit("orders", status="paused")
    cluster.settle()
    status = cluster.status("orders")
    assert status.state is State.PAUSING
    assert "until h1 confirms that orders-0-1 has stopped; h1 is silent" in status.reason


def test_pausing_does_not_wait_for_what_must_have_stopped_by_itself() -> None:
    cluster = running(Overlap.EXCLUSIVE)
    cluster.down("h1", 60.0)
    cluster.settle()
    cluster.edit("orders", status="paused")
    cluster.settle()
    assert stops(cluster, "h1"), "its traces are still there"
    assert (cluster.status("orders").state, cluster.status("orders").reason) == (State.PAUSED, "")


def test_a_stop_that_pausing_waits_for_on_a_lost_host_is_worth_a_tombstone() -> None:
    cluster = running(Overlap.EXCLUSIVE)
    cluster.machines["h1"].reporting = False
    cluster.publish("orders", "2", derived=Overlap.EXCLUSIVE)
    cluster.settle()
    cluster.edit("orders", status="paused")
    cluster.down("h1", 5.0)
    cluster.settle()
    assert "h1 is silent; when what runs there must have stopped" in cluster.status("orders").reason
    cluster.pass_time(10.0)
    cluster.settle()
    assert cluster.machines["h1"].dead
    assert cluster.status("orders").state is State.PAUSED
