"""Whatever bytes a stranger stores: a value or BadInput, never another exception."""

import gzip
import io
import json
import re
import tarfile
import time

from hypothesis import example, given, settings
from hypothesis import strategies as st

from shared.archive import fits, read_archive, write_archive
from shared.bundle import read_bundle
from shared.configuration import derive, read_configuration
from shared.errors import BadInput
from shared.interpolation import disarm, interpolate, references
from shared.manifest import parse_manifest
from shared.record import parse_record

# Text that looks like YAML and interpolation often enough to get past the first line of defence.
WORDS = """input: ,output: ,nats: ,broker: ,inputs: ,resource: ,input_resources: ,label: a,&a ,*a,<<: ,${A},${A:,${,#,
!!str ,!<x> ,null,true,12,1e5,.5,? ,> ,a,shutdown_timeout: ,http: ,address: ,dynamic: ,batched: ,child: ,5s,4195"""
PIECES = st.sampled_from(
    [
        *WORDS.replace("\n", "").split(","),
        *"{}[]',:\"\t\0\x85\ufeffé",
        ", ",
        "- ",
        "\n",
        "  ",
        "\n  ",
        "---\n",
        "...\n",
        "\\x41",
    ]
)
YAMLISH = st.lists(PIECES, max_size=40).map("".join)


def in_few_words(error: BadInput) -> None:
    assert all(len(str(found)) < 1000 for found in error.problems)


def accepts(data: bytes) -> None:
    try:
        configuration = read_configuration(data)
    except BadInput as error:
        in_few_words(error)
        return
    assert configuration.files[0][0] == "pipeline.yaml"
    try:
        found = derive(configuration, {"A": "[x", "B": "y"})
    except BadInput:
        return
    assert found.stop_grace_s >= 2.0
    assert found.http


@given(st.binary(max_size=2000))
@example(b"\x1f\x8b\x08\x00")
@example(b"input: !!binary x")
@example(b"input: &a {<<: *a}")
@example(b"? {a: b}\n: c")
def test_any_bytes(data: bytes) -> None:
    accepts(data)


@given(YAMLISH)
@example("http: {address: ${A:'x', b: {}}}")
@example("${A:---}\ninput: {}")
@example("#${A:\n}\n")
@settings(max_examples=400)
def test_any_yaml(text: str) -> None:
    accepts(text.encode("utf-8", "replace"))


MEMBERS = st.dictionaries(
    st.sampled_from(
        ["pipeline.yaml", "./pipeline.yaml", "a", "a/b", "../x", "/x", "x" * 120, "d/" + "y" * 150, "ä", "."]
    ),
    st.binary(max_size=1200),
    max_size=5,
)


@given(
    MEMBERS, st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]), st.booleans(), st.data()
)
@settings(max_examples=200)
def test_any_tar_with_any_damage(members: dict[str, bytes], form: int, compressed: bool, draw: st.DataObject) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            try:
                archive.addfile(info, io.BytesIO(content))
            except ValueError:
                continue  # ustar cannot hold the name
    data = bytearray(gzip.compress(buffer.getvalue()) if compressed else buffer.getvalue())
    for _ in range(draw.draw(st.integers(0, 4))):
        position = draw.draw(st.integers(0, len(data) - 1))
        data[position] = draw.draw(st.integers(0, 255))
    accepts(bytes(data[: draw.draw(st.integers(0, len(data)))] if draw.draw(st.booleans()) else data))


NAME = st.text(st.characters(codec="utf-8", exclude_characters="/\\"), min_size=1, max_size=60).filter(
    lambda text: text.isprintable() and text not in (".", "..")
)
PATHS = st.lists(NAME, min_size=1, max_size=4).map("/".join).filter(fits)


@given(st.dictionaries(PATHS, st.binary(max_size=1500), max_size=8))
def test_what_is_written_is_read(files: dict[str, bytes]) -> None:
    names = set(files)
    files = {name: data for name, data in files.items() if not any(other.startswith(f"{name}/") for other in names)}
    data = write_archive(files.items())
    assert read_archive(data, bytes_max=100_000) == files
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
        assert archive.getnames() == list(files)


@given(st.binary(max_size=1500), st.text(max_size=70))
def test_any_bundle(data: bytes, digest: str) -> None:
    try:
        read_bundle(data, digest)
    except BadInput:
        return
    raise AssertionError("no random bytes are a bundle")


@given(st.one_of(st.binary(max_size=600), YAMLISH.map(lambda text: text.encode("utf-8", "replace"))), st.booleans())
@settings(max_examples=300)
def test_any_manifest(data: bytes, named: bool) -> None:
    try:
        found = parse_manifest(data, "f.yaml", default_id="f" if named else "")
    except BadInput:
        return
    assert data.startswith(found.configuration)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=5), below, max_size=3),
    max_leaves=6,
)
FIELDS = st.sampled_from(
    ["id", "name", "status", "version", "replicas", "placement", "resources", "env", "volumes", "restart", "kind", "x"]
)


@given(st.dictionaries(FIELDS, JSON | st.sampled_from(["orders", "published", "1"]), max_size=8), st.booleans())
@settings(max_examples=300)
def test_any_record(fields: dict[str, object], nested: bool) -> None:
    base: dict[str, object] = {"id": "orders", "status": "published", "version": "1"}
    if nested:
        fields = {**base, "resources": fields, "restart": fields, "placement": fields}
    try:
        parse_record("orders", json.dumps({**base, **fields}).encode())
    except BadInput as error:
        in_few_words(error)


# --- Bento's interpolation

BENTO = re.compile(r"\$\{([0-9A-Za-z_.]+)(:((\$\{[^}]+\})|[^}])*)?\}")
SMALL = st.lists(st.sampled_from(["${", "}", ":", "A", "b.c", " ", "$", "{", "\n", "${A}", "${B:x}"]), max_size=14).map(
    "".join
)


@given(SMALL)
@example("${A:${B}}")
@example("${A:${B} c ${D} e")
@example("${A:${}}")
@settings(max_examples=600)
def test_references_are_those_of_bentos_expression(text: str) -> None:
    expected = [(found.start(), found.end(), found[1]) for found in BENTO.finditer(text)]
    assert [(found.start, found.end, found.name) for found in references(text)] == expected


@given(SMALL)
def test_what_is_disarmed_is_no_reference(text: str) -> None:
    assert not list(references(disarm(text)))


def test_hostile_references_take_linear_time() -> None:
    for text in ("${A:" * 500_000, "${A:" * 500_000 + "}", "${A:${" * 300_000, "${A" * 600_000, "${A:x}" * 300_000):
        begun = time.monotonic()
        interpolate(text, lambda found: found.name)
        assert time.monotonic() - begun < 5.0
