"""What each stream of a cluster is created with, and what correctness needs of one that exists: one row per stream.

`wanted` is the configuration of a fresh stream. `rules` name what is compared after reading back; everything else
(replicas, limits, placement, descriptions) is the operator's. A rule that can be mended by a harmless update is mended;
the others are refused with the command that repairs them. Pure: no NATS here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from shared.keys import Keys

_NS = 1_000_000_000
# Stated, because a server caps a stream without it at 1,000 (measured on 2.15.1), and it cannot be changed afterwards.
# Consumers are few: a scheduler has one per bucket, a waiting command line one or two.
CONSUMERS_MAX = 5000
CONSUMERS_MIN = 100  # less could refuse a scheduler's watch
PIPELINE_HISTORY = 64  # the most the key-value layout allows: earlier records, for people
DUPLICATE_WINDOW_NS = 120 * _NS  # within it the same event is stored once
EVENTS_AGE_NS = 7 * 24 * 3600 * _NS
EVENTS_BYTES = 1024**3

Config = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Rule:
    """What must hold of one field. `mend` is the value an update sets; None = nobody may change it behind your back."""

    field: str
    holds: Callable[[Any], bool]
    words: str  # what it must be
    why: str
    mend: Any = None
    repair: str = ""  # the command, with {stream}


@dataclass(frozen=True, slots=True)
class Row:
    """One stream."""

    stream: str
    wanted: Config
    rules: tuple[Rule, ...] = field(default=())

    def broken(self, found: Config) -> list[Rule]:
        """The rules that the configuration `found` breaks."""
        return [rule for rule in self.rules if not rule.holds(found.get(rule.field))]


def rows(keys: Keys) -> tuple[Row, ...]:
    """Every stream of a cluster."""
    control = keys.control
    republish = {"src": f"$KV.{control}.assign.*", "dest": f"{keys.cluster}.live.assign.{{{{wildcard(1)}}}}"}
    users = {"allow_rollup_hdrs": True, "deny_delete": True}
    agents = {"allow_rollup_hdrs": False, "deny_delete": True, "deny_purge": True}
    return (
        _bucket(keys.pipelines, {"max_msgs_per_subject": PIPELINE_HISTORY} | users, (_HISTORY, _ROLL_UP)),
        _objects(keys.configs),
        _bucket(keys.operator, users, (_ROLL_UP,)),
        _bucket(keys.hosts, agents, _AGENT_RULES),
        _bucket(keys.reports, agents, _AGENT_RULES),
        _bucket(
            control,
            {"allow_rollup_hdrs": False, "deny_delete": True, "allow_atomic": True, "republish": republish},
            (*_OWN_RULES, _ATOMIC, _republish(republish)),
        ),
        _objects(keys.bundles),
        _events(keys),
    )


def _bucket(bucket: str, more: Config, rules: tuple[Rule, ...]) -> Row:
    subjects = [f"$KV.{bucket}.>"]
    wanted = _BASE | {"subjects": subjects, "max_msgs_per_subject": 1, "discard": "new"} | more
    return Row(f"KV_{bucket}", {"name": f"KV_{bucket}"} | wanted, (_subjects(subjects), *_COMMON, _DISCARD, *rules))


def _objects(bucket: str) -> Row:
    """As `nats object put` and the client libraries make it: roll-ups replace metadata, purges remove chunks."""
    subjects = [f"$O.{bucket}.C.>", f"$O.{bucket}.M.>"]
    wanted = _BASE | {"subjects": subjects, "discard": "new", "allow_rollup_hdrs": True}
    return Row(f"OBJ_{bucket}", {"name": f"OBJ_{bucket}"} | wanted, (_subjects(subjects), *_COMMON, _ROLL_UP))


def _events(keys: Keys) -> Row:
    subjects = [f"{keys.cluster}.event.>"]
    wanted = _BASE | {"subjects": subjects, "discard": "old", "max_age": EVENTS_AGE_NS, "max_bytes": EVENTS_BYTES}
    wanted |= {"allow_rollup_hdrs": False, "deny_delete": True, "deny_purge": True}
    return Row(keys.events, {"name": keys.events} | wanted, (_subjects(subjects), *_KEPT, _NO_ROLL_UP))


_BASE: Config = {
    "retention": "limits",
    "storage": "file",
    "max_msgs": -1,
    "max_bytes": -1,
    "max_age": 0,
    "max_msg_size": -1,
    "max_consumers": CONSUMERS_MAX,
    "duplicate_window": DUPLICATE_WINDOW_NS,
    "allow_direct": True,
}

_RECREATE = "back the bucket up, `nats stream rm {stream}`, and start a scheduler, which makes it anew"


def _off(value: Any) -> bool:
    return not value


def _is(wanted: Any) -> Callable[[Any], bool]:
    return lambda value: value == wanted


def _subjects(subjects: list[str]) -> Rule:
    return Rule(
        "subjects",
        lambda value: sorted(value or []) == sorted(subjects),
        f"exactly {', '.join(subjects)}",
        "keys are found by these subjects",
        repair="`nats stream edit {stream} --subjects " + " --subjects ".join(f"'{s}'" for s in subjects) + "`",
    )


def _republish(wanted: Config) -> Rule:
    def holds(value: Any) -> bool:
        found = value or {}
        return {"src": found.get("src"), "dest": found.get("dest")} == wanted and not found.get("headers_only")

    return Rule("republish", holds, f"from {wanted['src']} to {wanted['dest']}", "it wakes the agents", mend=wanted)


_KEPT = (
    Rule("retention", _is("limits"), "limits", "another retention removes what was read", repair=_RECREATE),
    Rule("mirror", _off, "absent", "a mirror cannot be written", repair=_RECREATE),
    Rule("sources", _off, "absent", "writes of another stream would mix in", repair=_RECREATE),
    Rule("sealed", _off, "false", "a sealed stream cannot be written", repair=_RECREATE),
    Rule("no_ack", _off, "false", "without acknowledgements no write is ever known", mend=False),
    Rule(
        "max_consumers",
        lambda value: value is None or value <= 0 or value >= CONSUMERS_MIN,
        f"unlimited or at least {CONSUMERS_MIN}",
        "every watch is a consumer",
        repair=_RECREATE,
    ),
)
_COMMON = (
    *_KEPT,
    Rule(
        "max_age",
        _off,
        "0",
        "documents that expire stop what they describe",
        repair="`nats stream edit {stream} --max-age 0`",
    ),
)
_DISCARD = Rule("discard", _is("new"), "new", "a full stream must refuse writes, not forget keys", mend="new")
_HISTORY = Rule(
    "max_msgs_per_subject",
    lambda value: value is None or value <= 0 or value >= PIPELINE_HISTORY,
    f"at least {PIPELINE_HISTORY}",
    "earlier records are shown to people",
    mend=PIPELINE_HISTORY,
)
_ROLL_UP = Rule("allow_rollup_hdrs", bool, "true", "`nats kv purge` and object metadata need it", mend=True)
_NO_ROLL_UP = Rule(
    "allow_rollup_hdrs", _off, "false", "whoever may write one key could erase all with a roll-up", mend=False
)
_OWN_RULES = (
    Rule("max_msgs_per_subject", _is(1), "1", "only the last document of a key counts", mend=1),
    Rule("storage", _is("file"), "file", "what runs where must survive a restart", repair=_RECREATE),
    _NO_ROLL_UP,
)
_AGENT_RULES = (
    *_OWN_RULES,
    Rule(
        "subject_delete_marker_ttl",
        _off,
        "absent",
        "it forces roll-ups on, with which one agent could erase all",
        repair="`nats stream edit {stream} --subject-del-markers-ttl 0`",
    ),
    Rule("deny_delete", bool, "true", "agents may write, not remove", mend=True),
    Rule("deny_purge", bool, "true", "agents may write, not remove", mend=True),
)
_ATOMIC = Rule("allow_atomic", bool, "true", "a plan is committed whole or not at all", mend=True)
