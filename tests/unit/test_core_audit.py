"""The audit bites: each defect that a planner could have is found, and the pipeline it concerns is named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from scheduler.core.audit import audit
from scheduler.core.view import Plan, Policy, Tombstone
from shared.documents import Assigned, Assignment, Session, Stopping
from shared.states import Overlap, State
from tests.support.clusters import Cluster


def made_cluster() -> Cluster:
    """h1 runs poll (exclusive), h2 and h3 one slot of orders each."""
    cluster = Cluster()
    for name in ("h1", "h2", "h3"):
        cluster.host(name)
    cluster.publish("poll", derived=Overlap.EXCLUSIVE, placement={"required": {"host": ["h1", "h3"]}})
    cluster.settle()
    cluster.publish("orders", replicas=2, placement={"required": {"host": ["h1", "h2", "h3"]}})
    cluster.settle()
    cluster.intend("h3", cordon=True)
    cluster.intend("h3")
    cluster.settle()
    return cluster


def document(cluster: Cluster, host: str, number: int) -> Assignment:
    return replace(cluster.view.assignments[host], plan=number)


def with_(cluster: Cluster, host: str, *added: Assigned) -> Plan:
    number = cluster.view.plan + 1
    old = document(cluster, host, number)
    return Plan(number=number, assignments={host: replace(old, executions=(*old.executions, *added))})


def without(cluster: Cluster, host: str, pipeline: str, *, asked: bool = True) -> Plan:
    number = cluster.view.plan + 1
    old = document(cluster, host, number)
    kept = tuple(item for item in old.executions if item.pipeline != pipeline)
    gone = [item for item in old.executions if item.pipeline == pipeline]
    stopping = tuple(stop_of(item, old.session, number) for item in gone) if asked else ()
    return Plan(number=number, assignments={host: replace(old, executions=kept, stopping=(*old.stopping, *stopping))})


def stop_of(item: Assigned, session: Session | None, number: int) -> Stopping:
    return Stopping(
        execution=item.execution,
        pipeline=item.pipeline,
        slot=item.slot,
        version=item.version,
        overlap=item.overlap,
        cpu=item.cpu,
        memory_bytes=item.memory_bytes,
        asked_of=session,
        asked_in=number,
        reason="",
        lease_bound=item.lease_bound,
    )


def second_poll(cluster: Cluster) -> Plan:
    number = cluster.view.plan + 1
    return with_(cluster, "h3", replace(cluster.item("poll"), execution=f"poll-0-{number}"))


def moved_poll(cluster: Cluster) -> Plan:
    """Off h1 and onto h3 in one plan, although h1 lives."""
    off, on = without(cluster, "h1", "poll"), second_poll(cluster)
    return replace(off, assignments={**off.assignments, **on.assignments})


def third_orders(cluster: Cluster, **changes: object) -> Plan:
    number = cluster.view.plan + 1
    fields: dict[str, object] = {"execution": f"orders-1-{number}", "slot": 1} | changes
    return with_(cluster, "h3", replace(cluster.item("orders", 1), **fields))  # type: ignore[arg-type]


def overfull(cluster: Cluster) -> Plan:
    cluster.relabel("h3", memory_bytes=1024)
    return third_orders(cluster)


def on_cordoned(cluster: Cluster) -> Plan:
    cluster.intend("h3", cordon=True)
    return third_orders(cluster)


def on_silent(cluster: Cluster) -> Plan:
    cluster.down("h3", 5.0)
    return third_orders(cluster)


def lacks_label(cluster: Cluster) -> Plan:
    cluster.edit("orders", placement={"required": {"host": ["h1", "h2"]}})
    return third_orders(cluster)


def changed_document(**changes: object) -> Callable[[Cluster], Plan]:
    def make(cluster: Cluster) -> Plan:
        number = cluster.view.plan + 1
        old = document(cluster, "h1", number)
        return Plan(number=number, assignments={"h1": replace(old, **changes)})  # type: ignore[arg-type]

    return make


def changed_item(cluster: Cluster) -> Plan:
    number = cluster.view.plan + 1
    old = document(cluster, "h1", number)
    items = tuple(replace(item, digest="other") for item in old.executions)
    return Plan(number=number, assignments={"h1": replace(old, executions=items)})


def deleted_document(cluster: Cluster) -> Plan:
    return Plan(number=cluster.view.plan + 1, assignments={"h1": None})


def repinned(cluster: Cluster) -> Plan:
    number = cluster.view.plan + 1
    pin = replace(cluster.view.pins["orders", "1"], plan=number, digest="other")
    return Plan(number=number, pins={("orders", "1"): pin})


def pin_deleted(cluster: Cluster) -> Plan:
    return Plan(number=cluster.view.plan + 1, pins={("orders", "1"): None})


def false_status(cluster: Cluster) -> Plan:
    number = cluster.view.plan + 1
    cluster.machines["h1"].phases.clear()
    cluster.machines["h1"].items.clear()
    cluster.report("h1")
    return Plan(number=number, statuses={"poll": replace(cluster.status("poll"), plan=number, state=State.RUNNING)})


def status_deleted(cluster: Cluster) -> Plan:
    return Plan(number=cluster.view.plan + 1, statuses={"poll": None})


def answered_too_early(cluster: Cluster) -> Plan:
    session = Session("impostor", "elsewhere", 1)
    cluster.up("h1", session=session)
    return changed_document(session=session)(cluster)


def stop_forgotten(cluster: Cluster) -> Plan:
    cluster.machines["h1"].reporting = False
    cluster.edit("poll", status="draft")
    cluster.commit(cluster.plan())
    number = cluster.view.plan + 1
    return Plan(number=number, assignments={"h1": replace(document(cluster, "h1", number), stopping=())})


def placed_before_confirmed(cluster: Cluster) -> Plan:
    item = cluster.item("poll")
    cluster.machines["h1"].reporting = False
    cluster.publish("poll", "2", derived=Overlap.EXCLUSIVE, placement={"required": {"host": ["h1", "h3"]}})
    cluster.commit(cluster.plan())
    pin = cluster.view.pins["poll", "2"]
    number = cluster.view.plan + 1
    new = replace(item, execution=f"poll-0-{number}", version="2", digest=pin.digest)
    return with_(cluster, "h3", new)


def held_record(cluster: Cluster) -> Plan:
    cluster.world._records.hold("orders", True)
    return without(cluster, "h2", "orders")


DEFECTS: list[tuple[Callable[[Cluster], Plan], str, set[str]]] = [
    (second_poll, "would run beside", {"poll"}),
    (moved_poll, "not confirmed on h1", {"poll"}),
    (placed_before_confirmed, "not confirmed on h1", {"poll"}),
    (lambda c: without(c, "h2", "orders"), "for no reason", {"orders"}),
    (lambda c: without(c, "h2", "orders", asked=False), "without being asked to stop", {"orders"}),
    (held_record, "says nothing valid", {"orders"}),
    (stop_forgotten, "forgotten unconfirmed", {"poll"}),
    (overfull, "more than it offers", {"orders"}),
    (on_cordoned, "takes nothing now", {"orders"}),
    (on_silent, "takes nothing now", {"orders"}),
    (lacks_label, "lacks a label", {"orders"}),
    (lambda c: third_orders(c, execution="orders-1-1"), "serial", {"orders"}),
    (lambda c: third_orders(c, digest="other"), "pinned to", {"orders"}),
    (lambda c: third_orders(c, slot=7, execution=f"orders-7-{c.view.plan + 1}"), "does not ask for it", {"orders"}),
    (changed_item, "becomes another execution", {"poll"}),
    (changed_document(store_id="another"), "not this plan's", set()),
    (changed_document(term=1), "not this plan's", set()),
    (changed_document(plan=1), "not this plan's", set()),
    (changed_document(host="h2"), "not this plan's", set()),
    (changed_document(session=Session("nobody", "nowhere", 1)), "nobody has", set()),
    (answered_too_early, "predecessor", set()),
    (deleted_document, "not forgotten", set()),
    (repinned, "pinned already", {"orders"}),
    (pin_deleted, "record exists", {"orders"}),
    (false_status, "nobody has said", {"poll"}),
    (status_deleted, "is left", {"poll"}),
    (lambda c: Plan(number=c.view.plan + 2, pins={("orders", "1"): None}), "should be number", set()),
]


@pytest.mark.parametrize(("make", "message", "pipelines"), DEFECTS, ids=[f"{n} {d[1]}" for n, d in enumerate(DEFECTS)])
def test_each_defect_is_found(make: Callable[[Cluster], Plan], message: str, pipelines: set[str]) -> None:
    cluster = made_cluster()
    plan = make(cluster)
    found = [violation for violation in audit(cluster.view, plan, cluster.policy) if message in str(violation)]
    assert found, audit(cluster.view, plan, cluster.policy)
    assert {name for violation in found for name in violation.pipelines} == pipelines


def test_too_many_writes() -> None:
    cluster = made_cluster()
    cluster.edit("poll", status="paused")
    cluster.edit("orders", status="paused")
    plan = cluster.plan()
    found = audit(cluster.view, plan, Policy(writes_max=3))
    assert any("3 fit" in str(violation) for violation in found)


def test_a_pipeline_on_hold_must_not_be_touched() -> None:
    cluster = made_cluster()
    cluster.edit("orders", replicas=3)
    plan = cluster.plan()
    found = audit(cluster.view, plan, Policy(hold=frozenset({"orders"})))
    assert {name for violation in found for name in violation.pipelines} == {"orders"}


def test_a_shareable_execution_that_is_ready_goes_only_when_another_one_is() -> None:
    cluster = made_cluster()
    cluster.publish("orders", "2", replicas=2)
    cluster.commit(cluster.plan(cluster.world.take_scope()))
    host = cluster.running_of_version("orders", "1")[0]
    plan = without(cluster, host, "orders")
    assert any("while it is ready" in str(violation) for violation in audit(cluster.view, plan, cluster.policy))


# -- tombstones --------------------------------------------------------------------------------------------------------


def silent_cluster(seconds: float) -> Cluster:
    """`poll` on h1, which has been silent for so long; nothing was planned since."""
    cluster = made_cluster()
    cluster.audited = False
    cluster.down("h1", seconds)
    return cluster


def stone(cluster: Cluster, **fields: Any) -> Tombstone:
    known = cluster.view.hosts["h1"]
    return replace(Tombstone("h1", known.heartbeat.session, known.revision, known.heartbeat), **fields)


def judged(cluster: Cluster, found: Tombstone) -> str:
    return "; ".join(map(str, audit(cluster.view, Plan(number=cluster.view.plan + 1, tombstones=(found,)))))


def test_a_tombstone_that_is_due_is_fine() -> None:
    cluster = silent_cluster(12.0)
    assert judged(cluster, stone(cluster)) == ""


def test_a_tombstone_of_a_host_that_lives_or_has_not_been_silent_for_its_own_time() -> None:
    cluster = silent_cluster(11.5)
    assert "before it has been silent for long enough" in judged(cluster, stone(cluster))
    cluster = silent_cluster(15.0)
    cluster.relabel("h1", lease_s=60.0)
    assert "before it has been silent for long enough" in judged(cluster, stone(cluster))


@pytest.mark.parametrize("fields", [{"revision": 1}, {"dead": Session("agent-h1", "boot-h1", 9)}])
def test_a_tombstone_of_something_else_than_was_heard_last(fields: dict[str, Any]) -> None:
    cluster = silent_cluster(60.0)
    assert "is not of the session that was heard last" in judged(cluster, stone(cluster, **fields))


@pytest.mark.parametrize(
    ("dead", "silence_s", "fine"), [(False, 60.0, False), (True, 11.5, False), (True, 12.0, True), (True, 60.0, True)]
)
def test_lease_bound_work_is_placed_elsewhere_only_behind_tombstone_and_silence(
    dead: bool, silence_s: float, fine: bool
) -> None:
    cluster = silent_cluster(silence_s)
    if dead:
        cluster.machines["h1"].dead = cluster.machines["h1"].heartbeat.session
        cluster.beat()
    found = [str(one) for one in audit(cluster.view, moved_poll(cluster))]
    assert (not [text for text in found if "not confirmed on h1" in text]) is fine


def test_lease_bound_work_waits_for_the_session_that_the_document_names() -> None:
    """An impostor's tombstone and silence say nothing of its predecessor."""
    cluster = silent_cluster(60.0)
    machine = cluster.machines["h1"]
    machine.heartbeat = replace(machine.heartbeat, session=Session("impostor", "boot-x", 1))
    machine.dead = machine.heartbeat.session
    machine.heard = {("impostor", "boot-x"): 60.0, ("agent-h1", "boot-h1"): 5.0}
    cluster.beat()
    assert "not confirmed on h1" in str(audit(cluster.view, moved_poll(cluster)))
    machine.heard["agent-h1", "boot-h1"] = 60.0
    cluster.beat()
    assert "not confirmed on h1" not in str(audit(cluster.view, moved_poll(cluster)))
