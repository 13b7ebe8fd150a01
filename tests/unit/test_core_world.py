"""The fold: order, echoes, lists, held records, bad documents, indexes and scopes."""

from __future__ import annotations

import json

import pytest

from scheduler.core.view import Load, Plan, Scope
from scheduler.core.world import Source, World
from shared.documents import Assigned, Assignment, Journal, Report, Session, Stopping, encode
from shared.intents import HostIntent, StoreIntent
from shared.keys import STORE_INTENT
from shared.states import Overlap, Wanted
from shared.store import Change, Entry, Listing, Mark
from tests.support.clusters import STORE, Cluster

RECORD = {"id": "orders", "status": "published", "version": "1"}


def record(**fields: object) -> bytes:
    return json.dumps(RECORD | fields).encode()


def new_world() -> World:
    world = World()
    world.fold_journal(Journal(store_id=STORE, term=0, plan=7, attempt="a", holder="me"), 40)
    return world


def put(world: World, source: Source, key: str, value: bytes | None, revision: int) -> None:
    world.fold_change(source, Change(Entry(key, value, revision)))


def listing(sequence: int, entries: dict[str, tuple[bytes, int]], deleted: dict[str, int] | None = None) -> Listing:
    found = {key: Entry(key, value, revision) for key, (value, revision) in entries.items()}
    return Listing(found, deleted or {}, Mark("created", sequence))


def item(execution: str, pipeline: str, slot: int = 0, cpu: float = 0.1) -> Assigned:
    return Assigned(
        execution=execution,
        pipeline=pipeline,
        slot=slot,
        replicas=1,
        version="1",
        digest="d",
        wanted=Wanted.RUN,
        overlap=Overlap.SHAREABLE,
        lease_bound=False,
        stop_grace_s=1.0,
        cpu=cpu,
        memory_bytes=10,
    )


def assignment(host: str, *items: Assigned, stopping: tuple[Stopping, ...] = ()) -> Assignment:
    return Assignment(store_id=STORE, term=40, plan=8, host=host, session=None, executions=items, stopping=stopping)


def test_the_term_of_a_takeover_is_its_own_revision() -> None:
    world = new_world()
    assert (world.view().term, world.view().plan, world.view().store_id) == (40, 7, STORE)
    put(world, Source.CONTROL, "journal", encode(journal(40, 8)), 41)
    assert (world.view().term, world.view().plan) == (40, 8)


def journal(term: int, plan: int) -> Journal:
    return Journal(store_id=STORE, term=term, plan=plan, attempt="b", holder="me")


def test_an_older_or_equal_revision_changes_nothing() -> None:
    world = new_world()
    put(world, Source.PIPELINES, "orders", record(), 5)
    put(world, Source.PIPELINES, "orders", record(replicas=2), 5)
    put(world, Source.PIPELINES, "orders", None, 4)
    known = world.view().records["orders"]
    assert known.good is not None
    assert (known.good.replicas, known.revision) == (1, 5)


def test_the_echo_of_an_own_commit_changes_nothing() -> None:
    world = new_world()
    plan = Plan(number=8, assignments={"h1": assignment("h1", item("a-0-8", "a"))})
    world.fold_journal(journal(40, 8), 41)
    world.fold_plan(plan, 42)
    kept = world.view().assignments["h1"]
    assert world.take_scope().empty
    put(world, Source.CONTROL, "assign.h1", encode(kept), 42)
    put(world, Source.CONTROL, "journal", encode(journal(40, 8)), 41)
    assert world.view().assignments["h1"] is kept
    assert world.take_scope().empty


def test_a_listing_that_is_older_than_a_live_change_does_no_harm() -> None:
    world = new_world()
    put(world, Source.PIPELINES, "orders", record(replicas=3), 9)
    world.fold_listing(Source.PIPELINES, listing(9, {"orders": (record(), 5)}))
    good = world.view().records["orders"].good
    assert good is not None
    assert good.replicas == 3
    assert world.view().inputs["pipelines"].sequence == 9


def test_deleted_in_a_listing_is_deleted() -> None:
    world = new_world()
    put(world, Source.PIPELINES, "orders", record(), 5)
    world.fold_listing(Source.PIPELINES, listing(6, {}, {"orders": 6}))
    assert not world.view().records


STAYS = {"stays": (record(id="stays"), 1)}  # so that what is gone is not most of what there was


def test_gone_without_a_marker_is_held_until_a_second_list_agrees() -> None:
    world = new_world()
    put(world, Source.PIPELINES, "stays", STAYS["stays"][0], 1)
    put(world, Source.PIPELINES, "orders", record(), 5)
    world.take_scope()
    world.fold_listing(Source.PIPELINES, listing(6, STAYS))
    assert world.view().records["orders"].held
    assert world.take_scope().pipelines == {"orders"}
    world.fold_listing(Source.PIPELINES, listing(6, STAYS))
    assert world.view().records.keys() == {"stays"}
    assert world.take_scope().pipelines == {"orders"}
    world.fold_listing(Source.PIPELINES, listing(7, STAYS))
    assert world.take_scope().empty, "what is gone is not held again"


@pytest.mark.parametrize("again", ["listed", "written"])
def test_what_comes_back_is_no_longer_held(again: str) -> None:
    world = new_world()
    put(world, Source.PIPELINES, "stays", STAYS["stays"][0], 1)
    put(world, Source.PIPELINES, "orders", record(), 5)
    world.fold_listing(Source.PIPELINES, listing(6, STAYS))
    if again == "listed":
        world.fold_listing(Source.PIPELINES, listing(6, STAYS | {"orders": (record(), 5)}))
    else:
        put(world, Source.PIPELINES, "orders", record(), 8)
    assert not world.view().records["orders"].held
    world.fold_listing(Source.PIPELINES, listing(8, STAYS))
    assert world.view().records["orders"].held, "and two lists are needed again"


BAD = [
    b"",
    b"\xff\xfe",
    b"null",
    b"[]",
    b'"text"',
    b"{}",
    b'{"store_id": 1, "session": []}',
    b"[" * 100_000,
    b'{"a": "\\ud800"}',
    b"9" * 10_000,
]


@pytest.mark.parametrize("data", BAD, ids=range(len(BAD)))
@pytest.mark.parametrize(
    ("source", "key"),
    [
        (Source.PIPELINES, "orders"),
        (Source.CONFIGS, "orders/1"),
        (Source.OPERATOR, "host.h1"),
        (Source.OPERATOR, "store"),
        (Source.REPORTS, "h1"),
        (Source.CONTROL, "assign.h1"),
        (Source.CONTROL, "status.orders"),
        (Source.CONTROL, "version.orders.1"),
        (Source.CONTROL, "journal"),
    ],
)
def test_a_bad_document_changes_nothing_and_is_remembered(source: Source, key: str, data: bytes) -> None:
    world = new_world()
    before = world.view()
    put(world, source, key, data, 50)
    after = world.view()
    if (source, key) in world.problems:  # `{}` is a good intent
        assert len(world.problems[source, key]) <= 500
        assert (after.assignments, after.pins, after.statuses, after.plan) == (
            before.assignments,
            before.pins,
            before.statuses,
            before.plan,
        )
    else:
        assert source is Source.OPERATOR
    put(world, source, key, None, 51)
    assert (source, key) not in world.problems


def test_a_bad_record_keeps_the_last_good_one_with_what_is_wrong() -> None:
    world = new_world()
    put(world, Source.PIPELINES, "orders", record(), 5)
    put(world, Source.PIPELINES, "orders", record(replicas="two"), 6)
    known = world.view().records["orders"]
    assert known.good is not None
    assert known.revision == 6
    assert "replicas" in known.problems[0]
    put(world, Source.PIPELINES, "orders", record(), 7)
    assert not world.view().records["orders"].problems


def test_keys_that_are_not_ours_are_ignored() -> None:
    world = new_world()
    put(world, Source.CONTROL, "something.else", b"x", 50)
    put(world, Source.CONFIGS, "no-slash", b"x", 50)
    put(world, Source.OPERATOR, "notes", b"x", 50)
    assert set(world.problems) == {(Source.CONTROL, "something.else")}


def test_places_and_loads_follow_the_assignments() -> None:
    world = new_world()
    first, second = item("a-0-1", "a"), item("b-0-1", "b", cpu=0.25)
    put(world, Source.CONTROL, "assign.h2", encode(assignment("h2", first, second)), 50)
    put(world, Source.CONTROL, "assign.h1", encode(assignment("h1", item("a-1-1", "a", 1))), 51)
    view = world.view()
    assert [(place.host, place.item.execution) for place in view.places["a"]] == [("h1", "a-1-1"), ("h2", "a-0-1")]
    assert view.loads["h2"] == Load(350, 20, 2)
    put(world, Source.CONTROL, "assign.h2", encode(assignment("h2", second)), 52)
    assert [place.host for place in world.view().places["a"]] == ["h1"]
    put(world, Source.CONTROL, "assign.h2", None, 53)
    assert "b" not in world.view().places
    assert "h2" not in world.view().loads


def test_indexes_are_what_a_new_world_would_make_of_the_same_documents() -> None:
    cluster = Cluster(lag=True)
    for name in ("h1", "h2", "h3"):
        cluster.host(name)
    cluster.publish("a", replicas=3)
    cluster.publish("b", derived=Overlap.EXCLUSIVE)
    cluster.publish("c", resources={"memory": "1TiB"})
    cluster.settle()
    cluster.edit("a", replicas=1)
    cluster.delete("b")
    cluster.step()
    view, fresh = cluster.view, new_world()
    documents = {f"assign.{host}": encode(found) for host, found in view.assignments.items()}
    documents |= {f"status.{name}": encode(found) for name, found in view.statuses.items()}
    documents |= {f"version.{name}.{version}": encode(pin) for (name, version), pin in view.pins.items()}
    for offset, (key, data) in enumerate(documents.items()):
        put(fresh, Source.CONTROL, key, data, 100 + offset)
    again = fresh.view()
    assert (again.places, again.loads, again.pins_of, again.waiting) == (
        view.places,
        view.loads,
        view.pins_of,
        view.waiting,
    )


def test_scopes_are_taken_once_and_can_be_handed_back() -> None:
    world = new_world()
    put(world, Source.PIPELINES, "orders", record(), 5)
    put(world, Source.OPERATOR, "host.h1", encode(HostIntent(drain=True)), 5)
    put(world, Source.OPERATOR, "restart.other", b"{}", 6)
    scope = world.take_scope()
    assert scope == Scope(frozenset({"orders", "other"}), frozenset({"h1"}))
    assert world.take_scope().empty
    world.mark(scope)
    assert world.take_scope() == scope
    assert world.view().restart_intents == {"other": "6"}


def test_a_report_marks_only_what_it_shows_differently() -> None:
    cluster = Cluster()
    cluster.host("h1")
    for name in ("a", "b"):
        cluster.publish(name)
    cluster.settle()
    cluster.world.take_scope()
    cluster.report("h1")
    assert cluster.world.take_scope().empty
    cluster.machines["h1"].reasons[cluster.item("b").execution] = "upstream away"
    cluster.report("h1")
    assert cluster.world.take_scope() == Scope(frozenset({"b"}))


def test_hosts_mark_what_crosses_a_threshold_and_nothing_else() -> None:
    cluster = Cluster()
    for name in ("h1", "h2"):
        cluster.host(name)
    cluster.settle()
    cluster.world.take_scope()
    marked = []
    cluster.down("h1", 1.0)
    for _ in range(14):
        marked.append(sorted(cluster.world.take_scope().hosts))
        cluster.pass_time(1.0)
    assert [number for number, hosts in enumerate(marked) if hosts] == [3, 11]
    del cluster.machines["h2"]
    cluster.beat()
    assert cluster.world.take_scope().hosts == {"h2"}


@pytest.mark.parametrize("key", ["assign.h1", "status.alpha", "version.alpha.1"])
@pytest.mark.parametrize("data", [b"", b"[]", b'{"host": "h2"}'])
def test_a_document_of_the_leader_that_somebody_overwrites_is_written_again(key: str, data: bytes) -> None:
    """A successor knows only what is stored: what it cannot read it would take for missing."""
    cluster = Cluster()
    cluster.host("h1")
    cluster.publish("alpha")
    cluster.settle()
    running = cluster.running("alpha")
    cluster.world.fold_change(Source.CONTROL, Change(Entry(key, data, cluster.revision + 1)))
    cluster.revision += 1
    made = cluster.plan(cluster.world.take_scope())
    assert [name for name, _ in made.documents()] == [key]
    ((_, document),) = made.documents()
    assert document is not None
    cluster.commit(made)
    cluster.settle()
    assert cluster.running("alpha") == running
    assert cluster.plan().empty


def test_a_word_on_another_store_concerns_hosts_of_which_only_a_report_is_left() -> None:
    world = new_world()
    report = Report(store_id="another", host="h", session=Session("a", "b", 1), term=1, plan=1, executions=())
    put(world, Source.REPORTS, "h", encode(report), 1)
    world.take_scope()
    put(world, Source.OPERATOR, STORE_INTENT, encode(StoreIntent(accept=STORE, replaces="another")), 1)
    assert world.take_scope().hosts == {"h"}
