"""What the runner sees of Bento's connections and of who is at their other end: real sockets, Bento and NATS.

The whole, from a long outage to data that moves again, is in test_healing.py."""

import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import pytest

from runner.links import Greeting
from runner.probe import HAIL_S, Hail
from runner.sockets import Sockets
from tests.e2e.test_runner_rig import STEADY, Execution, eventually
from tests.support.nats_servers import NatsServer
from tests.support.processes import free_port


def both(server: NatsServer) -> str:
    return f"""
    input: {{nats: {{urls: ['{server.url}'], subject: links.in}}}}
    output: {{nats: {{urls: ['{server.url}'], subject: links.out}}}}
    """


def test_one_connection_for_each_component(tmp_path: Path, nats_server: NatsServer) -> None:
    with Execution(tmp_path, both(nats_server)) as execution:
        execution.start_ready()
        sockets = Sockets(execution.wait(lambda health: bool(health["counters"]))["bento_pid"])
        peer = ("127.0.0.1", nats_server.port)
        found = eventually(lambda: sockets.look() if len(sockets.look()) == 2 else None, "two connections")
        assert set(found.values()) == {peer}
        assert sockets.look() == found, "the same sockets are the same connections"
        nats_server.kill()
        eventually(lambda: not sockets.look(), "none is left")
        nats_server.start()
        again = eventually(lambda: sockets.look() if len(sockets.look()) == 2 else None, "it has reconnected")
        assert not set(again) & set(found), "as new ones"


def test_who_connects_to_bento_is_no_connection_of_its_own(tmp_path: Path) -> None:
    port = free_port()
    config = f"input: {{http_server: {{address: '127.0.0.1:{port}', path: /x}}}}\noutput: {{drop: {{}}}}\n"
    with Execution(tmp_path, config) as execution:
        execution.start_ready()
        sockets = Sockets(execution.wait(lambda health: health["bento_pid"] is not None)["bento_pid"])
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"POST /x HTTP/1.1\r\nHost: x\r\n")
            assert sockets.look() == {}
            assert sockets.look() == {}


def test_a_bento_that_has_ended_has_none(tmp_path: Path) -> None:
    with Execution(tmp_path, STEADY) as execution:
        runner = execution.start_ready()
        sockets = Sockets(execution.wait(lambda health: health["bento_pid"] is not None)["bento_pid"])
        runner.kill()
        eventually(lambda: not sockets.look(), "nothing")


def greeting(peer: tuple[str, int]) -> Greeting:
    """Ask as the runner's loop does."""
    hail = Hail(peer)
    try:
        end = time.monotonic() + HAIL_S
        poll = select.poll()
        poll.register(hail.fileno(), select.POLLIN)
        while hail.greeting is None:
            left = end - time.monotonic()
            if left <= 0:
                return hail.late()
            if poll.poll(left * 1000):
                hail.advance()
        return hail.greeting
    finally:
        hail.close()


@contextmanager
def served(answer: Callable[[socket.socket], object]) -> Iterator[tuple[str, int]]:
    """A server that does this with each connection."""
    connections = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def run() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return  # closed: the test is over
                connections.append(connection)
                answer(connection)

        thread = Thread(target=run)
        thread.start()
        try:
            yield server.getsockname()
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()
            for connection in connections:
                connection.close()


def test_a_nats_server_is_known_by_its_greeting(nats_session: NatsServer) -> None:
    assert greeting(("127.0.0.1", nats_session.port)) is Greeting.NATS


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        pytest.param(lambda connection: connection.sendall(b"220 mail\r\n"), Greeting.OTHER, id="says something else"),
        pytest.param(lambda connection: None, Greeting.SILENT, id="waits for its client"),
        pytest.param(lambda connection: connection.close(), Greeting.AWAY, id="a proxy without its server"),
    ],
)
def test_who_is_not(answer: Callable[[socket.socket], object], expected: Greeting) -> None:
    with served(answer) as peer:
        assert greeting(peer) is expected


def test_nobody_is_there() -> None:
    assert greeting(("127.0.0.1", free_port())) is Greeting.AWAY
