"""Bento configurations: read from the object that a user stored, and what Shoal derives from them.

The object is one YAML file, or a tar (also gzip'd) with `pipeline.yaml` and the files that it refers to by relative
path. The user's bytes are never changed. They are parsed only to derive from them, as Bento parses them: environment
references are replaced in the text first, and only the first YAML document counts.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from shared.archive import is_archive, read_archive
from shared.components import UNSET, Meaning, meaning
from shared.errors import BadInput, Problem, problem
from shared.interpolation import Reference, interpolate, references
from shared.keys import CONFIG_BYTES_MAX
from shared.states import Overlap
from shared.yaml_tree import plain, read_documents

PIPELINE = "pipeline.yaml"
RUNTIME = "runtime.json"  # stands beside pipeline.yaml in a bundle, so no file of a user may have this name
HTTP_AUTO = "auto"

_HTTP_DEFAULT = "0.0.0.0:4195"  # Bento's
_SHUTDOWN_TIMEOUT = "20s"  # Bento's
_STOP_MARGIN_S = 2.0  # for what comes after Bento's own time-out: it gives itself one more second, then it exits
STOP_GRACE_MAX_S = 3600.0  # a host that is drained waits for it
_KINDS_MAX, _NAME_MAX = 100, 64  # of input kinds that are shown: what a stranger wrote stands in pins and statuses
_ADDRESS_MAX = 300
_INPUTS_MAX = 10_000  # looked at in one configuration, with all copies that aliases make

_DURATION = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}

_RESERVED = ("type", "plugin", "label", "processors")  # fields of every input; the remaining one names its kind


@dataclass(frozen=True, slots=True)
class Configuration:
    """What a user stored. `files` has pipeline.yaml first, then the others by name; `document` is pipeline.yaml as read
    with no environment; `variables` the names it refers to; `digest` the sha256 of the object's bytes in hex."""

    files: tuple[tuple[str, bytes], ...]
    document: Mapping[str, Any]
    variables: frozenset[str]
    digest: str

    @property
    def text(self) -> str:
        """pipeline.yaml as text."""
        return self.files[0][1].decode("utf-8-sig")

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(len(data) for _, data in self.files)


@dataclass(frozen=True, slots=True)
class Derived:
    """What Shoal reads out of a configuration.

    `http` is "auto" where Bento's own HTTP server may listen wherever the runner likes, else the address that the
    configuration states (it may hold `${...}`, which Bento replaces on the host).
    """

    inputs: tuple[str, ...]
    overlap: Overlap
    overlap_reason: str
    stop_grace_s: float
    http: str


def read_configuration(data: bytes) -> Configuration:
    """The configuration in an object. BadInput names what is wrong; never another exception, whatever the bytes."""
    if len(data) > CONFIG_BYTES_MAX:
        raise BadInput(too_large(len(data)))
    if is_archive(data):
        files = read_archive(data, bytes_max=CONFIG_BYTES_MAX)
        _check_names(files)
    else:
        files = {PIPELINE: data}
    text = _decode(files[PIPELINE])
    ordered = ((PIPELINE, files.pop(PIPELINE)), *sorted(files.items()))
    variables = frozenset(reference.name for reference in references(text))
    return Configuration(ordered, _parse(text, {}), variables, hashlib.sha256(data).hexdigest())


def derive(configuration: Configuration, env: Mapping[str, str] | None = None) -> Derived:
    """What the configuration means with the record's `env`. A variable that neither `env` nor a default gives a value
    is taken to have one on the host. BadInput if a field that Shoal needs cannot be read."""
    known = {name: value for name, value in (env or {}).items() if name in configuration.variables}
    document = _parse(configuration.text, known) if known else configuration.document
    found = list(_inputs(document))
    judged = [(name, meaning(name, fields)) for name, fields in found]
    overlap = _combine(judged)
    return Derived(
        inputs=tuple(sorted({name[:_NAME_MAX] for name, _ in found})[:_KINDS_MAX]),
        overlap=overlap.overlap,
        overlap_reason=overlap.reason,
        stop_grace_s=_stop_grace(document),
        http=_http(configuration, document),
    )


def too_large(size: int) -> Problem:
    """What is said of an object that is too large, also without reading it."""
    remedy = f"an object in the configs bucket has at most {CONFIG_BYTES_MAX} bytes; keep data out of configurations"
    return problem("configuration", f"{size} bytes", remedy)


def seconds(text: str) -> float | None:
    """A Go duration such as `1m30s` in seconds; None if it is none."""
    sign, digits = (-1.0, text[1:]) if text.startswith("-") else (1.0, text.removeprefix("+"))
    if digits == "0":
        return 0.0
    total, position = 0.0, 0
    while position < len(digits):
        part = _DURATION.match(digits, position)
        if part is None or len(part[1]) > 18:
            return None
        total += float(part[1]) * _SECONDS[part[2]]
        position = part.end()
    return sign * total if digits else None


# --- reading


def _check_names(files: Mapping[str, bytes]) -> None:
    if PIPELINE not in files:
        shown = ", ".join(sorted(files)[:5]) or "empty"
        remedy = f"the archive must have {PIPELINE} at its top: `tar -C DIR -cf orders.tar .`"
        raise BadInput(problem("tar", shown, remedy))
    if RUNTIME in files:
        raise BadInput(problem("tar", RUNTIME, "this name is Shoal's own; use another"))


def _decode(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        shown = data[max(0, error.start - 10) : error.start + 10].decode("utf-8", "replace")
        line = data.count(b"\n", 0, error.start) + 1
        remedy = "store the YAML file as UTF-8, or a tar with pipeline.yaml"
        raise BadInput(problem(f"{PIPELINE} line {line}", shown, remedy)) from error


def _parse(text: str, env: Mapping[str, str]) -> Mapping[str, Any]:
    """pipeline.yaml as values, references replaced as Bento would on a host that sets all of them."""
    documents = read_documents(interpolate(text, lambda found: resolve(found, env)), PIPELINE, documents_max=1)
    document = plain(documents[0]) if documents else None
    if not isinstance(document, dict):
        kind = {list: "a list", str: "a text", type(None): "empty"}.get(type(document), "a number")
        raise BadInput(problem(PIPELINE, kind, "a Bento configuration is a mapping, such as 'input: {...}'"))
    return document


def resolve(reference: Reference, env: Mapping[str, str]) -> str:
    """The value of a reference: from `env`, else its default, else a word that stands for a value set on the host."""
    value = env.get(reference.name)
    if reference.default is None:
        return f"{UNSET}{reference.name}" if value is None else value
    return value or reference.default


# --- inputs


def _inputs(document: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every input at a leaf, with its fields. No input at all is Bento's `stdin`."""
    resources = {
        str(item["label"]): item
        for item in _list(document.get("input_resources"))
        if isinstance(item, dict) and "label" in item
    }
    stack: list[tuple[Any, frozenset[str]]] = [(document.get("input"), frozenset())]
    for _ in range(_INPUTS_MAX):
        if not stack:
            return
        node, within = stack.pop()
        if node is None:
            yield "stdin", {}
            continue
        for name, fields in _kinds(node):
            if name == "resource":
                label = str(fields)
                if label in within or label not in resources:
                    yield f"resource {label}", {}  # unknown, so exclusive; Bento's lint says what is wrong
                else:
                    stack.append((resources[label], within | {label}))
                continue
            children = _children(name, fields if isinstance(fields, dict) else {})
            if children is None:
                yield name, fields if isinstance(fields, dict) else {}
            else:
                stack.extend((child, within) for child in reversed(children))
    raise BadInput(problem("input", f"more than {_INPUTS_MAX} inputs", "use fewer inputs in one pipeline"))


def _kinds(node: Any) -> list[tuple[str, Any]]:
    """(kind, fields) of an input. A node that names several kinds, which Bento refuses, is all of them."""
    if not isinstance(node, dict):
        return [("unreadable", {})]
    if isinstance(node.get("type"), str):
        kind = node["type"]
        return [(kind, node.get(kind) if node.get(kind) is not None else node.get("plugin"))]
    return [(name, fields) for name, fields in node.items() if name not in _RESERVED] or [("unreadable", {})]


def _children(name: str, fields: Mapping[str, Any]) -> list[Any] | None:
    """The inputs that an input wraps; None if it is a leaf. `dynamic` is one too: others may be added while it runs."""
    if name in ("broker", "sequence"):
        return _list(fields.get("inputs"))
    if name == "batched":
        return [fields.get("child")]
    if name == "read_until":
        return [fields.get("input")]
    if name == "azure_blob_storage" and fields.get("targets_input") is not None:
        return [fields["targets_input"]]
    if name == "dynamic":
        children = fields.get("inputs")
        return [{"dynamic_api": {}}, *(children.values() if isinstance(children, dict) else [])]
    return None


def _combine(judged: list[tuple[str, Meaning]]) -> Meaning:
    """Shareable if every input is; else exclusive, with the reason of the input that makes it so."""
    if not judged:
        return Meaning(Overlap.EXCLUSIVE, "the configuration has no input that Shoal can read")
    for _, found in judged:
        if found.overlap is Overlap.EXCLUSIVE:
            return found
    reasons = list(dict.fromkeys(found.reason for _, found in judged))
    return Meaning(Overlap.SHAREABLE, "; ".join(reasons[:3]))


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


# --- stopping and HTTP


def _stop_grace(document: Mapping[str, Any]) -> float:
    delay = _duration(document, "shutdown_delay", "0s")
    timeout = _duration(document, "shutdown_timeout", _SHUTDOWN_TIMEOUT)
    grace = delay + timeout + _STOP_MARGIN_S
    if grace > STOP_GRACE_MAX_S:
        remedy = f"together with shutdown_delay and a margin it must not exceed {STOP_GRACE_MAX_S:g} s"
        raise BadInput(problem("shutdown_timeout", document.get("shutdown_timeout"), remedy))
    return grace


def _duration(document: Mapping[str, Any], name: str, default: str) -> float:
    value = document.get(name)
    if value is None:
        value = default
    found = seconds(str(value)) if value != "" else 0.0
    if found is None:
        remedy = (
            "use a duration such as '20s' or '1m30s'; a variable in it needs a default or a value in the record's env"
        )
        raise BadInput(problem(name, str(value), remedy))
    return max(0.0, found)


def _http(configuration: Configuration, document: Mapping[str, Any]) -> str:
    http = document.get("http")
    stated = http.get("address") if isinstance(http, dict) else None
    if stated in (None, ""):
        # An http_server without an address of its own listens here: its clients know Bento's default port only.
        return _HTTP_DEFAULT if _serves(document) else HTTP_AUTO
    if str(stated).rpartition(":")[2] == "4195" and not _serves(document):
        return HTTP_AUTO
    address = _as_written(configuration, str(stated))
    if len(address) > _ADDRESS_MAX:
        raise BadInput(problem("http.address", address, "use 'host:port', such as '0.0.0.0:8080'"))
    return address


def _as_written(configuration: Configuration, resolved: str) -> str:
    """http.address with its references intact: only the host knows all values."""
    text = configuration.text
    marks: dict[str, str] = {}

    def mark(reference: Reference) -> str:
        name = f"{UNSET}{len(marks)}_"
        marks[name] = text[reference.start : reference.end]
        return name

    try:
        documents = read_documents(interpolate(text, mark), PIPELINE, documents_max=1)
    except BadInput:
        return resolved  # a default holds a piece of YAML without which the rest is none
    document = plain(documents[0]) if documents else None
    http = document.get("http") if isinstance(document, dict) else None
    address = str(http.get("address")) if isinstance(http, dict) else resolved
    for name, reference in marks.items():
        address = address.replace(name, reference)
    return address


def _serves(document: Mapping[str, Any]) -> bool:
    """Whether an http_server or dynamic component of this configuration listens on Bento's own HTTP server."""
    seen: set[int] = set()
    stack: list[Any] = [document]
    while stack:
        node = stack.pop()
        if not isinstance(node, dict | list) or id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, dict):
            server = node.get("http_server")
            if isinstance(server, dict) and not server.get("address"):
                return True
            if "dynamic" in node:
                return True
            stack.extend(node.values())
        else:
            stack.extend(node)
    return False
