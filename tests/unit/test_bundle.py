"""Bundles: the same bytes everywhere, and nothing else is taken for one."""

import hashlib
import io
import tarfile

import pytest

from scheduler.core.candidates import Admitted, admit, remade
from shared.archive import write_archive
from shared.bundle import Runtime, build_bundle, read_bundle, runtime_of
from shared.configuration import derive, read_configuration
from shared.documents import encode
from shared.errors import BadInput
from shared.record import parse_record

RECORD = parse_record(
    "orders",
    b'{"id":"orders","status":"published","version":"1","env":{"B":"2","A":"1"},"volumes":["/a:/b:ro"],'
    b'"resources":{"cpu":0.5,"memory":"64MiB"},"restart":{"delay_s":2}}',
)
LONG = "schemas/" + "x" * 120 + "/order.json"
CONFIGURATION = read_configuration(
    write_archive([("pipeline.yaml", b"input: {generate: {}}\n"), ("b", b"2" * 600), (LONG, b"{}")])
)


def runtime() -> Runtime:
    return runtime_of(RECORD, CONFIGURATION, derive(CONFIGURATION))


def test_runtime_has_what_an_executor_needs() -> None:
    found = runtime()
    assert list(found.env.items()) == [("A", "1"), ("B", "2")]
    assert (found.cpu, found.memory_bytes, found.volumes) == (0.5, 64 * 2**20, ("/a:/b:ro",))
    assert (found.restart_delay_s, found.restart_delay_max_s, found.restart_reset_after_s) == (2.0, 60.0, 120.0)
    assert (found.stop_grace_s, found.http, found.config_digest) == (22.0, "auto", CONFIGURATION.digest)


def test_round_trip() -> None:
    bundle = build_bundle(runtime(), CONFIGURATION)
    found, files = read_bundle(bundle.data, bundle.digest)
    assert found == runtime()
    assert files == CONFIGURATION.files


def test_the_bytes_are_fixed() -> None:
    """With other bytes for the same version, bundles of existing pins could not be restored."""
    assert (
        build_bundle(runtime(), CONFIGURATION).digest
        == "8634a7a8802da060805da23d5573a5631a4a17b6f8d9d3c9f04bea225bfaba5b"
    )


def test_equal_input_gives_equal_bytes_whatever_the_order_of_fields() -> None:
    other = parse_record(
        "orders",
        b'{"restart":{"delay_s":2},"env":{"A":"1","B":"2"},"volumes":["/a:/b:ro"],"version":"1","status":"paused",'
        b'"resources":{"memory":67108864,"cpu":0.5},"id":"orders","replicas":7}',
    )
    one = build_bundle(runtime(), CONFIGURATION)
    two = build_bundle(runtime_of(other, CONFIGURATION, derive(CONFIGURATION)), CONFIGURATION)
    assert one == two


@pytest.mark.parametrize("overlap", ["auto", "forbid", "allow"])
def test_a_lost_pin_is_made_again_of_its_bundle_alone(overlap: str) -> None:
    """Whatever the record says by now: it may want another version, and what runs must not become shareable by it."""
    record = RECORD.model_copy(update={"overlap": overlap})
    admitted = admit(record, CONFIGURATION, derive(CONFIGURATION), ())
    assert isinstance(admitted, Admitted)
    assert remade("orders", "1", admitted.bundle.digest, admitted.bundle.data) == admitted.pin


def test_it_is_a_plain_tar_for_everybody_else() -> None:
    data = build_bundle(runtime(), CONFIGURATION).data
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
        members = archive.getmembers()
        assert [member.name for member in members] == ["runtime.json", "pipeline.yaml", "b", LONG]
        assert {(m.mode, m.mtime, m.uid, m.gid, m.uname, m.gname, m.type) for m in members} == {
            (0o644, 0, 0, 0, "", "", tarfile.REGTYPE)
        }
        content = archive.extractfile(LONG)
        assert content is not None
        assert content.read() == b"{}"
    assert len(data) % 10240 == 0


def name_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


WRONG = [
    ("not an archive", b"hello"),
    ("nothing", b""),
    ("without a runtime", write_archive([("pipeline.yaml", b"{}")])),
    ("in another order", write_archive([("pipeline.yaml", b"{}"), ("runtime.json", encode(runtime()))])),
    ("with a runtime that is none", write_archive([("runtime.json", b"{}"), ("pipeline.yaml", b"{}")])),
    ("cut short", build_bundle(runtime(), CONFIGURATION).data[:1000]),
]


@pytest.mark.parametrize("data", [c[1] for c in WRONG], ids=[c[0] for c in WRONG])
def test_what_is_no_bundle_is_refused(data: bytes) -> None:
    with pytest.raises(BadInput):
        read_bundle(data, name_of(data))


def test_other_bytes_under_its_name_are_refused() -> None:
    bundle = build_bundle(runtime(), CONFIGURATION)
    with pytest.raises(BadInput, match="sha256"):
        read_bundle(bundle.data[:-1] + b"x", bundle.digest)
