"""Names, environment, volumes, and files that an execution may have tampered with."""

import fcntl
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from agent.executor import Spec
from agent.layout import (
    Inside,
    Layout,
    Surroundings,
    Volume,
    allowed_volume,
    environment,
    exit_code,
    forget_health,
    lock_held,
    read_health,
    split_volume,
)
from runner import contract
from shared.errors import CannotStart

SPEC = Spec(
    execution="orders-1-17",
    store_id="0123456789abcdef",
    pipeline="orders",
    slot=1,
    replicas=3,
    version="v2",
    digest="d" * 64,
    bundle="/state/bundles/d/bundle.tar",
    env={},
    volumes=(),
    image="",
    cpu=None,
    memory_bytes=None,
    stop_grace_s=22.0,
    http="auto",
)
LAYOUT = Layout(cluster="shoal", host="h1", run_dir=Path("/run/shoal"), state_dir=Path("/var/lib/shoal"))
INSIDE = Inside(directory="/shoal/run", lease_dir="/shoal/lease", bundle="/shoal/bundle/bundle.tar", bento="/bento")


NAME = LAYOUT.name(SPEC.store_id, SPEC.execution)


def seen(spec: Spec, **surroundings: object) -> dict[str, str]:
    return environment(spec, NAME, LAYOUT, Surroundings(nats_url="nats://own", **surroundings), INSIDE)  # type: ignore[arg-type]


def test_names_carry_cluster_store_and_execution() -> None:
    name = LAYOUT.name(SPEC.store_id, SPEC.execution)
    assert name == "shoal-01234567-orders-1-17"
    assert name.startswith(LAYOUT.ours(frozenset({SPEC.store_id, "other"})))
    assert not LAYOUT.name("fedcba98", "orders-1-17").startswith(LAYOUT.ours(frozenset({SPEC.store_id})))
    assert LAYOUT.ours(frozenset()) == ()
    assert not name.startswith(LAYOUT.ours(frozenset()))


def test_execution_knows_who_it_is() -> None:
    found = seen(SPEC)
    assert {key: value for key, value in found.items() if not key.startswith(contract.PREFIX)} == {
        "NATS_URL": "nats://own",
        "SHOAL_CLUSTER": "shoal",
        "SHOAL_HOST": "h1",
        "SHOAL_PIPELINE": "orders",
        "SHOAL_VERSION": "v2",
        "SHOAL_SLOT": "1",
        "SHOAL_REPLICAS": "3",
        "SHOAL_EXECUTION": "orders-1-17",
    }
    assert found[contract.DIR] == "/shoal/run"
    assert (found[contract.LEASE_DIR], found[contract.EXECUTION]) == ("/shoal/lease", NAME), "where its grant is"
    assert found[contract.STOP_GRACE_S] == "22.0"
    assert contract.LOG not in found
    assert contract.FETCH not in found


def test_precedence_is_record_then_agent_then_its_own_address() -> None:
    assert seen(SPEC, env={"NATS_URL": "nats://said", "A": "agent"})["NATS_URL"] == "nats://said"
    spec = replace(SPEC, env={"NATS_URL": "nats://record", "A": "record"})
    found = seen(spec, env={"NATS_URL": "nats://said", "A": "agent", "B": "agent"})
    assert (found["NATS_URL"], found["A"], found["B"]) == ("nats://record", "record", "agent")


@pytest.mark.parametrize("name", ["SHOAL_SLOT", contract.DIR, contract.BENTO, "SHOAL_ANYTHING"])
def test_our_names_cannot_be_overridden(name: str) -> None:
    spec = replace(SPEC, env={name: "forged"})
    assert "forged" not in seen(spec, env={name: "forged"}).values()


@pytest.mark.parametrize(
    ("text", "volume"),
    [
        ("/a:/b", Volume("/a", "/b", writable=True)),
        ("/a:/b:rw", Volume("/a", "/b", writable=True)),
        ("/a:/b:ro", Volume("/a", "/b", writable=False)),
    ],
)
def test_volumes_are_read_as_the_record_means_them(text: str, volume: Volume) -> None:
    assert split_volume(text) == volume


def test_volumes_must_really_lie_where_the_agent_allows(tmp_path: Path) -> None:
    allowed = tmp_path / "allowed"
    (allowed / "data").mkdir(parents=True)
    (tmp_path / "allowed-not").mkdir()
    (allowed / "out").symlink_to(tmp_path)
    (tmp_path / "in").symlink_to(allowed / "data")

    def may(source: Path) -> bool:
        try:
            allowed_volume(Volume(str(source), "/x", writable=True), (allowed,))
        except CannotStart:
            return False
        return True

    assert may(allowed)
    assert may(allowed / "data")
    assert may(tmp_path / "in"), "a link into it is as good as the path"
    assert not may(tmp_path)
    assert not may(tmp_path / "allowed-not")
    assert not may(allowed / "out")
    assert not may(allowed / ".." / "allowed-not")
    assert allowed_volume(Volume(str(tmp_path / "in"), "/x", writable=True), (allowed,)) == allowed / "data"
    with pytest.raises(CannotStart, match=r"allowed below: none.*--allow-volume") as refused:
        allowed_volume(Volume(str(allowed), "/x", writable=True), ())
    assert refused.value.kind == "host"


def test_health_is_read_only_from_a_plain_file_with_an_object(tmp_path: Path) -> None:
    file = tmp_path / contract.HEALTH_FILE
    assert read_health(tmp_path) == {}
    file.write_text(json.dumps({"phase": "ready"}))
    assert read_health(tmp_path) == {"phase": "ready"}
    for content in (b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 60_000, b'{"a": "' + b"x" * 100_000 + b'"}'):
        file.write_bytes(content)
        assert read_health(tmp_path) == {}
    file.unlink()
    secret = tmp_path / "secret"
    secret.write_text('{"secret": true}')
    file.symlink_to(secret)
    assert read_health(tmp_path) == {}
    file.unlink()
    os.mkfifo(file)
    assert read_health(tmp_path) == {}
    file.unlink()
    file.mkdir()
    assert read_health(tmp_path) == {}


@pytest.mark.parametrize(
    ("document", "code"),
    [
        ({}, None),
        ({"exit": None}, None),
        ({"exit": {"code": 1, "signal": None}}, 1),
        ({"exit": {"code": 137, "signal": 9}}, 137),
        ({"exit": {"code": "1"}}, None),
        ({"exit": [1]}, None),
    ],
)
def test_exit_code_is_what_the_runner_wrote(document: dict[str, object], code: int | None) -> None:
    assert exit_code(document) == code


def test_lock_is_seen_and_not_kept(tmp_path: Path) -> None:
    assert not lock_held(tmp_path)
    lock = tmp_path / contract.LOCK_FILE
    lock.touch()
    assert not lock_held(tmp_path)
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert lock_held(tmp_path)
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_health_of_an_earlier_run_is_forgotten_with_the_lock_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A runner that took the lock in between would lose its first words, and says nothing more for minutes."""
    (tmp_path / contract.LOCK_FILE).touch()
    health = tmp_path / contract.HEALTH_FILE
    health.touch()
    held = []
    unlink = Path.unlink

    def watched(path: Path, missing_ok: bool = False) -> None:
        held.append((path, lock_held(tmp_path)))
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", watched)
    forget_health(tmp_path)
    assert held == [(health, True)]
    assert not health.exists()
    assert not lock_held(tmp_path)


def test_health_of_a_run_that_goes_on_is_left_alone(tmp_path: Path) -> None:
    health = tmp_path / contract.HEALTH_FILE
    health.touch()
    forget_health(tmp_path)
    assert health.exists(), "without a lock its runner is just about to start"
    with (tmp_path / contract.LOCK_FILE).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        forget_health(tmp_path)
        assert health.exists()
