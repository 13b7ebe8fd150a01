"""The pipeline record: what is accepted, and that every refusal names field, value and remedy."""

import json
from typing import Any

import pytest

from shared.errors import BadInput
from shared.keys import RECORD_BYTES_MAX
from shared.record import CAPTURED, PipelineRecord, captured, parse_record

LEAST: dict[str, Any] = {"id": "orders", "status": "published", "version": "1"}


def record(**fields: Any) -> PipelineRecord:
    return parse_record("orders", json.dumps({**LEAST, **fields}).encode())


def test_the_least_record_has_good_defaults() -> None:
    found = record()
    assert (found.replicas, found.overlap, found.on_partition, found.kind, found.image) == (
        1,
        "auto",
        "auto",
        "service",
        "",
    )
    assert (found.placement.spread, found.placement.required, found.resources.cpu, found.resources.memory) == (
        "host",
        {},
        None,
        None,
    )
    assert (found.restart.delay_s, found.restart.delay_max_s, found.restart.reset_after_s) == (1.0, 60.0, 120.0)


def test_the_record_of_the_acceptance_test() -> None:
    data = b'{"id":"orders","name":"Orders","status":"published","version":"1"}'
    assert parse_record("orders", data).name == "Orders"


ACCEPTED: list[tuple[str, dict[str, Any], str, Any]] = [
    ("draft", {"status": "draft"}, "status", "draft"),
    ("paused", {"status": "paused"}, "status", "paused"),
    ("no replicas", {"replicas": 0}, "replicas", 0),
    ("a dotted version", {"version": "1.2.3-rc_1"}, "version", "1.2.3-rc_1"),
    ("one label", {"placement": {"required": {"zone": "a"}}}, "placement.required", {"zone": "a"}),
    ("several values", {"placement": {"required": {"zone": ["a", "b"]}}}, "placement.required", {"zone": ["a", "b"]}),
    ("memory as bytes", {"resources": {"memory": 1000}}, "resources.memory", 1000),
    ("memory in MiB", {"resources": {"memory": "64MiB"}}, "resources.memory", 64 * 2**20),
    ("memory in Mi", {"resources": {"memory": "64Mi"}}, "resources.memory", 64 * 2**20),
    ("memory in MB", {"resources": {"memory": "1.5 GB"}}, "resources.memory", 1_500_000_000),
    ("memory in small letters", {"resources": {"memory": "2k"}}, "resources.memory", 2000),
    ("whole cores", {"resources": {"cpu": 2}}, "resources.cpu", 2.0),
    ("an environment", {"env": {"A_1": "x", "_b": ""}}, "env", {"A_1": "x", "_b": ""}),
    ("a volume", {"volumes": ["/a:/b"]}, "volumes", ["/a:/b"]),
    ("a volume to read", {"volumes": ["/a b:/c:ro"]}, "volumes", ["/a b:/c:ro"]),
    ("restart", {"restart": {"delay_s": 5, "delay_max_s": 5}}, "restart.delay_max_s", 5.0),
]


@pytest.mark.parametrize(("fields", "path", "value"), [c[1:] for c in ACCEPTED], ids=[c[0] for c in ACCEPTED])
def test_accepted(fields: dict[str, Any], path: str, value: Any) -> None:
    found: Any = record(**fields)
    for part in path.split("."):
        found = getattr(found, part)
    assert found == value


REFUSED: list[tuple[str, dict[str, Any], str, str, str]] = [
    ("unknown field, near", {"replica": 2}, "replica", "2", "did you mean 'replicas'?"),
    ("unknown field, far", {"xyzzy": 2}, "xyzzy", "2", "known: id, name"),
    ("unknown nested field", {"placement": {"requred": {}}}, "placement.requred", "{}", "did you mean 'required'?"),
    ("update is for later", {"update": {}}, "update", "{}", "not supported yet"),
    ("jobs are for later", {"kind": "job"}, "kind", "'job'", "not supported yet"),
    ("kind of another kind", {"kind": "x"}, "kind", "'x'", "'service'"),
    ("bad id", {"id": "Orders"}, "id", "'Orders'", "lower-case"),
    ("id of another key", {"id": "other"}, "id", "'other'", "must equal the key"),
    ("bad status", {"status": "on"}, "status", "'on'", "'draft', 'published' or 'paused'"),
    ("bad version", {"version": "a..b"}, "version", "'a..b'", "without '..'"),
    ("version as a number", {"version": 1}, "version", "1", 'write it as a text: "1"'),
    ("replicas as text", {"replicas": "2"}, "replicas", "'2'", "valid integer"),
    ("replicas as a fraction", {"replicas": 2.5}, "replicas", "2.5", "valid integer"),
    ("replicas as true", {"replicas": True}, "replicas", "True", "valid integer"),
    ("replicas below zero", {"replicas": -1}, "replicas", "-1", "greater than or equal to 0"),
    ("too many replicas", {"replicas": 1001}, "replicas", "1001", "less than or equal to 1000"),
    ("overlap", {"overlap": "yes"}, "overlap", "'yes'", "'auto', 'forbid' or 'allow'"),
    ("on_partition", {"on_partition": "x"}, "on_partition", "'x'", "'auto', 'stop' or 'continue'"),
    ("memory in words", {"resources": {"memory": "much"}}, "resources.memory", "'much'", "'256MiB'"),
    ("memory below zero", {"resources": {"memory": -1}}, "resources.memory", "-1", "greater than or equal to 0"),
    ("memory beyond any float", {"resources": {"memory": "9" * 400 + "T"}}, "resources.memory", "'999", "'256MiB'"),
    (
        "memory beyond any machine",
        {"resources": {"memory": "9999TiB"}},
        "resources.memory",
        "1099",
        "less than or equal",
    ),
    ("memory as true", {"resources": {"memory": True}}, "resources.memory", "True", "valid integer"),
    ("cores that are no number", {"resources": {"cpu": float("nan")}}, "resources.cpu", "nan", "finite"),
    ("cores without end", {"resources": {"cpu": float("inf")}}, "resources.cpu", "inf", "finite"),
    (
        "label as a number",
        {"placement": {"required": {"zone": 1}}},
        "placement.required.zone",
        "1",
        'write it as a text: "1"',
    ),
    ("env as a number", {"env": {"PORT": 80}}, "env.PORT", "80", 'write it as a text: "80"'),
    ("env of Shoal's", {"env": {"SHOAL_SLOT": "1"}}, "env", "SHOAL_SLOT", "not beginning with SHOAL_"),
    ("env name with a dash", {"env": {"a-b": "1"}}, "env", "a-b", "no usable name"),
    ("env with a NUL", {"env": {"A": "a\0b"}}, "env", "A", "NUL"),
    ("volume without a target", {"volumes": ["/a"]}, "volumes.0", "'/a'", "/path/inside"),
    ("volume that climbs", {"volumes": ["/a/../etc:/b"]}, "volumes.0", "'/a/../etc:/b'", "/path/inside"),
    ("volume relative", {"volumes": ["a:/b"]}, "volumes.0", "'a:/b'", "/path/inside"),
    ("volume with a line break", {"volumes": ["/a\n:/b"]}, "volumes.0", "/a", "/path/inside"),
    ("volume mode", {"volumes": ["/a:/b:rx"]}, "volumes.0", "'/a:/b:rx'", "/path/inside"),
    ("too many volumes", {"volumes": ["/a:/b"] * 33}, "volumes", "", "at most 32"),
    ("delays that shrink", {"restart": {"delay_s": 90}}, "restart", "90", "must be at least delay_s (90)"),
    ("no delay", {"restart": {"delay_s": 0}}, "restart.delay_s", "0", "greater than or equal to 0.1"),
    ("name too long", {"name": "x" * 201}, "name", "'xxx", "at most 200"),
    ("null", {"replicas": None}, "replicas", "None", "valid integer"),
]


@pytest.mark.parametrize(("fields", "field", "value", "remedy"), [c[1:] for c in REFUSED], ids=[c[0] for c in REFUSED])
def test_refused_with_field_value_and_remedy(fields: dict[str, Any], field: str, value: str, remedy: str) -> None:
    with pytest.raises(BadInput) as refusal:
        record(**fields)
    (found,) = refusal.value.problems
    assert found.field == field
    assert value in found.value
    assert remedy in found.remedy


NOT_A_RECORD = [
    ("nothing", b""),
    ("a text", b"hello"),
    ("a list", b"[1]"),
    ("a number", b"12"),
    ("null", b"null"),
    ("cut short", b'{"id": "orders"'),
    ("not UTF-8", b'{"id": "\xff"}'),
    ("utf-16", json.dumps(LEAST).encode("utf-16")),
    ("nested without end", b"[" * 100_000),
    ("nested objects without end", b'{"a":' * 50_000),
    ("a number without end", b'{"replicas": ' + b"9" * 10_000 + b"}"),
    ("half a character", b'{"id":"orders","status":"published","version":"1","name":"\\ud800"}'),
    ("a YAML file", b"id: orders\n"),
    ("a megabyte", json.dumps({**LEAST, "description": "x" * 2**20}).encode()),
]


@pytest.mark.parametrize("data", [c[1] for c in NOT_A_RECORD], ids=[c[0] for c in NOT_A_RECORD])
def test_what_is_no_record_is_refused_in_few_words(data: bytes) -> None:
    with pytest.raises(BadInput) as refusal:
        parse_record("orders", data)
    assert len(str(refusal.value)) < 1000


def test_a_large_record_is_refused_by_its_size() -> None:
    data = json.dumps({**LEAST, "description": "x" * 2**20}).encode()
    with pytest.raises(BadInput, match=f"at most {RECORD_BYTES_MAX} bytes"):
        parse_record("orders", data)


def test_all_that_is_missing_is_named_at_once() -> None:
    with pytest.raises(BadInput) as refusal:
        parse_record("orders", b"{}")
    assert [found.field for found in refusal.value.problems] == ["id", "status", "version"]


def test_captured_are_the_fields_that_say_so() -> None:
    described = {
        name for name, field in PipelineRecord.model_fields.items() if (field.description or "").endswith("Captured.")
    }
    assert described == set(CAPTURED)
    assert set(captured(record())) == set(CAPTURED)


def test_captured_ignores_how_a_value_was_written() -> None:
    assert captured(record(resources={"memory": "64MiB"}, replicas=2)) == captured(record(resources={"memory": 2**26}))
    assert captured(record(env={"A": "1"})) != captured(record(env={"A": "2"}))
