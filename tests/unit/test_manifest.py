"""Manifests: one file with a Bento configuration and its record."""

from pathlib import Path

import pytest

from shared.configuration import derive, read_configuration
from shared.errors import BadInput
from shared.manifest import parse_manifest, read_manifests
from shared.states import Overlap

CONFIGURATION = b"# what it does\ninput:\n  generate: {}\n"
ROOT = Path(__file__).resolve().parents[2]


def test_the_configuration_is_what_stands_before_the_record() -> None:
    found = parse_manifest(CONFIGURATION + b"---\nid: orders\nversion: 1.10\nreplicas: 2\n", "a.yaml")
    assert found.configuration == CONFIGURATION
    assert found.fields == {"id": "orders", "version": "1.10", "replicas": 2, "status": "published"}
    assert found.record.replicas == 2


def test_an_opening_marker_belongs_to_the_configuration() -> None:
    data = b"%YAML 1.1\n# c\n---\n" + CONFIGURATION
    found = parse_manifest(data + b"--- # the record\nid: orders\n", "a.yaml")
    assert found.configuration == data
    assert found.record.id == "orders"


def test_windows_line_ends_and_a_byte_order_mark() -> None:
    data = b"\xef\xbb\xbf---\r\ninput: {generate: {}}\r\n"
    found = parse_manifest(data + b"---\r\nid: orders\r\n", "a.yaml")
    assert found.configuration == data
    assert found.record.id == "orders"


def test_dashes_inside_of_a_text_are_no_marker() -> None:
    data = b"input:\n  generate:\n    mapping: |\n      # ---\n      ----\n"
    assert parse_manifest(data, "a.yaml", default_id="a").configuration == data


def test_texts_are_taken_as_written() -> None:
    record = (
        b"id: 007\nversion: 2024-01-01\nenv: {PORT: 8080, ON: yes}\nplacement: {required: {rack: 1, zone: [2, b]}}\n"
    )
    found = parse_manifest(CONFIGURATION + b"---\n" + record, "a.yaml").record
    assert (found.id, found.version, found.env) == ("007", "2024-01-01", {"PORT": "8080", "ON": "yes"})
    assert found.placement.required == {"rack": "1", "zone": ["2", "b"]}


def test_a_plain_bento_file_is_a_manifest() -> None:
    found = parse_manifest(CONFIGURATION, "orders.yaml", default_id="orders")
    assert (found.record.id, found.record.status) == ("orders", "published")
    assert found.configuration == CONFIGURATION


def test_a_version_that_is_not_said_follows_the_content() -> None:
    def version(configuration: bytes, record: bytes) -> str:
        return parse_manifest(configuration + b"---\n" + record, "a.yaml", default_id="a").record.version

    first = version(CONFIGURATION, b"")
    assert len(first) == 12
    assert version(CONFIGURATION, b"replicas: 3\nid: b\n") == first
    assert version(CONFIGURATION + b"# edited\n", b"") != first
    assert version(CONFIGURATION, b"env: {A: 1}\n") != first


REFUSED = [
    ("broken configuration", b"input: [\n---\nid: a\n", "f.yaml line 2", "correct the YAML"),
    ("configuration that is none", b"hello\n---\nid: a\n", "f.yaml is 'a text'", "a Bento configuration is a mapping"),
    ("broken record", CONFIGURATION + b"---\nid: [a\n", "f.yaml line 6", "correct the YAML"),
    ("record that is none", CONFIGURATION + b"---\n- a\n", "f.yaml line 4", "a mapping such as"),
    (
        "wrong value",
        CONFIGURATION + b"---\nid: a\nreplicas: two\n",
        "f.yaml line 6: replicas is 'two'",
        "valid integer",
    ),
    (
        "wrong nested value",
        CONFIGURATION + b"---\nresources:\n  cpu: -1\n",
        "f.yaml line 6: resources.cpu is -1",
        "greater",
    ),
    ("unknown field", CONFIGURATION + b"---\nreplcas: 1\n", "f.yaml line 5: replcas", "did you mean 'replicas'?"),
    ("two records", CONFIGURATION + b"---\nid: a\n---\nid: b\n", "f.yaml line 6", "use more files"),
    ("record not UTF-8", CONFIGURATION + b"---\nid: \xff\n", "f.yaml", "UTF-8"),
]


@pytest.mark.parametrize(("data", "where", "remedy"), [c[1:] for c in REFUSED], ids=[c[0] for c in REFUSED])
def test_refused_with_file_line_and_remedy(data: bytes, where: str, remedy: str) -> None:
    with pytest.raises(BadInput) as refusal:
        parse_manifest(data, "f.yaml", default_id="f")
    assert where in str(refusal.value)
    assert remedy in str(refusal.value)


def test_standard_input_needs_an_id() -> None:
    with pytest.raises(BadInput, match="say the pipeline's id"):
        parse_manifest(CONFIGURATION, "-")


def test_a_directory_with_files_becomes_one_tar(tmp_path: Path) -> None:
    directory = tmp_path / "orders"
    (directory / "schemas").mkdir(parents=True)
    (directory / ".git").mkdir()
    (directory / ".git" / "config").write_text("secret")
    (directory / "schemas" / "order.json").write_text("{}")
    (directory / "pipeline.yaml").write_bytes(CONFIGURATION + b"---\nreplicas: 0\n")
    (found,) = read_manifests(directory)
    assert found.record.id == "orders"
    assert read_configuration(found.configuration).files == (
        ("pipeline.yaml", CONFIGURATION),
        ("schemas/order.json", b"{}"),
    )


def test_a_directory_with_pipeline_yaml_alone_stays_a_file(tmp_path: Path) -> None:
    (tmp_path / "pipeline.yaml").write_bytes(CONFIGURATION + b"---\nid: a\n")
    (found,) = read_manifests(tmp_path)
    assert found.configuration == CONFIGURATION


def test_errors_in_a_directory_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "pipeline.yaml").write_bytes(CONFIGURATION + b"---\nid: a\nreplicas: x\n")
    with pytest.raises(BadInput, match=r"pipeline\.yaml line 6: replicas"):
        read_manifests(tmp_path)


@pytest.mark.parametrize("there", [False, True])
def test_nothing_to_read(tmp_path: Path, there: bool) -> None:
    with pytest.raises(BadInput, match=r"readable|no YAML file"):
        read_manifests(tmp_path if there else tmp_path / "missing.yaml")


def test_the_examples() -> None:
    found = {manifest.record.id: manifest for manifest in read_manifests(ROOT / "examples")}
    meanings = {name: derive(read_configuration(manifest.configuration)).overlap for name, manifest in found.items()}
    assert meanings == {
        "audit": Overlap.SHAREABLE,
        "hello": Overlap.EXCLUSIVE,
        "orders": Overlap.SHAREABLE,
        "ticker": Overlap.EXCLUSIVE,
        "webhook": Overlap.EXCLUSIVE,
    }
    assert found["orders"].record.replicas == 2
    assert all((b"${NATS_URL" in m.configuration) == (name != "hello") for name, m in found.items())
