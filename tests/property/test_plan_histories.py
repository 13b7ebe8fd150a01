"""Longer random histories than Hypothesis likes, by seed, and the histories that once broke a rule.

A failing seed prints as the test's id; shorten its history by hand and add it to `ONCE_BROKEN`.
"""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests.property.test_plan import HOSTS, PIPELINES, play_out

SEEDS = 400

PLACEMENTS: list[dict[str, Any]] = [
    {},
    {"required": {"zone": "a"}},
    {"required": {"zone": ["a", "b"]}, "spread": "zone"},
    {"preferred": {"zone": "b"}},
    {"required": {"host": "h2"}},
    {"spread": "zone"},
]
KINDS = [
    *("publish", "publish", "status", "replicas", "placement", "partition", "delete", "invalid", "restart", "breaks"),
    *("down", "down", "up", "up", "intent", "zone", "stuck", "time", "time"),
    *["pass"] * 12,
]


def event(dice: random.Random) -> tuple[Any, ...]:
    name, host, version = dice.choice(PIPELINES), dice.choice(HOSTS), dice.choice("123")
    placement = dice.choice(PLACEMENTS)
    match dice.choice(KINDS):
        case "publish":
            size = dice.choice(["64MiB", "1GiB", "3GiB"])
            return ("publish", name, version, dice.randint(0, 4), placement, size)
        case "status":
            return ("status", name, dice.choice(["published", "paused", "draft"]))
        case "replicas":
            return ("replicas", name, dice.randint(0, 5))
        case "placement":
            return ("placement", name, placement)
        case "partition":
            return ("partition", name, dice.choice(["auto", "stop", "continue"]))
        case "breaks":
            return ("breaks", name, version)
        case "down":
            return ("down", host)
        case "up":
            return ("up", host, dice.choice(["same", "lapse", "boot", "agent"]))
        case "intent":
            return ("intent", host, dice.choice(["", "", "cordon", "drain", "forget", "confirm_dead"]))
        case "zone":
            return ("zone", host, dice.choice("ab"))
        case "stuck":
            return ("stuck", host, dice.random() < 0.5)
        case "time":
            return ("time", dice.choice([1.0, 5.0, 13.0]))
        case "pass":
            return ("pass",)
        case kind:
            return (kind, name)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_random_history(seed: int) -> None:
    dice = random.Random(seed)
    lag = dice.random() < 0.5
    play_out([event(dice) for _ in range(dice.randint(5, 60))], lag)


ZONE_A: dict[str, Any] = {"required": {"zone": "a"}}
EITHER: dict[str, Any] = {"required": {"zone": ["a", "b"]}, "spread": "zone"}
PREFER_B: dict[str, Any] = {"preferred": {"zone": "b"}}
PASS = ("pass",)

ONCE_BROKEN: dict[str, tuple[bool, list[tuple[Any, ...]]]] = {
    "a surplus execution goes in the same plan as the next surge": (
        False,
        [
            ("publish", "gamma", "1", 1, {}, "64MiB"),
            PASS,
            ("placement", "gamma", {"required": {"host": "h2"}}),
            PASS,
            ("down", "h2"),
        ],
    ),
    "several stops of one slot are shown in one order": (
        True,
        [
            ("publish", "gamma", "2", 4, {"required": {"host": "h2"}}, "64MiB"),
            PASS,
            ("down", "h4"),
            ("down", "h2"),
            ("publish", "gamma", "2", 1, PREFER_B, "3GiB"),
            ("time", 5.0),
            PASS,
            ("publish", "gamma", "3", 0, {}, "1GiB"),
            PASS,
        ],
    ),
    "an exclusive slot between stop and start is not forgotten when its replicas are refused": (
        False,
        [
            ("publish", "beta", "2", 1, {}, "64MiB"),
            PASS,
            ("publish", "beta", "2", 2, {"required": {"host": "h2"}}, "3GiB"),
            PASS,
        ],
    ),
    "becoming lease-bound on a silent host releases nothing": (
        False,
        [
            ("down", "h1"),
            ("publish", "beta", "2", 1, {"spread": "zone"}, "3GiB"),
            ("partition", "beta", "continue"),
            PASS,
            ("time", 13.0),
            ("publish", "beta", "2", 4, EITHER, "1GiB"),
            PASS,
        ],
    ),
    "a broken execution is not stopped for room that a neighbour takes in the same plan": (
        True,
        [
            ("publish", "alpha", "1", 0, {"spread": "zone"}, "1GiB"),
            ("replicas", "alpha", 4),
            PASS,
            ("restart", "alpha"),
            PASS,
            ("publish", "alpha", "3", 4, {"spread": "zone"}, "3GiB"),
            ("publish", "gamma", "2", 2, {}, "64MiB"),
            PASS,
        ],
    ),
    "ready on a lost host counts less than ready on one that is heard": (
        False,
        [
            ("publish", "alpha", "1", 2, {}, "3GiB"),
            PASS,
            ("down", "h1"),
            ("restart", "alpha"),
            PASS,
            ("publish", "alpha", "3", 4, PREFER_B, "3GiB"),
            ("time", 13.0),
            PASS,
        ],
    ),
    "what runs goes on when only the replicas of its own version are refused": (
        True,
        [
            ("publish", "beta", "2", 1, PREFER_B, "3GiB"),
            PASS,
            ("down", "h3"),
            ("down", "h1"),
            ("time", 5.0),
            ("publish", "beta", "1", 1, ZONE_A, "64MiB"),
            PASS,
            ("publish", "beta", "2", 2, {}, "1GiB"),
            PASS,
        ],
    ),
    "a paused version that only its replicas refuse is told the same in every pass": (
        True,
        [
            ("publish", "beta", "1", 1, EITHER, "3GiB"),
            PASS,
            ("status", "beta", "draft"),
            PASS,
            ("publish", "beta", "2", 3, PREFER_B, "1GiB"),
            PASS,
            ("status", "beta", "paused"),
            PASS,
        ],
    ),
    "a forgotten host may drop what a broken record says nothing about": (
        False,
        [
            ("publish", "alpha", "3", 3, PREFER_B, "1GiB"),
            PASS,
            ("intent", "h2", "forget"),
            ("down", "h2"),
            ("delete", "alpha"),
            ("time", 13.0),
            ("invalid", "alpha"),
            PASS,
        ],
    ),
}


@pytest.mark.parametrize(("lag", "history"), ONCE_BROKEN.values(), ids=ONCE_BROKEN.keys())
def test_what_was_broken_once(lag: bool, history: list[tuple[Any, ...]]) -> None:
    play_out(history, lag)
