"""What `shoal doctor` says of hosts that do not obey this store, or have what no store commands."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cli.store import strange
from shared.documents import Heartbeat, Journal, Session, Stray

JOURNAL = Journal(store_id="now", term=1, plan=1, attempt="", holder="s", accepted=("accepted",))
BEAT = Heartbeat(
    store_id="now",
    host="h",
    session=Session("a", "b", 1),
    sequence=1,
    lease_s=8,
    fence_kill_s=2,
    poll_s=0.25,
    cpu=4,
    memory_bytes=1,
)
STRAY = Stray(store_id="lost", execution="p-0-1", pipeline="p", slot=0, version="1", digest="d")
FORGET = "shoal hosts forget h --confirm-dead"
TAKE_OVER = "shoal store accept now --replaces lost"


@pytest.mark.parametrize(
    ("beat", "words"),
    [
        pytest.param(BEAT, (), id="a host that obeys"),
        pytest.param(replace(BEAT, store_id=""), (), id="a fresh one"),
        pytest.param(replace(BEAT, store_id="lost"), ("obeys store lost", "shoal store accept now"), id="a stranger"),
        pytest.param(replace(BEAT, store_id="accepted"), ("it is being taken over",), id="one that was accepted"),
        pytest.param(
            replace(BEAT, store_id="", strays_unknown="the engine hangs"),
            ("given nothing before: the engine hangs", FORGET),
            id="one that cannot tell",
        ),
        pytest.param(replace(BEAT, strays_unknown="the engine hangs"), (), id="its document tells"),
        pytest.param(
            replace(BEAT, store_id="", strays=(STRAY,)), ("p-0-1 may run there", TAKE_OVER, FORGET), id="a stray"
        ),
        pytest.param(
            replace(BEAT, strays=tuple(replace(STRAY, execution=f"p-{n}-1") for n in range(5))),
            ("p-0-1, p-1-1, p-2-1 and 2 more may run there", TAKE_OVER),
            id="many strays",
        ),
        pytest.param(
            replace(BEAT, strays=(replace(STRAY, store_id="accepted"),)), (), id="a stray that is being removed"
        ),
    ],
)
def test_a_host_is_strange(beat: Heartbeat, words: tuple[str, ...]) -> None:
    told = list(strange(beat, JOURNAL))
    assert len(told) == (1 if words else 0)
    assert all(word in told[0] for word in words)
