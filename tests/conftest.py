"""Fixtures that every kind of test may use. Real programs come from tests/support; see `components.require`."""

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.components import require
from tests.support.engines import Engine
from tests.support.images import running_engines
from tests.support.nats_servers import NatsCluster, NatsServer


@pytest.fixture
def cluster_name() -> str:
    """A name for a Shoal cluster that no other test uses; lets tests share one NATS server."""
    return f"t{secrets.token_hex(4)}"


@pytest.fixture(scope="session")
def nats_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """One server for all tests of a worker. Tests use `cluster_name` to stay apart, and do not stop it."""
    with NatsServer(tmp_path_factory.mktemp("nats-session"), binary=require("nats-server")) as server:
        yield server


@pytest.fixture
def nats_server(tmp_path: Path) -> Iterator[NatsServer]:
    """One server of its own, which the test may stop, kill, pause and restart."""
    with NatsServer(tmp_path / "nats", binary=require("nats-server")) as server:
        yield server


@pytest.fixture(scope="session")
def nats_session_oldest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """One server of the oldest version that the product accepts, for all tests of a worker."""
    with NatsServer(tmp_path_factory.mktemp("nats-oldest"), binary=require("nats-server-2.12")) as server:
        yield server


@pytest.fixture
def nats_cluster(tmp_path: Path) -> Iterator[NatsCluster]:
    """Three servers of its own. Mark the test `cluster`."""
    with NatsCluster(tmp_path / "nats", binary=require("nats-server")) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def nats_cluster_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsCluster]:
    """Three servers for all tests of a worker. Tests use `cluster_name` to stay apart, and stop none of them."""
    with NatsCluster(tmp_path_factory.mktemp("nats-cluster"), binary=require("nats-server")) as cluster:
        yield cluster


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    """One Docker engine of its own with the runner image, which the test may kill. Mark the test `docker`."""
    with running_engines(1, tmp_path) as engines:
        yield engines[0]


@pytest.fixture
def live_engine(tmp_path: Path) -> Iterator[Engine]:
    """Like `engine`, but containers go on while the daemon is down (Docker's `live-restore`)."""
    with running_engines(1, tmp_path, live_restore=True) as engines:
        yield engines[0]


@pytest.fixture
def three_engines(tmp_path: Path) -> Iterator[list[Engine]]:
    """Three Docker engines of its own, each a host, with the runner image."""
    with running_engines(3, tmp_path) as engines:
        yield engines


@pytest.fixture(scope="session")
def engines_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Engine]]:
    """Three engines with the runner image, for all tests of a worker, which remove their containers and stop none."""
    with running_engines(3, tmp_path_factory.mktemp("engines")) as engines:
        yield engines
