"""From specs to containers and back, and what an engine's words mean."""

from dataclasses import replace
from pathlib import Path

import pytest

from agent.docker_executor import config
from agent.docker_executor.calls import Rejected, Taken, _classified, _shortened
from agent.docker_executor.config import DockerSettings, Mount
from agent.docker_executor.lifecycle import _refusal
from agent.executor import Life
from shared.errors import ExecutorUnavailable
from tests.unit.test_layout import LAYOUT, SPEC

SETTINGS = DockerSettings(url="unix:///x", image="shoal-runner:1")


def test_labels_bring_back_all_facts() -> None:
    labels = config.labels(SPEC, LAYOUT)
    assert config.belongs(labels, LAYOUT, frozenset({SPEC.store_id}))
    found = config.found(labels, runtime="c1", state="exited", ended=(137, True), health={"started_boot_s": 5.5})
    facts = (found.execution, found.store_id, found.pipeline, found.slot, found.version, found.digest)
    assert facts == (SPEC.execution, SPEC.store_id, SPEC.pipeline, SPEC.slot, SPEC.version, SPEC.digest)
    assert (found.life, found.runtime, found.exit_code, found.oom) == (Life.EXITED, "c1", 137, True)
    assert found.started_s == 5.5


@pytest.mark.parametrize(
    "changed",
    [
        {config.CLUSTER: "other"},
        {config.HOST: "h2"},
        {config.STORE: "other"},
        {config.SLOT: "x"},
        {config.SLOT: "-1"},
    ],
)
def test_other_labels_are_not_ours(changed: dict[str, str]) -> None:
    labels = {**config.labels(SPEC, LAYOUT), **changed}
    assert not config.belongs(labels, LAYOUT, frozenset({SPEC.store_id}))


@pytest.mark.parametrize("missing", [config.EXECUTION, config.PIPELINE, config.VERSION, config.DIGEST, config.SLOT])
def test_incomplete_labels_are_nobodys(missing: str) -> None:
    labels = {name: text for name, text in config.labels(SPEC, LAYOUT).items() if name != missing}
    assert not config.belongs(labels, LAYOUT, frozenset({SPEC.store_id}))


@pytest.mark.parametrize(
    ("state", "life"),
    [
        ("created", Life.CREATED),
        ("running", Life.ALIVE),
        ("paused", Life.ALIVE),
        ("exited", Life.EXITED),
        ("dead", Life.EXITED),
        ("removing", Life.EXITED),
        ("something new", Life.EXITED),
    ],
)
def test_states_of_docker_as_lives(state: str, life: Life) -> None:
    assert config.life(state) is life


def test_container_mounts_directories_and_only_its_own_is_writable() -> None:
    body = config.container(SPEC, LAYOUT, SETTINGS, env={"B": "2", "A": "1"}, volumes=[Mount("/v", "/data", True)])
    assert body["Image"] == "shoal-runner:1"
    assert body["Env"] == ["A=1", "B=2"]
    mounts = {one["Target"]: (one["Source"], one["ReadOnly"]) for one in body["HostConfig"]["Mounts"]}
    assert mounts == {
        "/shoal/run": ("/run/shoal/executions/shoal-01234567-orders-1-17", False),
        "/shoal/lease": ("/run/shoal/lease", True),
        "/shoal/bundle": ("/state/bundles/d", True),
        "/data": ("/v", False),
    }


def test_limits_are_set_only_when_said() -> None:
    plain = config.container(SPEC, LAYOUT, SETTINGS, env={}, volumes=[])["HostConfig"]
    assert not {"Memory", "MemorySwap", "NanoCpus"} & plain.keys()
    spec = replace(SPEC, cpu=0.1, memory_bytes=1 << 26, image="own:2", stop_grace_s=22.4)
    body = config.container(spec, LAYOUT, SETTINGS, env={}, volumes=[])
    limited = body["HostConfig"]
    assert (limited["Memory"], limited["MemorySwap"], limited["NanoCpus"]) == (1 << 26, 1 << 26, 100_000_000)
    assert (body["Image"], body["StopTimeout"]) == ("own:2", 23)


def test_containers_never_run_as_root() -> None:
    assert replace(SETTINGS, user="1000").owner == (1000, 1000)
    with pytest.raises(AssertionError):
        DockerSettings(url="unix:///x", image="i", user="0:0", volumes=(Path("/x"),))


@pytest.mark.parametrize(
    ("status", "words", "kind"),
    [
        (409, "Conflict. The container name is already in use", Taken),
        (400, 'invalid mount config for type "bind": bind source path does not exist: /x', Rejected),
        (500, "OCI runtime create failed: container_linux.go: no such device", Rejected),
        (500, "write /var/lib/docker/x: no space left on device", Rejected),
        (500, "layer does not exist", ExecutorUnavailable),
        (503, "", ExecutorUnavailable),
        (400, "client version 1.50 is too new. Maximum supported API version is 1.41", ExecutorUnavailable),
    ],
)
def test_errors_of_an_engine_are_told_apart(status: int, words: str, kind: type[Exception]) -> None:
    assert type(_classified(status, words)) is kind


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("No command specified", "image"),
        ('exec: "/opt/shoal/python3": executable file not found in $PATH', "image"),
        ("bind source path does not exist: /x", "host"),
        ("no space left on device", "host"),
    ],
)
def test_refusals_say_what_would_help(words: str, kind: str) -> None:
    refusal = _refusal(Rejected(words))
    assert (refusal.kind, str(refusal)) == (kind, words)


def test_words_of_an_engine_are_bounded_and_in_one_line() -> None:
    assert _shortened("a\n b\t c") == "a b c"
    assert len(_shortened("x" * 10_000)) == 500
