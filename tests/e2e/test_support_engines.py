"""The engines that the other tests rely on do what their names say."""

import time

import pytest

from tests.support.components import require
from tests.support.engines import Engine
from tests.support.images import BASE_TAG, RUNNER_TAG, load_base, load_daemon, load_nats

pytestmark = [pytest.mark.docker, pytest.mark.slow]


@pytest.mark.timeout(900)
def test_three_engines_side_by_side_run_their_own_containers(engines_session: list[Engine]) -> None:
    for engine in engines_session:
        client = engine.client()
        output = client.containers.run(
            RUNNER_TAG, ["--version"], entrypoint="/usr/local/bin/bento", network_mode="host", remove=True
        )
        assert b"1.20.0" in output
        assert client.containers.list(all=True) == []


def test_runner_image_is_as_the_product_needs_it(engines_session: list[Engine]) -> None:
    client = engines_session[0].client()
    check = (
        "import sys; sys.path.append('/opt/shoal/lib'); import nats, nkeys, os; print(os.getuid(), sys.flags.isolated)"
    )
    output = client.containers.run(
        RUNNER_TAG, ["-I", "-S", "-c", check], entrypoint="/opt/shoal/python3", network_mode="host", remove=True
    )
    assert output.split() == [b"10001", b"1"]


def test_killed_engine_leaves_its_containers_and_finds_them_again(live_engine: Engine) -> None:
    client = live_engine.client()
    container = client.containers.run(
        RUNNER_TAG, ["300"], entrypoint="/bin/sleep", network_mode="host", detach=True, name="sleeper"
    )
    container.reload()
    before = (container.id, container.attrs["State"]["Pid"], container.attrs["State"]["StartedAt"])
    live_engine.restart(crash=True)
    container = live_engine.client().containers.get("sleeper")
    assert (container.id, container.attrs["State"]["Pid"], container.attrs["State"]["StartedAt"]) == before


def test_engine_that_lost_power_comes_back_without_running_containers(engine: Engine) -> None:
    engine.client().containers.run(
        RUNNER_TAG, ["300"], entrypoint="/bin/sleep", network_mode="host", detach=True, name="host"
    )
    engine.power_off()
    engine.restart()
    assert engine.client().containers.get("host").status == "exited"


def test_nats_image_serves(engines_session: list[Engine]) -> None:
    client = engines_session[0].client()
    output = client.containers.run(load_nats(engines_session[0]), ["--version"], network_mode="host", remove=True)
    assert b"nats-server: v2." in output


def test_base_image_has_python(engines_session: list[Engine]) -> None:
    load_base(engines_session[0])
    client = engines_session[0].client()
    assert b"3.11" in client.containers.run(BASE_TAG, ["python3", "--version"], network_mode="none", remove=True)


@pytest.mark.timeout(600)
def test_daemon_image_holds_the_command_and_bento(engines_session: list[Engine]) -> None:
    require("bento")
    engine = engines_session[0]
    client = engine.client()
    tag = load_daemon(engine)
    started = time.monotonic()
    output = client.containers.run(tag, ["--version"], entrypoint="bento", network_mode="host", remove=True)
    assert b"1.20.0" in output
    assert time.monotonic() - started < 30
    check = "import shared, nats, docker, pydantic, uvloop, typer, structlog, prometheus_client, os; print(os.getuid())"
    output = client.containers.run(tag, ["-c", check], entrypoint="python3", network_mode="host", remove=True)
    assert output.strip() == b"10001"
