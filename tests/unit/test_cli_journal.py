"""A journal that is made again from the leader's other documents."""

from dataclasses import replace

import pytest

from cli.journal import rebuilt
from shared.documents import Assignment, InputMark, Journal, Report
from shared.errors import Refused
from tests.support.clusters import STORE, Cluster

INPUTS = {"pipelines": InputMark("c", 7)}


def running() -> Cluster:
    cluster = Cluster()
    for number in range(1, 4):
        cluster.host(f"h{number}")
    cluster.publish("orders", replicas=3)
    cluster.settle()
    return cluster


def repaired(cluster: Cluster, **changes: tuple[Assignment | Report, ...]) -> Journal:
    view = cluster.view
    found = {
        "assignments": tuple(view.assignments.values()),
        "statuses": tuple(view.statuses.values()),
        "pins": tuple(view.pins.values()),
        "reports": tuple(view.reports.values()),
    }
    return rebuilt(**(found | changes), sequence=cluster.revision, inputs=INPUTS, who="me")  # type: ignore[arg-type]


def test_its_numbers_are_above_all_that_were_given_out() -> None:
    cluster = running()
    before = cluster.world.journal
    assert before is not None
    made = repaired(cluster)
    assert (made.store_id, made.term, made.inputs, made.holder) == (STORE, 0, INPUTS, "me")
    assert made.plan > before.plan


def test_a_leader_goes_on_from_it_without_touching_anything() -> None:
    cluster = running()
    before = cluster.running("orders"), cluster.view.assignments
    cluster.world.fold_journal(repaired(cluster), cluster.revision + 1)
    cluster.revision += 2
    cluster.settle(scoped=False)
    assert (cluster.running("orders"), cluster.view.assignments) == before
    cluster.edit("orders", replicas=2)
    cluster.settle()
    assert len(cluster.running("orders")) == 2


def test_what_no_document_tells_any_more_is_left_room_for() -> None:
    """Plans of which nothing is left, those that removed the last of a host, say: each took a message at least."""
    cluster = running()
    known = max(one.plan for one in cluster.view.assignments.values())
    assert repaired(cluster).plan >= known + cluster.revision


def test_serials_that_hosts_report_are_not_given_out_again() -> None:
    cluster = running()
    report = next(iter(cluster.view.reports.values()))
    seen = replace(report.executions[0], execution="orders-0-5000")
    assert repaired(cluster, reports=(replace(report, store_id="other", executions=(seen,)),)).plan > 5000


def test_the_store_is_the_one_that_decided_last() -> None:
    cluster = running()
    first, *others = cluster.view.assignments.values()
    latest = replace(first, store_id="newer", term=first.term + 1, accepted=(STORE,))
    made = repaired(cluster, assignments=(latest, *others), reports=())
    assert (made.store_id, made.accepted) == ("newer", (STORE,))


def test_without_a_decision_there_is_nothing_to_go_on_from() -> None:
    with pytest.raises(Refused, match="no document of the leader"):
        repaired(running(), assignments=(), statuses=())


def test_documents_that_are_older_than_what_hosts_obey_are_no_ground() -> None:
    """As after a restore of the control stream: going on from them would take back what came after."""
    cluster = running()
    report = next(iter(cluster.view.reports.values()))
    with pytest.raises(Refused, match="have applied plan 999"):
        repaired(cluster, reports=(replace(report, plan=999),))
