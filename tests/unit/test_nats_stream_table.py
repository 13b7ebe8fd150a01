"""What streams are created with satisfies what is demanded of them, and what would hurt is noticed."""

from typing import Any

import pytest

from shared.keys import Keys
from shared.nats_stream_table import Row, rows

KEYS = Keys("c")


@pytest.mark.parametrize("row", rows(KEYS), ids=lambda row: row.stream)
def test_a_fresh_stream_breaks_no_rule(row: Row) -> None:
    assert row.broken(row.wanted) == []


@pytest.mark.parametrize("row", rows(KEYS), ids=lambda row: row.stream)
def test_mending_mends(row: Row) -> None:
    spoilt = {**row.wanted, **{rule.field: None for rule in row.rules if rule.mend is not None}}
    mended = spoilt | {rule.field: rule.mend for rule in row.broken(spoilt)}
    assert row.broken(mended) == []


def test_there_is_one_stream_for_every_name_of_a_cluster() -> None:
    buckets = {KEYS.pipelines, KEYS.operator, KEYS.hosts, KEYS.reports, KEYS.control}
    objects = {KEYS.configs, KEYS.bundles}
    wanted = {f"KV_{b}" for b in buckets} | {f"OBJ_{b}" for b in objects} | {KEYS.events}
    assert {row.stream for row in rows(KEYS)} == wanted


@pytest.mark.parametrize("bucket", [KEYS.hosts, KEYS.reports])
@pytest.mark.parametrize(
    "change",
    [
        {"allow_rollup_hdrs": True},
        {"deny_purge": False},
        {"deny_delete": False},
        {"subject_delete_marker_ttl": 1},
        {"storage": "memory"},
        {"max_age": 1},
        {"max_consumers": 5},
        {"discard": "old"},
        {"mirror": {"name": "x"}},
        {"sources": [{"name": "x"}]},
        {"sealed": True},
        {"no_ack": True},
        {"subjects": ["$KV.other.>"]},
        {"max_msgs_per_subject": -1},
        {"retention": "workqueue"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_agents_write_is_guarded(bucket: str, change: dict[str, Any]) -> None:
    row = next(row for row in rows(KEYS) if row.stream == f"KV_{bucket}")
    assert [rule.field for rule in row.broken({**row.wanted, **change})] == list(change)


def test_an_assignment_wakes_its_host_and_nothing_else_does() -> None:
    control = next(row for row in rows(KEYS) if row.stream == "KV_c_control")
    assert control.wanted["republish"] == {"src": "$KV.c_control.assign.*", "dest": "c.live.assign.{{wildcard(1)}}"}
    assert [r.field for r in control.broken({**control.wanted, "republish": None})] == ["republish"]


def test_a_repair_names_the_stream_when_it_is_shown() -> None:
    for row in rows(KEYS):
        for rule in row.rules:
            assert rule.mend is not None or "{stream}" in rule.repair, (row.stream, rule.field)
