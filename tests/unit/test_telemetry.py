"""/metrics and /healthz answer while the daemon works, and say what they are asked."""

import json
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry, Gauge

from shared.errors import BadInput
from shared.telemetry import Health, TelemetryServer, parse_address


@pytest.fixture
def registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    Gauge("answer", "What it is.", registry=registry).set(42)
    return registry


class Daemon:
    """Whatever health it is given."""

    health = Health(True, {"role": "leading"})


@pytest.fixture
def daemon() -> Daemon:
    return Daemon()


@pytest.fixture
def server(registry: CollectorRegistry, daemon: Daemon) -> Iterator[TelemetryServer]:
    with TelemetryServer("127.0.0.1:0", registry, lambda: daemon.health) as server:
        yield server


def get(server: TelemetryServer, path: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=5) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def test_metrics_are_those_of_the_registry(server: TelemetryServer) -> None:
    status, body = get(server, "/metrics")
    assert status == 200
    assert b"answer 42.0" in body


def test_health_is_a_status_and_facts(server: TelemetryServer, daemon: Daemon) -> None:
    status, body = get(server, "/healthz")
    assert (status, json.loads(body)) == (200, {"ok": True, "role": "leading"})
    daemon.health = Health(False, {"role": "starting"})
    status, body = get(server, "/healthz")
    assert (status, json.loads(body)) == (503, {"ok": False, "role": "starting"})


def test_anything_else_is_not_found(server: TelemetryServer) -> None:
    assert get(server, "/")[0] == 404


def test_clients_that_say_nothing_hold_up_nobody_else(server: TelemetryServer) -> None:
    silent = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(4)]
    try:
        assert get(server, "/metrics")[0] == 200
    finally:
        for client in silent:
            client.close()


@pytest.mark.parametrize(
    ("address", "parsed"),
    [
        ("127.0.0.1:7601", ("127.0.0.1", 7601)),
        (":7601", ("", 7601)),
        ("[::1]:7601", ("::1", 7601)),
        ("localhost:0", ("localhost", 0)),
    ],
)
def test_addresses(address: str, parsed: tuple[str, int]) -> None:
    assert parse_address(address) == parsed


@pytest.mark.parametrize("address", ["", "7601", "host:", "host:port", "host:70000", "host:-1", "host:٣"])
def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(BadInput):
        parse_address(address)
