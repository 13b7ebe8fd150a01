"""Invalid input: a status that names field, value and remedy; the last good version goes on; nothing crashes.

One pipeline runs. Each case publishes something wrong over it, with nothing but the `nats` CLI, and heals it again.
"""

import base64
import hashlib
import json
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.processes import free_port
from tests.support.real import TICK, RealCluster, healthz, real_cluster, until

PIPELINE = "steady"
GOOD = {"id": PIPELINE, "name": PIPELINE, "status": "published", "version": "1"}

Spoil = Callable[[RealCluster], None]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealCluster]:
    with real_cluster(tmp_path_factory.mktemp("cluster")) as running:
        running.publish(PIPELINE, TICK)
        running.until_state(PIPELINE, "running")
        yield running


def raw(data: bytes) -> Spoil:
    """The record is these bytes."""
    return lambda cluster: cluster.put_raw(PIPELINE, data)


def record(**fields: Any) -> Spoil:
    """The good record with these fields."""
    return lambda cluster: cluster.put_record(PIPELINE, **fields)


def version(name: str, data: bytes, **fields: Any) -> Spoil:
    """Another version with this configuration."""
    return lambda cluster: cluster.publish(PIPELINE, data, version=name, **fields)


def with_holes(cluster: RealCluster) -> None:
    """A version whose object has no chunks, as after a purge by hand: metadata alone, under the chunks' random name."""
    name = f"{PIPELINE}/holes"
    digest = base64.urlsafe_b64encode(hashlib.sha256(TICK).digest()).decode()
    meta = {"name": name, "bucket": "shoal_configs", "nuid": "gone", "size": len(TICK), "chunks": 1}
    meta |= {"digest": f"SHA-256={digest}", "options": {"max_chunk_size": 131072}}
    subject = f"$O.shoal_configs.M.{base64.urlsafe_b64encode(name.encode()).decode()}"
    cluster.nats("publish", "--jetstream", "-H", "Nats-Rollup:sub", subject, json.dumps(meta))
    cluster.put_record(PIPELINE, version="holes")


LINT = TICK.replace(b"interval:", b"intervall:")
HUGE = b"# " + b"x" * (8 * 1024 * 1024) + b"\n" + TICK

# name, what is wrong, what the first problem must say: field, value, remedy
CASES: tuple[tuple[str, Spoil, tuple[str, ...]], ...] = (
    ("not JSON", raw(b'{"id": "steady",'), ("record is ", '{"id": "steady",', "write one JSON object")),
    ("not text", raw(b"\xff\xfe\x00"), ("record is ", "write one JSON object")),
    ("empty", raw(b"\n"), ("record is ", "write one JSON object")),
    ("not an object", raw(b"[1, 2]"), ("record is [1, 2]", "write one JSON object")),
    ("very deep", raw(b"[" * 100_000), ("record is ", "write one JSON object")),
    ("an unknown field", record(replica=2), ("replica is 2", "no such field", "did you mean 'replicas'?")),
    (
        "an unknown field below another",
        record(placement={"require": {"zone": "a"}}),
        ("placement.require is {'zone': 'a'}", "did you mean 'required'?"),
    ),
    ("a wrong type", record(replicas="two"), ("replicas is 'two'", "valid integer")),
    ("a number for a text", record(version=1), ("version is 1", 'write it as a text: "1"')),
    ("a status that is none", record(status="running"), ("status is 'running'", "'draft', 'published' or 'paused'")),
    ("out of bounds", record(replicas=-1), ("replicas is -1", "greater than or equal to 0")),
    ("a memory that is none", record(resources={"memory": "lots"}), ("resources.memory is 'lots'", "256MiB")),
    ("a version that is none", record(version="a/b"), ("version is 'a/b'", "letters, digits")),
    ("a missing field", raw(b'{"id": "steady", "status": "published"}'), ("version", "must be there")),
    ("an id that is none", record(id="Steady!"), ("id is 'Steady!'", "lower-case letters")),
    ("another id than the key", record(id="other"), ("id is 'other'", "must equal the key", "'steady'")),
    ("a job", record(kind="job"), ("kind is 'job'", "not supported yet", "'service'")),
    (
        "an update",
        record(update={"max_surge": 2}),
        ("update is {'max_surge': 2}", "not supported yet", "leave the field"),
    ),
    (
        "a record as large as the server takes",
        raw(json.dumps({**GOOD, "description": "x" * (1024 * 1024 - 200)}).encode()),
        ("record is '1048", "at most 262144 bytes", "configurations belong into the configs bucket"),
    ),
    (
        "a missing configuration",
        record(version="nowhere"),
        (
            "steady/nowhere is not in the bucket shoal_configs",
            "nats object put shoal_configs FILE --name steady/nowhere",
        ),
    ),
    ("a configuration that is no YAML", version("yaml", b"input: [1,\noutput: {"), ("pipeline.yaml line", "YAML")),
    ("a configuration that is no mapping", version("list", b"- input\n- output\n"), ("pipeline.yaml", "mapping")),
    ("a configuration that is no text", version("bytes", b"\x00\xff\xfe\xfd"), ("pipeline.yaml line 1", "UTF-8")),
    ("a configuration that Bento refuses", version("lint", LINT), ("line 3", "field intervall not recognised")),
    ("a configuration of more than 8 MiB", version("huge", HUGE), (f"configuration is '{len(HUGE)} bytes'", "8388608")),
    (
        "a tar without pipeline.yaml",
        version("tar", b"x" * 257 + b"ustar\x0000" + b"\0" * 760),
        ("tar", "pipeline.yaml"),
    ),
    (
        "an object with missing chunks",
        with_holes,
        ("object steady/holes in shoal_configs is incomplete (1 of its 1 chunks are missing)", "`nats object put"),
    ),
    (
        "replicas of an exclusive input",
        record(replicas=2),
        ("replicas is 2", "must not run twice at once (", "generate", 'overlap "forbid"'),
    ),
)


@pytest.mark.parametrize(("spoil", "words"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_the_status_says_what_is_wrong_and_the_last_good_version_goes_on(
    cluster: RealCluster, spoil: Spoil, words: tuple[str, ...]
) -> None:
    before = cluster.the(PIPELINE)
    assert before.alive
    spoil(cluster)
    status = until(
        lambda: (
            (found := cluster.status(PIPELINE))
            and found["record"] >= cluster.written[PIPELINE]
            and found["problems"]
            and found
        ),
        "a problem in the status",
    )
    assert [word for word in words if word not in status["problems"][0]] == [], status["problems"]
    assert status["problems"][0][:300] in status["reason"], "the sentence to read first says it too"
    assert (status["state"], status["version"]) == ("running", "1")
    assert cluster.the(PIPELINE) == before, "the very same execution, not restarted"
    cluster.assert_all_alive()

    cluster.put_record(PIPELINE)
    cluster.until_state(PIPELINE, "running")
    assert cluster.the(PIPELINE) == before


def test_a_placement_that_no_host_can_meet_names_every_host_and_moves_nothing(cluster: RealCluster) -> None:
    before = cluster.the(PIPELINE)
    cluster.put_record(PIPELINE, placement={"required": {"zone": "moon", "disk": ["ssd", "nvme"]}})
    status = until(lambda: (found := cluster.status(PIPELINE)).get("refusals") and found, "refusals")
    assert {r["host"]: r["reasons"] for r in status["refusals"]} == {
        f"host-{n}": ["lacks label disk=ssd|nvme", f"lacks label zone=moon (it has {zone})"]
        for n, zone in ((1, "a"), (2, "b"), (3, "c"))
    }
    assert "no host can take it: 3 of 3 lack label disk=ssd|nvme, 3 of 3 lack label zone=moon" in status["reason"]
    assert "nearest host-1: lacks label disk" in status["reason"]
    assert cluster.the(PIPELINE) == before
    cluster.put_record(PIPELINE)
    cluster.until_state(PIPELINE, "running")
    assert cluster.the(PIPELINE) == before
    cluster.assert_all_alive()


@pytest.mark.parametrize("key", ["Upper", "with.dot", "with/slash", "_dash", "x" * 64, "ends="])
def test_a_key_that_is_no_id_is_told_under_that_key(cluster: RealCluster, key: str) -> None:
    cluster.put_record(key)
    status = until(lambda: cluster.status(key), "a status")
    assert status["state"] == "refused"
    assert f"id is '{key}'" in status["problems"][0]
    assert "lower-case letters" in status["problems"][0]
    cluster.delete_record(key)
    until(lambda: not cluster.status(key), "the status goes with its record")
    cluster.assert_all_alive()


def test_nothing_older_runs_and_the_missing_configuration_wakes_the_plan(cluster: RealCluster) -> None:
    cluster.put_record("early")
    status = until(lambda: (found := cluster.status("early")).get("problems") and found, "a problem")
    assert status["state"] == "waiting"
    assert "`nats object put shoal_configs FILE --name early/1`" in status["problems"][0]
    assert cluster.found("early") == []
    digest = cluster.put_config("early", "1", TICK)
    cluster.until_state("early", "running")
    assert cluster.the("early").config_digest == digest
    cluster.delete_record("early")
    cluster.wait_no_trace("early")


def test_a_corrected_configuration_under_the_same_version_is_looked_at_again(cluster: RealCluster) -> None:
    """It was never admitted, so nothing is pinned to the wrong bytes."""
    cluster.publish("corrected", LINT)
    until(lambda: cluster.status("corrected").get("problems"), "a problem")
    digest = cluster.put_config("corrected", "1", TICK)
    cluster.until_state("corrected", "running")
    assert cluster.the("corrected").config_digest == digest
    cluster.delete_record("corrected")
    cluster.wait_no_trace("corrected")


def test_an_object_that_got_its_chunks_back_is_admitted(cluster: RealCluster) -> None:
    with_holes(cluster)
    until(lambda: cluster.status(PIPELINE).get("problems"), "a problem")
    digest = cluster.put_config(PIPELINE, "holes", TICK + b"# whole\n")
    cluster.until_state(PIPELINE, "running")
    until(lambda: [r.config_digest for r in cluster.found(PIPELINE)] == [digest], "the whole one alone")
    cluster.put_record(PIPELINE)
    cluster.until_state(PIPELINE, "running")
    until(lambda: len(cluster.found(PIPELINE)) == 1, "the first version alone")


@pytest.mark.timeout(180)
def test_a_scheduler_without_bento_refuses_to_start_unless_told_so(cluster: RealCluster) -> None:
    done = cluster.run("scheduler", "--name", "blind", "--bento", "/nowhere/bento", timeout_s=60)
    assert done.returncode == 1
    assert "/nowhere/bento" in done.stderr
    assert "--no-lint" in done.stderr

    address = f"127.0.0.1:{free_port()}"
    command = cluster.command("scheduler", "--bento", "/nowhere/bento", "--no-lint", "--metrics", address)
    log = cluster.local.log("trusting")
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as trusting:
        try:
            until(lambda: healthz(address).get("role") == "standby", "it stands by")
        finally:
            trusting.terminate()
    assert trusting.returncode == 0, log.read_text()


def test_none_of_it_made_a_process_end_or_a_leader_change(cluster: RealCluster) -> None:
    cluster.assert_all_alive()
    assert cluster.leader() == "scheduler-1"
    assert "deposed" not in cluster.local.log("scheduler-1").read_text()
