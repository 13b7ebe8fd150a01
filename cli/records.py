"""Changing records: every verb reads the record, changes it and writes it back by compare-and-set."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from cli.cluster import Cluster
from shared.errors import BadInput, Conflict, Refused, problem
from shared.ids import check_id
from shared.record import PipelineRecord, parse_record

Change = Callable[[dict[str, Any]], dict[str, Any]]

_TRIES = 5  # of a compare-and-set against somebody else's writes


def absent(pipeline: str) -> Refused:
    """The sentence for a record that does not exist."""
    return Refused(f"there is no pipeline '{pipeline}'. `shoal ls` shows all; `shoal apply -f FILE` makes one.")


async def read_record(cluster: Cluster, pipeline: str) -> tuple[dict[str, Any], int]:
    """The record's fields as they are stored, and its revision. Refused if there is none."""
    check_id(pipeline)
    entry = await cluster.read(cluster.keys.pipelines, pipeline)
    if entry.value is None:
        raise absent(pipeline)
    try:
        fields = json.loads(entry.value)
    except (ValueError, RecursionError) as error:
        raise Refused(f"the record of '{pipeline}' is not JSON ({error}); write it anew with `shoal apply`") from error
    if not isinstance(fields, dict):
        raise Refused(f"the record of '{pipeline}' is not a JSON object; write it anew with `shoal apply`")
    return fields, entry.revision


async def change_record(cluster: Cluster, pipeline: str, change: Change) -> tuple[PipelineRecord, int]:
    """Apply `change` to the record. Returns it and the revision under which it now stands.

    An unchanged record is not written. BadInput if the result would not validate; nothing is written then.
    """
    for _ in range(_TRIES):
        fields, revision = await read_record(cluster, pipeline)
        changed = change(dict(fields))
        record = validated(pipeline, changed)
        if changed == fields:
            return record, revision
        try:
            return record, await write_record(cluster, changed, revision)
        except Conflict:
            continue
    raise Refused(f"the record of '{pipeline}' is being changed by others all the time; try again")


async def write_record(cluster: Cluster, fields: dict[str, Any], expected: int) -> int:
    """Write a record by compare-and-set; its new revision."""
    data = json.dumps(fields, ensure_ascii=False).encode()
    return await cluster.store.write(cluster.keys.pipelines, str(fields["id"]), data, expected=expected)


def validated(pipeline: str, fields: dict[str, Any]) -> PipelineRecord:
    """The record that these fields make; BadInput if they do not."""
    try:
        data = json.dumps(fields, ensure_ascii=False).encode()
    except (UnicodeEncodeError, TypeError) as error:
        raise BadInput(problem("record", fields, f"cannot be written as JSON ({error})")) from error
    return parse_record(pipeline, data)
