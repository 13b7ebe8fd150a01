"""Manifests: the files that `shoal apply` takes. A record and its Bento configuration in one place.

    input:                    a plain Bento configuration,
      generate: {...}         which Bento runs and lints as it stands:
    output: ...               it reads the first document of a file only

    ---
    id: orders                the pipeline record
    replicas: 2

The configuration comes first because that is the document Bento reads, and because then every line number that Bento or
Shoal reports is the line in this file. What is stored as the configuration is everything before the second document,
byte for byte, so that an edit of the record does not change it.

Everything in the record has a default: `id` is the file's name, `status` is `published`, and `version` is made from the
configuration and the captured fields of the record, so an edited file is a new version. A plain Bento file is therefore
a manifest as well.

A directory with `pipeline.yaml` is one manifest too: pipeline.yaml has this form, and the other files go along.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.archive import FILES_MAX, write_archive
from shared.configuration import PIPELINE, read_configuration, too_large
from shared.errors import BadInput, Problem, problem
from shared.ids import is_id
from shared.keys import CONFIG_BYTES_MAX
from shared.record import PipelineRecord, captured, parse_record
from shared.yaml_tree import Node, Scalar, Table, plain, read_documents
from shared.yaml_tree import Sequence as List

# A line that begins with three dashes begins a document, wherever it stands: YAML has no other reading of it.
_MARKER = re.compile(rb"^---(?=[ \t\r\n]|\Z)", re.MULTILINE)
_NOTHING = re.compile(rb"\s*(?:[#%][^\n]*(?:\n\s*|\Z))*")

# Fields whose value is the text that was written: `version: 1.10` is the version "1.10".
_TEXTS = ("id", "name", "description", "version", "image")


@dataclass(frozen=True, slots=True)
class Manifest:
    """One pipeline as its file says. `fields` is the record as JSON (what the file says, with id, status and version),
    `record` the same validated, `configuration` the object to store as `<id>/<version>`: YAML, or a tar."""

    name: str
    fields: Mapping[str, Any]
    record: PipelineRecord
    configuration: bytes


def read_manifests(path: Path) -> tuple[Manifest, ...]:
    """The manifests at a path: a file, a directory with pipeline.yaml, or a directory of such files and directories.
    BadInput names file, line and what would be right."""
    try:
        return tuple(_read(path))
    except OSError as error:
        raise BadInput(
            problem(str(path), error.strerror or "unreadable", "name a readable file or directory")
        ) from error


def parse_manifest(
    data: bytes, name: str, files: Sequence[tuple[str, bytes]] = (), *, default_id: str = ""
) -> Manifest:
    """The manifest in `data`. `name` stands in errors; `files` are further files of the configuration; `default_id` is
    the id where the record says none. BadInput names file, line and what would be right."""
    if len(data) > CONFIG_BYTES_MAX:
        raise BadInput(too_large(len(data)))
    yaml, document = _split(data, name)
    configuration = write_archive([(PIPELINE, yaml), *files]) if files else yaml
    try:
        read_configuration(configuration)
    except BadInput as error:
        raise BadInput(*(_renamed(found, name) for found in error.problems)) from error
    fields: dict[str, Any] = {field: _value(field, node) for field, node in document.items.items()}
    fields.setdefault("status", "published")
    if "id" not in fields:
        if not is_id(default_id):
            raise BadInput(Problem(f"{name}: id", "", "say the pipeline's id in a second document, after a line '---'"))
        fields["id"] = default_id
    stated = "version" in fields
    try:
        record = _record({"version": "unstated", **fields})
        if not stated:
            fields["version"] = _version(configuration, record)
            record = _record(fields)
    except BadInput as error:
        raise BadInput(*(_placed(found, name, document) for found in error.problems)) from error
    return Manifest(name, fields, record, configuration)


def _read(path: Path) -> Iterator[Manifest]:
    if not path.is_dir():
        yield _file(path)
    elif (path / PIPELINE).is_file():
        yield _directory(path)
    else:
        found = [entry for entry in sorted(path.iterdir()) if _is_manifest(entry)]
        if not found:
            raise BadInput(Problem(str(path), "", f"there is no YAML file in it, and no directory with {PIPELINE}"))
        for entry in found:
            yield _directory(entry) if entry.is_dir() else _file(entry)


def _is_manifest(entry: Path) -> bool:
    if entry.name.startswith("."):
        return False
    return (entry / PIPELINE).is_file() if entry.is_dir() else entry.suffix in (".yaml", ".yml")


def _file(path: Path) -> Manifest:
    return parse_manifest(_bytes(path), str(path), default_id=path.stem)


def _directory(path: Path) -> Manifest:
    """A directory as one manifest; hidden files stay where they are."""
    files: list[tuple[str, bytes]] = []
    total = 0
    for entry in sorted(path.rglob("*")):
        relative = entry.relative_to(path)
        if not entry.is_file() or str(relative) == PIPELINE or any(part.startswith(".") for part in relative.parts):
            continue
        files.append((relative.as_posix(), _bytes(entry)))
        total += len(files[-1][1])
        if len(files) >= FILES_MAX or total > CONFIG_BYTES_MAX:
            remedy = f"a configuration has at most {FILES_MAX} files and {CONFIG_BYTES_MAX} bytes"
            raise BadInput(problem(str(path), f"{len(files)} files, {total} bytes and more", remedy))
    main = path / PIPELINE
    return parse_manifest(_bytes(main), str(main), files, default_id=path.resolve().name)


def _bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(CONFIG_BYTES_MAX + 1)
    if len(data) > CONFIG_BYTES_MAX:
        raise BadInput(Problem(str(path), "", str(too_large(path.stat().st_size))))
    return data


def _split(data: bytes, name: str) -> tuple[bytes, Table]:
    """(configuration, record document)."""
    starts = [found.start() for found in _MARKER.finditer(data.removeprefix(b"\xef\xbb\xbf"))]
    offset = len(data) - len(data.removeprefix(b"\xef\xbb\xbf"))
    starts = [start + offset for start in starts]
    if starts and _NOTHING.fullmatch(data, offset, starts[0]):
        starts = starts[1:]  # it opens the first document
    if len(starts) > 1:
        line = data.count(b"\n", 0, starts[1]) + 1
        raise BadInput(
            problem(f"{name} line {line}", "---", "a file has one configuration and one record; use more files")
        )
    if not starts:
        return data, Table(1)
    try:
        text = data[starts[0] :].decode()
    except UnicodeDecodeError as error:
        raise BadInput(problem(name, "not UTF-8", "store the file as UTF-8")) from error
    line = data.count(b"\n", 0, starts[0])
    (document,) = read_documents("\n" * line + text, name, documents_max=1)
    if isinstance(document, Scalar) and document.plain and not document.text:
        return data[: starts[0]], Table(line + 1)
    if not isinstance(document, Table):
        remedy = "the second document is the pipeline record, a mapping such as 'replicas: 2'"
        raise BadInput(Problem(f"{name} line {line + 1}", "", remedy))
    return data[: starts[0]], document


def _value(field: str, node: Node) -> Any:
    """A field of the record as JSON; texts are taken as they were written."""
    if field in _TEXTS and isinstance(node, Scalar):
        return node.text
    if field == "env" and isinstance(node, Table):
        return {key: value.text if isinstance(value, Scalar) else plain(value) for key, value in node.items.items()}
    if field == "placement" and isinstance(node, Table):
        return {key: _labels(value) for key, value in node.items.items()}
    return plain(node)


def _labels(node: Node) -> Any:
    if isinstance(node, Table):
        return {key: _labels(value) for key, value in node.items.items()}
    if isinstance(node, List):
        return [_labels(item) for item in node.items]
    return node.text


def _record(fields: Mapping[str, Any]) -> PipelineRecord:
    return parse_record(str(fields["id"]), json.dumps(fields, ensure_ascii=False).encode(errors="replace"))


def _version(configuration: bytes, record: PipelineRecord) -> str:
    """A version for what a version fixes: the configuration and the captured fields."""
    fixed = json.dumps(captured(record), sort_keys=True).encode()
    return hashlib.sha256(hashlib.sha256(configuration).digest() + fixed).hexdigest()[:12]


def _renamed(found: Problem, name: str) -> Problem:
    place = found.field.removeprefix(PIPELINE)
    return Problem(f"{name}{place}" if place != found.field else f"{name}: {found.field}", found.value, found.remedy)


def _placed(found: Problem, name: str, document: Table) -> Problem:
    """The problem with the line of its field in the file."""
    line, node = document.line, document
    for part in found.field.split("."):
        line = node.lines.get(part, line)
        below = node.items.get(part)
        if not isinstance(below, Table):
            break
        node = below
    return Problem(f"{name} line {line}: {found.field}", found.value, found.remedy)
