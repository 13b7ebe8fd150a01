"""The servers that the other tests rely on do what their names say."""

import asyncio
import contextlib
import time

import nats
import pytest
from nats.js.api import StreamConfig
from nats.js.errors import NoStreamResponseError

from tests.support.nats_servers import NatsCluster, NatsServer


async def _publish(url: str, stream: str, replicas: int = 1) -> int:
    client = await nats.connect(url.split(","), connect_timeout=2)
    try:
        jetstream = client.jetstream()
        await jetstream.add_stream(StreamConfig(name=stream, subjects=[f"{stream}.>"], num_replicas=replicas))
        deadline = time.monotonic() + 20
        while True:  # a replicated stream is known to its leader first, to the server at hand a moment later
            with contextlib.suppress(NoStreamResponseError):
                return (await jetstream.publish(f"{stream}.a", b"1")).seq
            assert time.monotonic() < deadline
    finally:
        await client.close()


def test_server_keeps_data_and_port_over_crash_and_restart(nats_server: NatsServer) -> None:
    assert nats_server.version.startswith("2.15.")
    assert asyncio.run(_publish(nats_server.url, "S")) == 1
    nats_server.restart(crash=True)
    assert asyncio.run(_publish(nats_server.url, "S")) == 2


def test_paused_server_answers_nothing_until_resumed(nats_server: NatsServer) -> None:
    nats_server.pause()
    with pytest.raises(OSError, match="timed out"):
        nats_server.monitor("/varz", timeout_s=0.2)
    nats_server.resume()
    nats_server.wait_ready()


def test_oldest_server_is_the_accepted_floor(nats_session_oldest: NatsServer) -> None:
    assert nats_session_oldest.version.startswith("2.12.")


@pytest.mark.cluster
def test_cluster_replicates_and_survives_its_stream_leader(nats_cluster: NatsCluster) -> None:
    assert asyncio.run(_publish(nats_cluster.url, "S", replicas=3)) == 1
    deadline = time.monotonic() + 10
    while (leader := nats_cluster.stream_leader("S")) is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    leader.kill()
    deadline = time.monotonic() + 20
    while (successor := nats_cluster.stream_leader("S")) is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert successor is not leader
    leader.start()
