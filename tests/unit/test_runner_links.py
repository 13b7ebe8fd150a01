"""Whether Bento has lost NATS for good, as stories of what is seen from outside. Times are seconds."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from runner import core, events, links
from runner.core import Phase, State
from runner.events import Greet, Greeted, Linked, LookAtLinks
from runner.links import Greeting, Links, Peer
from runner.value import replace

A, B, C, WEB = ("10.0.0.1", 4222), ("10.0.0.2", 4222), ("10.0.0.3", 4222), ("10.0.0.9", 80)


class World:
    """A Bento's sockets and the servers around it, second by second, as the runner would look at them."""

    def __init__(self) -> None:
        self.links: Links = links.begin(0.0)
        self.now = 0.0
        self.open: dict[str, Peer] = {}
        self.greets: dict[Peer, Greeting] = {}
        self.asked: list[tuple[float, Peer]] = []
        self.ready = True
        self._number = 0

    def connect(self, *peers: Peer) -> None:
        for peer in peers:
            self._number += 1
            self.open[str(self._number)] = peer

    def close(self, *peers: Peer) -> None:
        self.open = {key: peer for key, peer in self.open.items() if peer not in peers}

    def servers(self, peers: Iterable[Peer], greeting: Greeting) -> None:
        self.greets |= dict.fromkeys(peers, greeting)

    def go_on(self, seconds: float) -> bool:
        """Let time pass; whether it is stuck at the end."""
        end = self.now + seconds
        while self.now < end:
            self.now += 0.5
            if self.now >= self.links.look_at:
                self.links = links.looked(self.links, dict(self.open), self.now)
            peer = links.whom_to_ask(self.links)
            if peer is not None and self.now >= self.links.ask_at:
                self.asked.append((self.now, peer))
                self.links = links.heard(self.links, peer, self.greets.get(peer, Greeting.AWAY), self.now)
        return self.stuck is not None

    @property
    def stuck(self) -> tuple[float, str] | None:
        return links.stuck(self.links, ready=self.ready, now=self.now)


def connected(*peers: Peer) -> World:
    """A Bento that has these connections for a minute."""
    world = World()
    world.servers({*peers} - {WEB}, Greeting.NATS)
    world.greets[WEB] = Greeting.SILENT
    world.connect(*peers)
    assert not world.go_on(60)
    assert not world.asked, "while nothing is lost nobody is asked"
    return world


def outage(world: World, seconds: float, *servers: Peer) -> None:
    """All of these are away for so long, and with them the connections."""
    world.close(*servers)
    world.servers(servers, Greeting.AWAY)
    assert not world.go_on(seconds), "not before they are back"
    world.servers(servers, Greeting.NATS)


def test_given_up_after_a_long_outage() -> None:
    world = connected(A)
    outage(world, 150, A)
    assert not world.go_on(4), "it may still be connecting"
    assert world.go_on(6)
    assert world.stuck is not None
    since, reason = world.stuck
    assert since == pytest.approx(60, abs=links.LOOK_S)
    assert "a connection to NATS: the server at 10.0.0.1:4222 was away for 1" in reason


def test_one_that_reconnects_by_itself_is_not_stuck() -> None:
    world = connected(A)
    outage(world, 150, A)
    world.go_on(2)
    world.connect(A)
    assert not world.go_on(300)
    assert world.links.lost == ()


def test_one_of_two_reconnects() -> None:
    """An input that Bento connects again by itself, and an output that has given up."""
    world = connected(A, A)
    outage(world, 150, A)
    world.connect(A)
    assert world.go_on(10)


def test_both_of_two_have_given_up() -> None:
    world = connected(A, A)
    outage(world, 150, A)
    assert world.go_on(10)
    assert world.stuck is not None
    assert "2 connections" in world.stuck[1]


@pytest.mark.parametrize("seconds", [1, 5, 30, 90])
def test_a_short_outage_is_left_to_the_library(seconds: float) -> None:
    """It tries for two minutes; one that is not there by then was closed on purpose."""
    world = connected(A)
    outage(world, seconds, A)
    assert not world.go_on(300)
    assert world.links.lost == ()


def test_closed_on_purpose_while_its_server_is_there() -> None:
    """The first input of a `sequence` has ended."""
    world = connected(A, A)
    world.open.popitem()
    assert not world.go_on(60)
    assert world.links.lost == ()
    outage(world, 150, A)
    assert world.go_on(10)
    assert world.stuck is not None
    assert "a connection" in world.stuck[1], "only the one that was left counts"


def test_without_nats_it_is_never_stuck() -> None:
    world = connected(WEB, WEB)
    for greeting in (Greeting.AWAY, Greeting.SILENT, Greeting.OTHER):
        world.close(WEB)
        world.greets[WEB] = Greeting.AWAY
        assert not world.go_on(200)
        world.greets[WEB] = greeting
        assert not world.go_on(3000)
        world.connect(WEB)
        assert not world.go_on(60)


@pytest.mark.parametrize("greeting", [Greeting.SILENT, Greeting.OTHER])
def test_a_stranger_who_is_there_is_asked_once(greeting: Greeting) -> None:
    """A web server closes idle connections all the time."""
    world = connected(WEB)
    world.greets[WEB] = greeting
    for _ in range(100):
        world.close(WEB)
        world.go_on(60)
        world.connect(WEB)
        world.go_on(60)
    assert len(world.asked) == 1


def test_a_stranger_who_was_away_is_not_asked_for_ever() -> None:
    world = connected(WEB)
    world.close(WEB)
    world.greets[WEB] = Greeting.AWAY
    world.go_on(150)
    away = len(world.asked)
    world.greets[WEB] = Greeting.SILENT
    world.go_on(36000)
    assert len(world.asked) - away == links.SILENT_MAX


def test_who_has_many_short_connections_is_hardly_asked() -> None:
    world = connected(A)
    for number in range(100):
        world.connect(("10.1.0.1", number))
        world.go_on(20)
        world.close(("10.1.0.1", number))
    assert not world.asked
    outage(world, 150, A)
    assert world.go_on(10)


def test_a_server_that_is_away_for_ever() -> None:
    world = connected(A)
    world.close(A)
    world.servers([A], Greeting.AWAY)
    assert not world.go_on(3600)


def test_a_server_that_comes_and_goes_is_not_back() -> None:
    world = connected(A)
    outage(world, 150, A)
    for _ in range(10):
        assert not world.go_on(4)
        world.servers([A], Greeting.AWAY)
        assert not world.go_on(4)
        world.servers([A], Greeting.NATS)
    assert world.go_on(10)


def test_a_proxy_that_accepts_while_the_server_is_away() -> None:
    world = connected(A)
    world.close(A)
    world.servers([A], Greeting.AWAY)
    world.go_on(20)
    world.servers([A], Greeting.SILENT)
    assert not world.go_on(180)
    world.servers([A], Greeting.NATS)
    assert world.go_on(links.ASK_SILENT_MAX_S + 10)


def test_in_a_cluster_it_goes_to_another_server() -> None:
    world = connected(A)
    world.close(A)
    world.servers([A], Greeting.AWAY)
    world.servers([B], Greeting.NATS)
    world.go_on(2)
    world.connect(B)
    assert not world.go_on(200)
    assert world.links.lost == ()
    world.servers([A], Greeting.NATS)
    assert not world.go_on(200), "that A is back is nothing to it"


def test_a_connection_to_something_else_replaces_nothing() -> None:
    """A pipeline that polls a web server meanwhile."""
    world = connected(A)
    world.close(A)
    world.servers([A], Greeting.AWAY)
    for _ in range(15):
        world.connect(WEB)
        world.go_on(10)
        world.close(WEB)
    world.connect(WEB)
    world.servers([A], Greeting.NATS)
    assert world.go_on(10)


def test_a_second_server_that_stays_up_does_not_hide_it() -> None:
    world = connected(A, B)
    outage(world, 150, A)
    assert world.go_on(10)


def test_what_bento_tries_itself_gets_more_time() -> None:
    world = connected(A)
    world.ready = False
    outage(world, 150, A)
    assert not world.go_on(25)
    assert world.go_on(10)


def test_the_next_connection_ends_it() -> None:
    """An output without traffic: the first message after the outage connects it again."""
    world = connected(A)
    outage(world, 150, A)
    assert world.go_on(10)
    world.connect(A)
    assert not world.go_on(5)


def test_an_outage_right_after_the_start() -> None:
    world = World()
    world.connect(A)
    world.servers([A], Greeting.NATS)
    world.go_on(links.FIRST_LOOK_S)
    outage(world, 150, A)
    assert world.go_on(10)


def test_a_server_of_a_thousand_clients_is_not_watched() -> None:
    world = connected(A)
    world.connect(*([WEB] * (links.LINKS_MAX + 1)))
    world.go_on(10)
    outage(world, 150, A)
    assert not world.go_on(60)


# --- in the core


def ready_state() -> State:
    state = core.begin(0.0, fetching=False, grace_s=20.0, http_ours=True, fence=None)
    return replace(state, phase=Phase.READY, ready_at=1e9)


def test_the_core_looks_and_asks() -> None:
    state, actions = core.step(ready_state(), events.Woken(), 5.0)
    assert actions == [LookAtLinks()]
    state, actions = core.step(state, Linked(found={"1": A}), 5.0)
    assert (actions, core.wake_at(state)) == ([], 10.0)
    state, _ = core.step(state, Linked(found={"1": A}), 10.0)
    state, actions = core.step(state, Linked(found={}), 15.0)
    assert actions == [Greet(peer=A)]
    state, actions = core.step(state, events.Woken(), 15.5)
    assert actions == [], "one at a time"
    state, _ = core.step(state, Greeted(peer=A, greeting=Greeting.AWAY), 15.6)
    assert core.wake_at(state) == 16.0
    for second in range(16, 150):
        state, actions = core.step(state, Linked(found={}), float(second))
        if Greet(peer=A) in actions:
            state, _ = core.step(state, Greeted(peer=A, greeting=Greeting.AWAY), float(second))
    assert state.stuck is None
    for second in range(150, 160):
        state, actions = core.step(state, Linked(found={}), float(second))
        if Greet(peer=A) in actions:
            state, _ = core.step(state, Greeted(peer=A, greeting=Greeting.NATS), float(second))
    assert state.stuck is not None
    assert state.stuck[0] == 15.0
    stopping, _ = core.step(state, events.Signalled(number=15), 161.0)
    assert stopping.stuck is None
    assert LookAtLinks() not in core.step(stopping, events.Woken(), 170.0)[1]
