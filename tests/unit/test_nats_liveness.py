"""When a connection is given up: silence counts, a pong that waits behind other messages does not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from shared.nats_connection import PING_EVERY_S, PING_SLICE_S, PING_SLICES, Connection, watch_over
from tests.sim.virtual_time import VirtualLoop


class Client:
    """As much of a client as liveness looks at. `pongs` False: pings are never answered."""

    def __init__(self) -> None:
        self.stats = {"in_msgs": 0}
        self.pongs = True

    def new_inbox(self) -> str:
        return "_INBOX.x"

    async def flush(self, timeout: float) -> None:
        if not self.pongs:
            await asyncio.sleep(timeout)


def virtual(test: Callable[[Client, Connection, asyncio.Task[str]], Awaitable[None]]) -> Callable[[], None]:
    def wrapped() -> None:
        async def body() -> None:
            client: Any = Client()
            connection = Connection(client, "nats://a:1")
            watching = asyncio.create_task(watch_over(connection))
            await test(client, connection, watching)
            watching.cancel()

        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(body())

    wrapped.__name__ = test.__name__
    return wrapped


@virtual
async def test_a_quiet_connection_that_answers_pings_lives(
    client: Client, connection: Connection, watching: asyncio.Task[str]
) -> None:
    assert client.pongs
    await asyncio.sleep(600)
    assert not watching.done()
    assert not connection.lost.done()


@virtual
async def test_a_frozen_server_is_noticed_within_three_seconds(
    client: Client, connection: Connection, watching: asyncio.Task[str]
) -> None:
    await asyncio.sleep(10)
    began = asyncio.get_running_loop().time()
    client.pongs = False
    assert "no answer to a ping" in await watching
    assert asyncio.get_running_loop().time() - began <= PING_EVERY_S + PING_SLICES * PING_SLICE_S + 0.1


@virtual
async def test_while_messages_arrive_a_late_pong_proves_nothing(
    client: Client, connection: Connection, watching: asyncio.Task[str]
) -> None:
    client.pongs = False
    for _ in range(300):
        await asyncio.sleep(0.1)
        client.stats["in_msgs"] += 1
    assert not connection.lost.done()
    assert "no answer to a ping" in await watching


@virtual
async def test_a_lost_socket_ends_it_at_once(
    client: Client, connection: Connection, watching: asyncio.Task[str]
) -> None:
    _, future = connection.expect()
    client.pongs = False
    await asyncio.sleep(0.5)
    connection.lose("end of file")
    assert await watching == "end of file"
    assert isinstance(future.exception(), ConnectionResetError)
