"""Where executions run: labels, spread, capacity, drivers, volumes, stickiness; cordon, drain and restart."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.real import SHARED, TICK, RealCluster, Running, real_cluster, until

# Four hosts in three zones; what they offer is stated, because refusals name it.
OFFER = ("--cpu", "4", "--memory", "8GiB")
OPTIONS = {
    "host-1": OFFER,
    "host-2": (*OFFER, "--label", "disk=ssd"),
    "host-3": (*OFFER, "--label", "disk=ssd", "--allow-volume", "/srv/shoal"),
    "host-4": OFFER,
}
ZONES = {"host-1": "a", "host-2": "b", "host-3": "c", "host-4": "a"}
NEXT = b"# the next version\n"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealCluster]:
    with real_cluster(tmp_path_factory.mktemp("cluster"), hosts=4, options=OPTIONS) as running:
        yield running


@pytest.fixture
def cluster(whole: RealCluster) -> Iterator[RealCluster]:
    """The cluster with nothing in it, also afterwards."""
    yield whole
    whole.remove_all()


def runs(cluster: RealCluster, pipeline: str, data: bytes = TICK, **fields: Any) -> list[Running]:
    """Publish it and wait until it runs; its executions."""
    cluster.publish(pipeline, data, **fields)
    cluster.until_state(pipeline, "running")
    return cluster.found(pipeline)


def hosts(found: list[Running]) -> list[str]:
    return [one.host for one in found]


def refusals(cluster: RealCluster, pipeline: str) -> dict[str, list[str]]:
    """Every host that refuses it, with its reasons."""
    status = until(lambda: (found := cluster.status(pipeline)).get("refusals") and found, "refusals")
    assert status["state"] == "waiting"
    assert status["refused_hosts"] == len(status["refusals"]) == len(ZONES)
    return {refusal["host"]: refusal["reasons"] for refusal in status["refusals"]}


def test_labels_that_are_required_and_labels_that_are_better(cluster: RealCluster) -> None:
    assert hosts(
        runs(cluster, "required", placement={"required": {"zone": ["b", "c"], "disk": "ssd", "host": "host-3"}})
    )
    assert hosts(cluster.found("required")) == ["host-3"]
    better = {"preferred": {"disk": "ssd", "zone": "b"}}
    assert hosts(runs(cluster, "preferred", placement=better)) == ["host-2"]
    # No host has all that is better; the nearest will do.
    assert hosts(runs(cluster, "wished", placement={"preferred": {"disk": "tape"}})) != []

    before = cluster.the("preferred")
    cluster.put_record("preferred", placement={"preferred": {"host": "host-4"}})
    cluster.until_state("preferred", "running")
    assert cluster.the("preferred") == before, "a wish moves nothing"
    cluster.put_record("preferred", placement={"required": {"host": "host-4"}})
    until(lambda: hosts(cluster.found("preferred")) == ["host-4"], "what is required now does")
    cluster.until_state("preferred", "running")


def test_replicas_are_spread_over_hosts_and_over_zones(cluster: RealCluster) -> None:
    over_hosts = runs(cluster, "wide", SHARED, replicas=4)
    assert sorted(hosts(over_hosts)) == sorted(ZONES)
    over_zones = runs(cluster, "zoned", SHARED, replicas=3, placement={"spread": "zone"})
    assert sorted(ZONES[host] for host in hosts(over_zones)) == ["a", "b", "c"]
    cluster.put_record("zoned", replicas=4, placement={"spread": "zone"})
    cluster.until_state("zoned", "running")
    assert cluster.found("zoned")[:3] == over_zones
    assert len(set(hosts(cluster.found("zoned")))) == 4, "the least loaded host of any zone"


def test_cpu_and_memory_are_counted_and_what_is_short_is_said(cluster: RealCluster) -> None:
    heavy = {"resources": {"cpu": 2.5, "memory": "1GiB"}}
    four = runs(cluster, "heavy", SHARED, replicas=4, **heavy)
    assert sorted(hosts(four)) == sorted(ZONES)
    cluster.put_record("heavy", replicas=5, **heavy)
    assert refusals(cluster, "heavy") == {host: ["cpu short by 1 of 2.5"] for host in ZONES}
    reason = cluster.status("heavy")["reason"]
    assert reason.startswith("no host can take it: 4 of 4 are short of cpu; nearest host-")
    assert cluster.found("heavy") == four, "what has a place keeps it"

    cluster.publish("large", TICK, resources={"memory": "20GiB", "cpu": 5})
    found = refusals(cluster, "large")
    assert found == {host: ["cpu short by 3.5 of 5", "memory short by 13 GiB of 20 GiB"] for host in ZONES}
    # Room that becomes free is found without anybody asking.
    cluster.publish("patient", TICK, resources={"cpu": 3})
    assert refusals(cluster, "patient") == {host: ["cpu short by 1.5 of 3"] for host in ZONES}
    cluster.put_record("heavy", replicas=1, **heavy)
    cluster.until_state("patient", "running")
    assert cluster.found("heavy") == four[:1]


def test_an_image_needs_a_docker_driver_and_a_volume_an_agent_that_allows_it(cluster: RealCluster) -> None:
    # The process driver mounts nothing: it checks that what is mounted is seen where it is.
    cluster.publish("image", TICK, image="registry.example/own:1", placement={"required": {"zone": "moon"}})
    assert refusals(cluster, "image") == {
        host: [
            f"lacks label zone=moon (it has {zone})",
            "has no docker driver, which an image of its own needs",
        ]
        for host, zone in ZONES.items()
    }
    cluster.publish("volume", TICK, volumes=["/srv/shoal/data:/data", "/etc:/host/etc:ro"])
    found = refusals(cluster, "volume")
    other = ["does not allow volume /srv/shoal/data (see `shoal agent --allow-volume`)"]
    etc = "does not allow volume /etc (see `shoal agent --allow-volume`)"
    assert found == {host: [etc] if host == "host-3" else [*other, etc] for host in ZONES}
    assert "nearest host-3: does not allow volume /etc" in cluster.status("volume")["reason"]
    found_there = runs(cluster, "volume", TICK, version="2", volumes=["/srv/shoal/data:/srv/shoal/data"])
    assert hosts(found_there) == ["host-3"]


def test_an_update_stays_on_its_host_and_a_restart_too(cluster: RealCluster) -> None:
    first = runs(cluster, "sticky", placement={"preferred": {"host": "host-2"}})[0]
    assert first.host == "host-2"
    # The wish is gone and other hosts are emptier; it stays where its files are.
    runs(cluster, "neighbour", SHARED, placement={"required": {"host": "host-2"}})
    cluster.publish("sticky", TICK + NEXT, version="2")
    until(
        lambda: [r for r in cluster.found("sticky") if r.alive and r.config_digest != first.config_digest], "version 2"
    )
    cluster.until_state("sticky", "running")
    second = cluster.the("sticky")
    assert second.host == "host-2"
    assert second.execution != first.execution

    cluster.shoal("restart", "sticky", "--wait", "--reason", "to see")
    third = cluster.the("sticky")
    assert third.host == "host-2"
    assert third.execution != second.execution
    assert third.config_digest == second.config_digest
    assert cluster.json("executions", "sticky")[0]["restarts"] == 0, "nothing crashed"


def test_a_cordoned_host_takes_nothing_and_keeps_what_it_has(cluster: RealCluster) -> None:
    before = runs(cluster, "settled", placement={"required": {"host": "host-4"}})
    cluster.shoal("hosts", "cordon", "host-4", "--reason", "disk smells")
    try:
        assert {r["host"]: r["state"] for r in cluster.json("hosts")}["host-4"] == "alive,cordoned"
        cluster.publish("newcomer", TICK, placement={"required": {"host": "host-4"}})
        found = refusals(cluster, "newcomer")
        assert found["host-4"] == ["is cordoned: disk smells"]
        assert found["host-1"] == ["lacks label host=host-4 (it has host-1)"]
        assert cluster.found("settled") == before
    finally:
        cluster.shoal("hosts", "uncordon", "host-4")
    cluster.until_state("newcomer", "running")
    assert cluster.the("newcomer").host == "host-4"


def test_a_drained_host_is_empty_and_everything_runs_elsewhere(cluster: RealCluster) -> None:
    there = {"preferred": {"host": "host-2"}}
    shared = runs(cluster, "shared", SHARED, placement=there)[0]
    alone = runs(cluster, "alone", TICK, placement=there)[0]
    runs(cluster, "resting", TICK, placement=there)
    bound = runs(cluster, "bound", TICK, placement={"required": {"host": "host-2"}})[0]
    cluster.put_record("resting", status="paused", placement=there)
    cluster.until_state("resting", "paused")
    assert {r.host for p in ("shared", "alone", "resting") for r in cluster.found(p)} == {"host-2"}

    # What may run nowhere else is not stopped for nothing; the drain says what it waits for.
    late = cluster.shoal("hosts", "drain", "host-2", "--wait", "--timeout", "6s", code=3)
    assert bound.execution in late
    assert "shoal describe" in late
    assert cluster.the("bound") == bound
    assert "host-2 is drained" in cluster.status("bound")["reason"] or refusals(cluster, "bound")["host-2"] == [
        "is draining",
        "is cordoned",
    ]
    cluster.put_record("bound", status="draft")
    try:
        cluster.shoal("hosts", "drain", "host-2", "--wait", "--timeout", "60s")
        assert {r["host"]: r["state"] for r in cluster.json("hosts")}["host-2"] == "alive,draining"
        for pipeline in ("shared", "alone", "resting", "bound"):
            assert "host-2" not in hosts(cluster.found(pipeline))
        for pipeline, old in (("shared", shared), ("alone", alone)):
            cluster.until_state(pipeline, "running")
            assert cluster.the(pipeline).execution != old.execution
        cluster.until_state("resting", "paused")
        cluster.put_record("resting", placement=there)
        cluster.until_state("resting", "running")
        moved = {p: cluster.the(p) for p in ("shared", "alone", "resting")}
        assert "host-2" not in {r.host for r in moved.values()}
    finally:
        cluster.shoal("hosts", "uncordon", "host-2")
    assert hosts(runs(cluster, "fresh", TICK, placement=there)) == ["host-2"], "it is in service again"
    assert {p: cluster.the(p) for p in moved} == moved, "and nothing moves back by itself"


def test_replicas_of_an_exclusive_input_when_the_record_says_how(cluster: RealCluster) -> None:
    sharded = TICK.replace(b'"tick"', b'"${SHOAL_SLOT} of ${SHOAL_REPLICAS}"')
    found = runs(cluster, "sharded", sharded, replicas=3, overlap="forbid")
    assert [r.slot for r in found] == [0, 1, 2]
    assert len(set(hosts(found))) == 3
    rows = {r["slot"]: r["overlap"] for r in cluster.json("executions", "sharded")}
    assert rows == dict.fromkeys(range(3), "exclusive"), "each slot by itself"

    assert len(runs(cluster, "doubled", TICK, replicas=2, overlap="allow")) == 2
    assert {r["overlap"] for r in cluster.json("executions", "doubled")} == {"shareable"}
