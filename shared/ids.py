"""How things are called. The only module that knows the grammar of ids, versions and execution names.

Ids of pipelines and hosts: lower-case letters, digits, `-`, `_`; 1 to 63 long; first a letter or digit.
Versions: `[A-Za-z0-9][A-Za-z0-9._-]{0,62}`, no `..`, no final `.` (they are part of NATS subjects, where a dot
separates tokens; the grammar keeps `version.<id>.<v>` unambiguous because an id has no dot).
An execution is `<pipeline>-<slot>-<serial>`; the serial is the number of the plan that created it.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from shared.errors import BadInput, problem

_ID = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")

ID_RULE = "use 1 to 63 lower-case letters, digits, '-' or '_', beginning with a letter or digit"
VERSION_RULE = (
    "use 1 to 63 letters, digits, '.', '_' or '-', beginning with a letter or digit, without '..' or a final '.'"
)


def is_id(value: str) -> bool:
    """Whether `value` may be the id of a pipeline or a host."""
    return _ID.fullmatch(value) is not None


def is_version(value: str) -> bool:
    """Whether `value` may be a version label."""
    return _VERSION.fullmatch(value) is not None and ".." not in value and not value.endswith(".")


def check_id(value: str, field: str = "id") -> str:
    """`value` itself, or BadInput that names `field`."""
    if not is_id(value):
        raise BadInput(problem(field, value, ID_RULE))
    return value


def check_version(value: str, field: str = "version") -> str:
    """`value` itself, or BadInput that names `field`."""
    if not is_version(value):
        raise BadInput(problem(field, value, VERSION_RULE))
    return value


class ExecutionName(NamedTuple):
    """The parts of an execution id."""

    pipeline: str
    slot: int
    serial: int


def execution_id(pipeline: str, slot: int, serial: int) -> str:
    """The id of the execution that plan number `serial` created for a slot."""
    return f"{pipeline}-{slot}-{serial}"


def parse_execution(execution: str) -> ExecutionName:
    """The parts of an execution id; BadInput if it is none."""
    parts = execution.rsplit("-", 2)
    if len(parts) == 3 and is_id(parts[0]) and _number(parts[1]) and _number(parts[2]):
        return ExecutionName(parts[0], int(parts[1]), int(parts[2]))
    raise BadInput(problem("execution", execution, "an execution is called <pipeline>-<slot>-<serial>"))


def _number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 18
