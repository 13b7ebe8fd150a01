"""Where slots go, and why not: scores, filters and refusals."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from scheduler.core.filters import EXECUTIONS_MAX, need_of, room, standing, wanting
from scheduler.core.goals import Run, resolve
from scheduler.core.placement import Seats
from scheduler.core.plan import explain
from scheduler.core.sheets import Draft
from shared.documents import REFUSALS_MAX, Driver
from shared.states import Overlap, State
from tests.support.clusters import GIB, MIB, Cluster


def test_spread_over_hosts_then_over_load() -> None:
    cluster = Cluster()
    for name in ("h1", "h2", "h3"):
        cluster.host(name)
    cluster.publish("a", replicas=7)
    cluster.publish("b", replicas=2)
    cluster.settle()
    assert sorted(Counter(cluster.running("a").values()).values()) == [2, 2, 3]
    loads = Counter([*cluster.running("a").values(), *cluster.running("b").values()])
    assert set(loads.values()) == {3}


def test_spread_over_a_label() -> None:
    cluster = Cluster()
    for name, zone in (("h1", "a"), ("h2", "a"), ("h3", "a"), ("h4", "b")):
        cluster.host(name, labels={"zone": zone})
    cluster.publish("a", replicas=4, placement={"spread": "zone"})
    cluster.settle()
    assert Counter(cluster.running("a").values())["h4"] == 2


def test_preferred_labels_win_while_there_is_room() -> None:
    cluster = Cluster()
    cluster.host("big", labels={"disk": "ssd"}, memory_bytes=2 * GIB)
    cluster.host("other")
    cluster.publish("a", replicas=3, placement={"preferred": {"disk": "ssd"}}, resources={"memory": "1GiB"})
    cluster.settle()
    assert cluster.running("a") == {0: "big", 1: "big", 2: "other"}


def test_least_loaded_by_share_of_what_a_host_offers() -> None:
    cluster = Cluster()
    cluster.host("large", memory_bytes=8 * GIB)
    cluster.host("small", memory_bytes=2 * GIB)
    for number in range(10):
        cluster.publish(f"p{number}", resources={"memory": "512MiB"})
    cluster.settle()
    found = Counter(cluster.running(f"p{number}")[0] for number in range(10))
    assert found == {"large": 8, "small": 2}


def test_an_update_stays_on_its_host() -> None:
    cluster = Cluster()
    for name in ("h1", "h2", "h3"):
        cluster.host(name)
    cluster.publish("a", derived=Overlap.EXCLUSIVE, placement={"required": {"host": "h3"}})
    cluster.settle()
    cluster.publish("a", "2", derived=Overlap.EXCLUSIVE)
    cluster.settle()
    assert cluster.running("a") == {0: "h3"}


def test_equal_clusters_give_equal_places() -> None:
    def places() -> list[dict[int, str]]:
        cluster = Cluster()
        for name in ("c", "a", "b"):
            cluster.host(name)
        for number in range(4):
            cluster.publish(f"p{number}", replicas=2)
        cluster.settle()
        return [cluster.running(f"p{number}") for number in range(4)]

    assert places() == places()
    assert places()[0] == {0: "a", 1: "b"}


REASONS: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ("label missing", {}, {"placement": {"required": {"zone": "a"}}}, "lacks label zone=a"),
    (
        "label differs",
        {"labels": {"zone": "b"}},
        {"placement": {"required": {"zone": ["a", "c"]}}},
        "lacks label zone=a|c (it has b)",
    ),
    ("cpu", {"cpu": 1.5}, {"resources": {"cpu": 2}}, "cpu short by 0.5 of 2"),
    ("memory", {"memory_bytes": GIB}, {"resources": {"memory": "1.5GiB"}}, "memory short by 512 MiB of 1.5 GiB"),
    ("image", {}, {"image": "mine:1"}, "has no docker driver, which an image of its own needs"),
    (
        "docker fails",
        {"drivers": {"docker": Driver(False, "permission denied")}},
        {"image": "mine:1"},
        "docker fails: permission denied",
    ),
    ("driver fails", {"drivers": {"process": Driver(False, "no cgroup")}}, {}, "process fails: no cgroup"),
    (
        "no lease to rely on",
        {"drivers": {"docker": Driver(True, unbound="its containers have another boot id")}},
        {"on_partition": "stop"},
        "cannot stop it when cut off (docker: its containers have another boot id)",
    ),
    ("no driver", {"drivers": {}}, {}, "offers no driver"),
    (
        "volume",
        {"volumes": ("/data",)},
        {"volumes": ["/database:/x"]},
        "does not allow volume /database (see `shoal agent --allow-volume`)",
    ),
]


@pytest.mark.parametrize(
    ("host", "fields", "reason"), [case[1:] for case in REASONS], ids=[case[0] for case in REASONS]
)
def test_each_reason_is_said_with_what_is_short(host: dict[str, Any], fields: dict[str, Any], reason: str) -> None:
    cluster = Cluster()
    cluster.host("h1", **host)
    cluster.publish("a", **fields)
    cluster.settle()
    status = cluster.status("a")
    assert status.state is State.WAITING
    assert status.refusals[0].reasons == (reason,)


@pytest.mark.parametrize("volumes", [("/data",), ("/data/",), ("/",), ("/data/in",)])
def test_volumes_under_an_allowed_path(volumes: tuple[str, ...]) -> None:
    cluster = Cluster()
    cluster.host("h1", volumes=volumes)
    cluster.publish("a", volumes=["/data/in:/x:ro"])
    cluster.settle()
    assert cluster.running("a") == {0: "h1"}


@pytest.mark.parametrize(
    ("intent", "reason"), [("cordon", "is cordoned"), ("drain", "is draining"), ("forget", "is forgotten")]
)
def test_operators_words_are_reasons(intent: str, reason: str) -> None:
    cluster = Cluster()
    cluster.host("h1")
    cluster.intend("h1", **{intent: True})
    cluster.publish("a")
    cluster.settle()
    assert cluster.status("a").refusals[0].reasons == (reason,)


def test_every_host_with_all_of_its_reasons_nearest_first() -> None:
    cluster = Cluster()
    cluster.host("h1", memory_bytes=GIB)
    cluster.host("h2", labels={"zone": "a"}, memory_bytes=GIB)
    cluster.host("h3", labels={"zone": "a"}, memory_bytes=GIB + 512 * MIB)
    cluster.publish("a", placement={"required": {"zone": "a"}}, resources={"memory": "2GiB"})
    cluster.settle()
    status = cluster.status("a")
    assert [refusal.host for refusal in status.refusals] == ["h3", "h2", "h1"]
    assert status.refusals[2].reasons == ("lacks label zone=a", "memory short by 1 GiB of 2 GiB")
    assert status.refused_hosts == 3
    assert status.reason == (
        "no host can take it: 3 of 3 are short of memory, 1 of 3 lack label zone=a; "
        "nearest h3: memory short by 512 MiB of 2 GiB"
    )
    assert explain(cluster.view, cluster.policy, "a") == status.refusals


def test_the_host_that_was_asked_for_is_nearer_than_any_other() -> None:
    cluster = Cluster()
    cluster.host("h1")
    cluster.host("h2", drivers={"docker": Driver(False, "it hangs")}, memory_bytes=GIB)
    cluster.publish("a", placement={"required": {"host": "h2"}}, resources={"memory": "2GiB"})
    cluster.settle()
    nearest = cluster.status("a").reason.partition("nearest ")[2]
    assert nearest == "h2: docker fails: it hangs, memory short by 1 GiB of 2 GiB"


def test_no_host_at_all() -> None:
    cluster = Cluster()
    cluster.publish("a")
    cluster.settle()
    assert cluster.status("a").reason == "no host can take it: there is no host yet"
    cluster.host("h1")
    cluster.settle()
    assert cluster.running("a") == {0: "h1"}


def test_a_status_names_only_so_many_hosts_and_explain_all() -> None:
    cluster = Cluster()
    for number in range(REFUSALS_MAX + 20):
        cluster.host(f"h{number:03}")
    cluster.publish("a", resources={"cpu": 64})
    cluster.settle()
    status = cluster.status("a")
    assert (len(status.refusals), status.refused_hosts) == (REFUSALS_MAX, REFUSALS_MAX + 20)
    assert len(explain(cluster.view, cluster.policy, "a")) == REFUSALS_MAX + 20


def test_room_that_a_neighbour_gives_back_is_used() -> None:
    cluster = Cluster()
    cluster.host("h1", memory_bytes=GIB)
    cluster.publish("a", resources={"memory": "1GiB"})
    cluster.settle()
    cluster.publish("b", resources={"memory": "512MiB"})
    cluster.settle()
    assert cluster.status("b").state is State.WAITING
    cluster.delete("a")
    cluster.settle()
    assert cluster.running("b") == {0: "h1"}
    assert cluster.status("b").refused_hosts == 0


def test_a_neighbours_load_does_not_rewrite_what_a_waiting_pipeline_is_told() -> None:
    cluster = Cluster()
    cluster.host("h1")
    cluster.publish("huge", resources={"memory": "1TiB"})
    cluster.settle()
    before = cluster.status("huge")
    cluster.publish("a", replicas=3)
    cluster.settle()
    assert cluster.status("huge") is before
    assert explain(cluster.view, cluster.policy, "huge") != before.refusals


def test_a_host_takes_only_so_many_executions() -> None:
    cluster = Cluster()
    cluster.host("h1", memory_bytes=1024 * GIB)
    for number in range(3):
        cluster.publish(f"p{number}", replicas=1000, resources={"memory": 0})
    cluster.settle()
    assert len(cluster.view.assignments["h1"].executions) == EXECUTIONS_MAX
    assert "at most 2000 fit" in cluster.status("p2").reason


def test_asking_for_nothing_fits_on_a_host_that_is_overfull() -> None:
    cluster = Cluster()
    cluster.host("h1", memory_bytes=GIB)
    cluster.publish("a", resources={"memory": "1GiB"})
    cluster.settle()
    cluster.relabel("h1", memory_bytes=GIB // 2)
    cluster.publish("b", resources={"memory": 0})
    cluster.publish("c", resources={"memory": "1MiB"})
    cluster.settle()
    assert cluster.running("a") == {0: "h1"}, "what runs is not moved for room"
    assert cluster.running("b") == {0: "h1"}
    assert cluster.status("c").state is State.WAITING


def test_the_fast_forms_of_the_filters_agree_with_the_slow_ones() -> None:
    cluster = Cluster()
    for number in range(6):
        cluster.host(f"h{number}", labels={"zone": "ab"[number % 2]}, memory_bytes=(number + 1) * 100 * MIB)
    cluster.settle()
    cluster.intend("h3", cordon=True)
    cluster.down("h4", 10.0)
    cluster.publish("a", placement={"required": {"zone": "a"}}, resources={"memory": "300MiB"})
    goal = resolve(cluster.view, cluster.policy, "a")
    assert isinstance(goal.wish, Run)
    need = need_of(goal.wish.record, goal.wish.pin)
    seats = Seats(Draft(cluster.view, cluster.policy))
    pooled = {seat.host for pool in seats.tiers(need) for seat in pool.seats}
    for seat in seats.every():
        assert (seat.host in pooled) == (not standing(seat) and not wanting(need, seat))
        assert seat.has_room(need) == (not room(need, seat))


def test_a_driver_without_a_lease_takes_what_needs_none() -> None:
    cluster = Cluster()
    cluster.host("h1", drivers={"docker": Driver(True, unbound="its containers have another boot id")})
    cluster.publish("shared")
    cluster.publish("goes-on", derived=Overlap.EXCLUSIVE, on_partition="continue")
    cluster.publish("alone", derived=Overlap.EXCLUSIVE)
    cluster.settle()
    assert (cluster.running("shared"), cluster.running("goes-on")) == ({0: "h1"}, {0: "h1"})
    assert cluster.status("alone").state is State.WAITING
