"""Accidents to users' streams: what goes on as it was, what is followed, and what ends that."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from scheduler.core import blast
from scheduler.core.blast import Kept
from scheduler.core.world import Source, World
from shared.documents import Hold, InputMark, Journal, Status, encode
from shared.intents import ConfirmIntent, HostIntent, RestartIntent
from shared.keys import confirm_intent_key, host_intent_key, restart_intent_key, status_key
from shared.states import Overlap, State
from shared.store import Change, Entry, Listing, Mark
from tests.support.clusters import STORE, Cluster

WHY = "the stream was made anew"
TRUSTED = InputMark("first", 9)
ANEW = InputMark("second", 2)


def record(pipeline: str, **fields: object) -> bytes:
    return json.dumps({"id": pipeline, "status": "published", "version": "1", **fields}).encode()


def status(pipeline: str, version: str = "1") -> bytes:
    return encode(
        Status(
            store_id=STORE,
            term=40,
            plan=7,
            pipeline=pipeline,
            state=State.RUNNING,
            wanted="published",
            version=version,
        )
    )


def listing(
    entries: dict[str, tuple[bytes, int]], deleted: dict[str, int] | None = None, mark: InputMark = ANEW
) -> Listing:
    found = {key: Entry(key, value, revision) for key, (value, revision) in entries.items()}
    return Listing(found, deleted or {}, Mark(mark.created, mark.sequence))


def put(world: World, source: Source, key: str, value: bytes | None, revision: int) -> None:
    world.fold_change(source, Change(Entry(key, value, revision)))


def new_world(*pipelines: str) -> World:
    """With these records, at revisions 1, 2, ..."""
    world = World()
    world.fold_journal(Journal(store_id=STORE, term=0, plan=7, attempt="a", holder="me"), 40)
    found = {pipeline: (record(pipeline), revision) for revision, pipeline in enumerate(pipelines, 1)}
    world.fold_listing(Source.PIPELINES, listing(found, mark=TRUSTED))
    world.fold_listing(Source.OPERATOR, listing({}, mark=TRUSTED))
    world.take_scope()
    return world


def in_force(world: World) -> dict[str, str]:
    """Version of every record in force."""
    return {key: one.good.version if one.good else "" for key, one in world.view().records.items() if not one.held}


def kept(world: World) -> set[str]:
    return set(world.kept[Source.PIPELINES].pending) if Source.PIPELINES in world.kept else set()


@pytest.mark.parametrize(
    ("now", "words"),
    [
        pytest.param(InputMark("first", 9), "", id="the same"),
        pytest.param(InputMark("first", 12), "", id="further"),
        pytest.param(InputMark("second", 12), "made anew", id="another, however long"),
        pytest.param(InputMark("first", 8), "went back", id="shorter"),
    ],
)
def test_whether_a_stream_is_what_it_was(now: InputMark, words: str) -> None:
    assert words in blast.replaced(TRUSTED, now)
    assert bool(blast.replaced(TRUSTED, now)) is bool(words)


def test_a_stream_made_anew_changes_nothing_that_runs() -> None:
    world = new_world("a", "b", "c", "d")
    lists = listing({"a": (record("a"), 1), "b": (record("b", version="0"), 2), "new": (record("new"), 3)}, {"c": 4})
    world.fold_replaced(Source.PIPELINES, lists, TRUSTED, WHY)
    assert in_force(world) == {"a": "1", "b": "1", "c": "1", "d": "1", "new": "1"}
    assert kept(world) == {"b", "c", "d"}, "other, deleted and missing; the same and the new one are followed"
    assert {key for key, one in world.view().records.items() if one.kept} == {"b", "c", "d"}
    assert world.take_scope().pipelines == {"a", "b", "c", "d", "new"}
    for _ in range(3):
        world.fold_listing(Source.PIPELINES, lists)
    assert kept(world) == {"b", "c", "d"}, "however often the same is listed"


def test_what_is_written_afterwards_is_followed_and_ends_it() -> None:
    world = new_world("a", "b", "c")
    world.fold_replaced(Source.PIPELINES, listing({}), TRUSTED, WHY)
    put(world, Source.PIPELINES, "a", record("a"), 3)
    assert kept(world) == {"b", "c"}
    assert not world.view().records["a"].kept
    put(world, Source.PIPELINES, "b", record("b", version="2"), 4)
    put(world, Source.PIPELINES, "c", record("c"), 5)
    assert in_force(world) == {"a": "1", "b": "2", "c": "1"}
    assert not world.kept
    put(world, Source.PIPELINES, "c", None, 6)
    assert in_force(world) == {"a": "1", "b": "2"}, "and a user's deletion is one again"


def test_an_operators_word_makes_the_stream_count() -> None:
    world = new_world("a", "b", "c")
    world.fold_replaced(Source.PIPELINES, listing({"b": (record("b", version="0"), 1)}), TRUSTED, WHY)
    world.take_scope()
    world.release(Source.PIPELINES)
    assert in_force(world) == {"b": "0"}
    assert world.take_scope().pipelines == {"a", "b", "c"}
    assert not world.kept


def test_a_second_accident_while_one_is_held_still_loses_nothing() -> None:
    world = new_world("a", "b")
    world.fold_replaced(Source.PIPELINES, listing({}), TRUSTED, WHY)
    put(world, Source.PIPELINES, "a", record("a"), 3)
    again = InputMark("third", 0)
    world.fold_replaced(Source.PIPELINES, listing({}, mark=again), InputMark("second", 3), WHY)
    assert in_force(world) == {"a": "1", "b": "1"}
    assert world.kept[Source.PIPELINES].trusted == TRUSTED, "what both were still what they should be"
    assert world.kept[Source.PIPELINES].mark == again


def test_most_records_gone_without_a_marker_are_no_removal() -> None:
    world = new_world("a", "b", "c")
    rest = listing({"c": (record("c"), 3)}, mark=TRUSTED)
    for _ in range(3):
        world.fold_listing(Source.PIPELINES, rest)
    assert in_force(world) == {"a": "1", "b": "1", "c": "1"}
    assert kept(world) == {"a", "b"}
    world.fold_listing(Source.PIPELINES, listing({"b": (record("b"), 10), "c": (record("c"), 3)}, mark=TRUSTED))
    world.fold_listing(Source.PIPELINES, listing({"b": (record("b"), 10), "c": (record("c"), 3)}, mark=TRUSTED))
    assert kept(world) == {"a"}, "what is missing goes on, though it is no more than one of three"


def test_what_a_user_deleted_is_removed_however_many() -> None:
    world = new_world("a", "b", "c")
    world.fold_listing(Source.PIPELINES, listing({}, {"a": 10, "b": 11, "c": 12}, mark=InputMark("first", 12)))
    assert in_force(world) == {}
    assert not world.kept


def test_an_instance_that_starts_after_the_accident_goes_by_what_was_decided() -> None:
    world = new_world("same", "older")
    for revision, pipeline in enumerate(("same", "older", "missing", "deleted-later"), 41):
        put(
            world, Source.CONTROL, status_key(pipeline), status(pipeline, "2" if pipeline == "older" else "1"), revision
        )
    put(world, Source.PIPELINES, "deleted-later", None, 10)
    world.doubt(Source.PIPELINES, InputMark("zeroth", 100), TRUSTED, WHY)
    records = world.view().records
    assert kept(world) == {"older", "missing"}
    assert records["older"].held
    assert records["missing"].held
    assert not records["same"].held
    assert "deleted-later" not in records
    put(world, Source.PIPELINES, "missing", record("missing"), 11)
    world.release(Source.PIPELINES)
    assert in_force(world) == {"same": "1", "older": "1", "missing": "1"}


def test_an_operators_word_does_not_remove_what_has_a_record_that_is_none() -> None:
    world = new_world("a")
    put(world, Source.PIPELINES, "broken", b"{", 7)
    put(world, Source.CONTROL, status_key("broken"), status("broken", "1"), 41)
    world.doubt(Source.PIPELINES, InputMark("zeroth", 100), TRUSTED, WHY)
    assert world.view().records["broken"].held
    world.release(Source.PIPELINES)
    after = world.view().records["broken"]
    assert not after.held
    assert after.good is None
    assert after.problems


def test_an_instance_that_starts_after_a_purge_finds_what_is_missing() -> None:
    world = new_world()
    for revision, pipeline in enumerate(("a", "b"), 41):
        put(world, Source.CONTROL, status_key(pipeline), status(pipeline), revision)
    world.miss()
    assert kept(world) == {"a", "b"}
    world.release(Source.PIPELINES)
    assert not world.view().records


def test_one_of_many_that_is_missing_at_the_start_goes_when_a_second_list_agrees() -> None:
    world = new_world("a", "b", "c")
    for revision, pipeline in enumerate(("a", "b", "c", "gone"), 41):
        put(world, Source.CONTROL, status_key(pipeline), status(pipeline), revision)
    world.miss()
    assert world.view().records["gone"].held
    assert not world.kept
    lists = listing({key: (record(key), at) for at, key in enumerate(("a", "b", "c"), 1)}, mark=TRUSTED)
    world.fold_listing(Source.PIPELINES, lists)
    assert "gone" not in world.view().records


def test_intents_of_an_older_backup_come_to_life_only_on_an_operators_word() -> None:
    world = new_world("a")
    drain, cordon = encode(HostIntent(drain=True)), encode(HostIntent(cordon=True))
    put(world, Source.OPERATOR, host_intent_key("h1"), drain, 10)
    put(world, Source.OPERATOR, host_intent_key("h1"), None, 11)
    put(world, Source.OPERATOR, host_intent_key("h2"), cordon, 12)
    older = listing({host_intent_key("h1"): (drain, 1), "confirm.x": (encode(word(3)), 2)})
    world.fold_replaced(Source.OPERATOR, older, InputMark("first", 12), WHY)
    assert set(world.view().host_intents) == {"h2"}
    assert set(world.kept[Source.OPERATOR].pending) == {host_intent_key("h1"), host_intent_key("h2")}
    assert set(world.confirms) == {"x"}
    put(world, Source.OPERATOR, host_intent_key("h2"), None, 3)
    world.release(Source.OPERATOR)
    assert set(world.view().host_intents) == {"h1"}


def test_an_instance_that_starts_after_an_accident_to_the_intents_moves_nothing() -> None:
    world = new_world("a")
    put(world, Source.OPERATOR, host_intent_key("h1"), encode(HostIntent(drain=True)), 10)
    put(world, Source.OPERATOR, host_intent_key("h2"), encode(HostIntent(cordon=True)), 11)
    put(world, Source.OPERATOR, restart_intent_key("a"), encode(RestartIntent()), 12)
    put(world, Source.OPERATOR, host_intent_key("h3"), encode(HostIntent(drain=True)), 14)
    world.doubt(Source.OPERATOR, InputMark("zeroth", 99), InputMark("first", 12), WHY)
    assert set(world.view().host_intents) == {"h2", "h3"}
    assert not world.view().restart_intents
    world.release(Source.OPERATOR)
    assert set(world.view().host_intents) == {"h1", "h2", "h3"}
    assert world.view().restart_intents == {"a": "12"}


def word(plan: int, created: str = "second", store: str = STORE) -> ConfirmIntent:
    return ConfirmIntent(store_id=store, plan=plan, created=created)


@pytest.mark.parametrize(
    ("intent", "counts"),
    [
        pytest.param(word(8), True, id="it names the hold"),
        pytest.param(word(7), False, id="of an earlier accident"),
        pytest.param(word(8, created="first"), False, id="of another stream"),
        pytest.param(word(8, store="other"), False, id="of another store"),
        pytest.param(None, False, id="no word"),
    ],
)
def test_a_word_is_for_one_hold(intent: ConfirmIntent | None, counts: bool) -> None:
    hold = Hold(reason=WHY, plan=8, mark=ANEW)
    assert blast.confirmed(hold, intent, STORE) is counts
    assert not blast.confirmed(None, intent, STORE)


def test_a_hold_keeps_its_name_until_the_stream_changes_again() -> None:
    one = Kept(WHY, TRUSTED, ANEW)
    first = blast.holds({"pipelines": one}, {}, 8)
    assert first["pipelines"].plan == 8
    assert blast.holds({"pipelines": one}, first, 9) == first
    again = blast.holds({"pipelines": Kept(WHY, TRUSTED, InputMark("third", 0))}, first, 10)
    assert again["pipelines"].plan == 10
    assert blast.holds({}, first, 11) == {}
    marks = {"pipelines": ANEW, "configs": ANEW}
    assert blast.trusted(marks, {"pipelines": one}) == {"pipelines": TRUSTED, "configs": ANEW}


def test_the_word_of_an_operator_is_read_from_its_key() -> None:
    world = new_world()
    put(world, Source.OPERATOR, confirm_intent_key("pipelines"), encode(word(8)), 10)
    assert world.confirms == {"pipelines": word(8)}
    put(world, Source.OPERATOR, confirm_intent_key("pipelines"), None, 11)
    assert not world.confirms


@pytest.mark.parametrize(
    ("fell", "alive", "together"),
    [
        pytest.param({"a": 1.0}, 1, "", id="one of two"),
        pytest.param({"a": 1.0, "b": 1.0}, 0, "", id="two of two"),
        pytest.param({"a": 1.0, "b": 1.0}, 1, "", id="two of three"),
        pytest.param({"a": 1.0, "b": 2.0, "c": 3.0}, 0, "abc", id="all of three"),
        pytest.param({"a": 1.0, "b": 2.0, "c": 3.0}, 2, "abc", id="three of five"),
        pytest.param({"a": 1.0, "b": 2.0, "c": 3.0}, 3, "", id="half"),
        pytest.param({"a": 1.0, "b": 10.0, "c": 20.0}, 0, "", id="one after the other"),
        pytest.param({"x": 0.0, "a": 90.0, "b": 91.0, "c": 92.0}, 2, "abc", id="one was gone long before"),
    ],
)
def test_which_hosts_fell_silent_together(fell: dict[str, float], alive: int, together: str) -> None:
    assert blast.fell_together(fell, alive, 12.0) == frozenset(together)


def fallen(hosts: int, down: int) -> Cluster:
    """So many hosts, so many of them silent for good at once, each with something on it."""
    cluster = Cluster()
    for number in range(1, hosts + 1):
        cluster.host(f"h{number}")
    cluster.publish("shared", replicas=hosts)
    cluster.publish("alone", derived=Overlap.EXCLUSIVE)
    cluster.settle()
    for number in range(1, down + 1):
        cluster.down(f"h{number}", 3.0)
    cluster.settle()
    cluster.pass_time(30.0)
    cluster.settle()
    return cluster


@pytest.mark.parametrize(("hosts", "down"), [(2, 1), (3, 1), (3, 2), (6, 3)])
def test_a_few_hosts_that_die_are_failed_over(hosts: int, down: int) -> None:
    cluster = fallen(hosts, down)
    dead = {f"h{number}" for number in range(1, down + 1)}
    assert cluster.world.outage is None
    assert dead.isdisjoint(cluster.running("shared").values())
    assert dead.isdisjoint(cluster.running("alone").values())


def test_nothing_moves_when_most_hosts_fall_silent_at_once() -> None:
    cluster = fallen(5, 3)
    assert sorted(cluster.running("shared").values()) == ["h1", "h2", "h3", "h4", "h5"]
    assert "shoal store confirm hosts" in cluster.status("shared").reason
    assert set(cluster.world.all_kept()) == {"hosts"}
    for host in ("h1", "h2"):
        cluster.up(host)
    cluster.settle()
    assert "h3" in cluster.running("shared").values(), "it may be some seconds behind the others"
    cluster.pass_time(cluster.policy.silent_exclusive_s)
    cluster.settle()
    assert cluster.world.outage is None
    assert "h3" not in cluster.running("shared").values(), "the one that stays away is failed over then"


def test_hosts_that_come_back_one_after_the_other_keep_what_they_have() -> None:
    cluster = fallen(4, 3)
    before = cluster.running("shared"), cluster.running("alone")
    for host in ("h1", "h2", "h3"):
        cluster.up(host)
        cluster.pass_time(2.0)
        cluster.settle()
    assert (cluster.running("shared"), cluster.running("alone")) == before
    assert cluster.world.outage is None


def test_a_host_that_leaves_an_outage_is_looked_at() -> None:
    """It fell silent too long before those that are the most now."""
    cluster = fallen(5, 0)
    for host, seconds in (("h1", 6.0), ("h2", 4.0), ("h3", 4.0), ("h4", 2.0), ("h5", 2.5)):
        cluster.down(host, 0.0)
        for _ in range(int(seconds * 2)):
            cluster.pass_time(0.5)
            scope = cluster.world.take_scope()
            made, full = cluster.plan(scope), cluster.plan()
            assert made.documents() == full.documents(), (host, scope)
            cluster.commit(made)
    assert cluster.view.outage == {"h2", "h3", "h4", "h5"}


def test_hosts_that_have_nothing_fall_silent_too() -> None:
    """What fails when most hosts fall silent is the network between; that some of them are empty makes it no better."""
    cluster = Cluster()
    cluster.host("h1")
    cluster.publish("alone", derived=Overlap.EXCLUSIVE)
    cluster.settle()
    for number in (2, 3, 4):
        cluster.host(f"h{number}")
    for number in (1, 2, 3):
        cluster.down(f"h{number}", 3.0)
    cluster.settle()
    cluster.pass_time(30.0)
    cluster.settle()
    assert cluster.running("alone") == {0: "h1"}
    assert cluster.world.outage is not None


@pytest.mark.parametrize("lost", [1, 2, 3])
def test_hosts_whose_keys_are_lost_fall_silent_too(lost: int) -> None:
    """As when the bucket is made anew while most agents cannot reach it: a new leader has never seen some of them."""
    cluster = Cluster()
    for number in range(1, 5):
        cluster.host(f"h{number}")
    cluster.publish("shared", replicas=4)
    cluster.publish("alone", derived=Overlap.EXCLUSIVE, placement={"preferred": {"host": "h1"}})
    cluster.settle()
    before = cluster.running("shared"), cluster.running("alone")
    cluster.age_s = 0.0
    for number in range(1, lost + 1):
        del cluster.machines[f"h{number}"]
    for number in range(lost + 1, 4):
        cluster.down(f"h{number}", 0.0)
    for _ in range(10):
        cluster.pass_time(3.0)
        cluster.settle()
    assert (cluster.running("shared"), cluster.running("alone")) == before
    assert "shoal store confirm hosts" in cluster.status("alone").reason
    give_up(cluster, cluster.revision)
    cluster.settle()
    cluster.pass_time(30.0)  # of a key that is gone, silence is counted from its tombstone
    cluster.settle()
    assert set(cluster.running("shared").values()) | set(cluster.running("alone").values()) == {"h4"}


def test_empty_hosts_may_be_switched_off_together() -> None:
    cluster = Cluster()
    cluster.host("h1")
    cluster.publish("alone", derived=Overlap.EXCLUSIVE)
    cluster.settle()
    for number in (2, 3, 4):
        cluster.host(f"h{number}")
        cluster.down(f"h{number}", 3.0)
    cluster.settle()
    assert cluster.world.outage is None


@pytest.mark.parametrize("life", [1, 2])
def test_a_word_on_an_earlier_life_of_a_host_ends_no_outage(life: int) -> None:
    cluster = fallen(4, 3)
    named = replace(cluster.machines["h1"].heartbeat.session, number=life)
    cluster.intend("h1", confirm_dead=True, session=named)
    cluster.settle()
    assert ("h1" in cluster.running("shared").values()) is (life == 2)


def test_hosts_that_died_long_before_do_not_count_as_heard() -> None:
    cluster = Cluster()
    for number in range(1, 7):
        cluster.host(f"h{number}")
    cluster.publish("alone", derived=Overlap.EXCLUSIVE, replicas=6, overlap="forbid")
    cluster.settle()
    for host in ("h5", "h6"):
        cluster.down(host, 100.0)
        cluster.settle()
    before = cluster.running("alone")
    for host in ("h1", "h2", "h3"):
        cluster.down(host, 3.0)
    cluster.settle()
    cluster.pass_time(30.0)
    cluster.settle()
    assert cluster.running("alone") == before


def give_up(cluster: Cluster, sequence: int, created: str = "hosts") -> None:
    """An operator's word on all hosts that were not heard on that stream since."""
    intent = ConfirmIntent(store_id="", plan=0, created="", heard=InputMark(created, sequence))
    cluster.say(confirm_intent_key("hosts"), encode(intent))


def test_an_operators_word_moves_what_ran_on_hosts_that_fell_silent_at_once() -> None:
    cluster = fallen(5, 3)
    give_up(cluster, cluster.revision)
    cluster.settle()
    assert set(cluster.running("shared").values()) == {"h4", "h5"}
    assert set(cluster.running("alone").values()) <= {"h4", "h5"}
    assert not cluster.world.all_kept()


@pytest.mark.parametrize(
    ("heard_since", "created", "moves"),
    [
        pytest.param(False, "hosts", True, id="they were not heard since"),
        pytest.param(True, "hosts", False, id="they came back meanwhile"),
        pytest.param(False, "another", False, id="it was said of another stream"),
    ],
)
def test_an_operators_word_on_silent_hosts_counts_for_a_later_leader(
    heard_since: bool, created: str, moves: bool
) -> None:
    """It counts every silence from zero, so it sees all of them fall silent at once again."""
    cluster = fallen(5, 0)
    before = cluster.running("shared")
    give_up(cluster, cluster.revision, created)
    if heard_since:
        cluster.beat()
    for host in ("h1", "h2", "h3"):
        cluster.down(host, 0.0)
    for seconds in (2.0, 2.0, 30.0):
        cluster.pass_time(seconds)
        cluster.settle()
    assert (cluster.running("shared") != before) is moves
    assert (not cluster.world.all_kept()) is moves
