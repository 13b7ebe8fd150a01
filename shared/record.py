"""The pipeline record: what a user publishes, and the public contract of Shoal.

A record is one JSON object under the pipeline's id in the pipelines bucket. `parse_record` is the border: it returns a
valid record or raises BadInput that names every field that is wrong, its value, and what would be right. Defaults are
good; only `id`, `status` and `version` must be said.

Fields of `CAPTURED` are fixed when (id, version) is first admitted: a later edit under the same version changes nothing
and is reported. All others act at once.
"""

from __future__ import annotations

import difflib
import json
import re
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from shared.errors import BadInput, Problem, problem
from shared.ids import ID_RULE, VERSION_RULE, is_id, is_version
from shared.keys import RECORD_BYTES_MAX

REPLICAS_MAX = 1000  # of one pipeline; keeps one mistake from filling the cluster
MEMORY_DEFAULT_BYTES = 64 * 1024 * 1024  # what a small Bento needs (measured 36 to 68 MB); counted, not enforced

_MEMORY = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*([KMGT]i?)?B?", re.IGNORECASE)
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class PipelineStatus(StrEnum):
    """What the user wants of a pipeline."""

    DRAFT = "draft"
    PUBLISHED = "published"
    PAUSED = "paused"


def _identifier(value: str) -> str:
    if not is_id(value):
        raise ValueError(ID_RULE)
    return value


def _version(value: str) -> str:
    if not is_version(value):
        raise ValueError(VERSION_RULE)
    return value


def _memory(value: object) -> object:
    if not isinstance(value, str):
        return value
    found = _MEMORY.fullmatch(value.strip())
    if found is None:
        raise ValueError("use a number of bytes or a number with a unit, such as '256MiB' or '1.5GB'")
    return int(float(found[1]) * _UNITS[(found[2] or "").lower()])


def memory_bytes(text: str, field: str) -> int:
    """Bytes of a text such as `256MiB`; BadInput names `field` if it is none."""
    try:
        value = _memory(text)
    except ValueError as error:
        raise BadInput(problem(field, text, str(error))) from error
    assert isinstance(value, int), "a text becomes a number"
    return value


def _environment(value: dict[str, str]) -> dict[str, str]:
    for name, text in value.items():
        if not _ENV_NAME.fullmatch(name) or name.startswith("SHOAL_"):
            raise ValueError(f"'{name}' is no usable name: letters, digits and '_', not beginning with SHOAL_")
        if "\0" in text:
            raise ValueError(f"the value of {name} must not contain a NUL character")
    return value


def _volume(value: str) -> str:
    source, _, rest = value.partition(":")
    target, _, mode = rest.partition(":")
    plain = all(p.startswith("/") and ".." not in p.split("/") and p.isprintable() for p in (source, target))
    if not plain or mode not in ("", "ro", "rw"):
        raise ValueError("use '/path/on/host:/path/inside' or '/path/on/host:/path/inside:ro'")
    return value


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Placement(_Strict):
    """On which hosts the executions may run. Every host also has the label `host` with its name."""

    required: dict[str, str | list[str]] = Field(
        default_factory=dict, description="Host labels that must have this value, or one of these values."
    )
    preferred: dict[str, str | list[str]] = Field(
        default_factory=dict, description="Host labels that are better, as long as there is room."
    )
    spread: str = Field(default="host", description="Spread the replicas over the values of this host label.")


class Resources(_Strict):
    """What one execution needs. Counted against the host's capacity; what is said explicitly is also its limit."""

    cpu: float | None = Field(default=None, ge=0, le=1024, description="Cores, such as 0.5. Not said: none counted.")
    memory: Annotated[int | None, BeforeValidator(_memory)] = Field(
        default=None, ge=0, le=2**50, description="Bytes, or a text such as '256MiB'. Not said: 64 MiB counted."
    )


class Restart(_Strict):
    """How an execution that ends by itself is started again: after `delay_s`, doubled each time."""

    delay_s: float = Field(default=1.0, ge=0.1, le=3600, description="Seconds before the first restart.")
    delay_max_s: float = Field(default=60.0, ge=0.1, le=86400, description="The delay grows up to this, in seconds.")
    reset_after_s: float = Field(default=120.0, ge=1, description="After running so long, delays begin anew.")

    @model_validator(mode="after")
    def _delays_grow(self) -> Restart:
        if self.delay_s > self.delay_max_s:
            raise ValueError(f"delay_max_s ({self.delay_max_s:g}) must be at least delay_s ({self.delay_s:g})")
        return self


class PipelineRecord(_Strict):
    """A pipeline, as its user describes it."""

    id: Annotated[str, AfterValidator(_identifier)] = Field(description="The pipeline's id and its key in the bucket.")
    name: str = Field(default="", max_length=200, description="A name for people.")
    description: str = Field(default="", max_length=4000, description="A text for people.")
    status: PipelineStatus = Field(
        strict=False, description="`draft`: no trace of it; `published`: runs; `paused`: stopped, but kept."
    )
    version: Annotated[str, AfterValidator(_version)] = Field(
        description="Which configuration: object `<id>/<version>` in the configs bucket. Pinned when first admitted."
    )
    replicas: int = Field(default=1, ge=0, le=REPLICAS_MAX, description="How many executions run at once.")
    placement: Placement = Field(default_factory=Placement, description="On which hosts.")
    resources: Resources = Field(default_factory=Resources, description="What one execution needs. Captured.")
    overlap: Literal["auto", "forbid", "allow"] = Field(
        default="auto",
        description="Whether two copies of one slot may run at once. `auto`: derived from the inputs. Captured.",
    )
    on_partition: Literal["auto", "stop", "continue"] = Field(
        default="auto", description="What an execution does when its host loses the store. `auto`: exclusive ones stop."
    )
    env: Annotated[dict[str, str], AfterValidator(_environment)] = Field(
        default_factory=dict, description="Environment of the executions, for `${NAME}` in the configuration. Captured."
    )
    volumes: list[Annotated[str, AfterValidator(_volume)]] = Field(
        default_factory=list,
        max_length=32,
        description="Host paths to mount, `/source:/target[:ro]`; the agent must allow them. Captured.",
    )
    image: str = Field(default="", max_length=500, description="Another runner image (docker hosts only). Captured.")
    restart: Restart = Field(default_factory=Restart, description="How it is restarted when it ends. Captured.")
    kind: Literal["service"] = Field(default="service", description="Only `service` for now. Captured.")


CAPTURED = ("env", "volumes", "image", "resources", "restart", "overlap", "kind")

_LATER = {"update": "rolling update settings are not supported yet; leave the field out"}


def captured(record: PipelineRecord) -> dict[str, Any]:
    """The fields that admission fixes, as plain JSON values; equal values compare equal."""
    return record.model_dump(mode="json", include=set(CAPTURED))


def parse_record(key: str, data: bytes) -> PipelineRecord:
    """The record stored under `key`. BadInput names every field that is wrong."""
    if len(data) > RECORD_BYTES_MAX:
        remedy = f"a record has at most {RECORD_BYTES_MAX} bytes; configurations belong into the configs bucket"
        raise BadInput(problem("record", f"{len(data)} bytes", remedy))
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadInput(problem("record", _text(data), f"write one JSON object ({error})")) from error
    if not isinstance(fields, dict):
        raise BadInput(problem("record", fields, 'write one JSON object, such as {"id": ..., "status": ...}'))
    try:
        record = PipelineRecord.model_validate_json(data)
    except ValidationError as error:
        raise BadInput(*_problems(error)) from error
    if record.id != key:
        raise BadInput(problem("id", record.id, f"the id must equal the key it is stored under, '{key}'"))
    return record


def _problems(error: ValidationError) -> list[Problem]:
    # A value that may be of two kinds is wrong in two ways; the first one says enough.
    explained = [_explain(found) for found in error.errors(include_url=False)[:100]]
    return list({found.field: found for found in reversed(explained)}.values())[::-1][:10]


def _explain(found: Any) -> Problem:
    path = tuple(part for part in found["loc"] if part not in ("str", "list[str]"))
    field = ".".join(str(part) for part in path) or "record"
    value, message = found.get("input"), str(found["msg"])
    if found["type"] == "extra_forbidden":
        return problem(field, value, _LATER.get(field) or _unknown(path))
    if found["type"] == "missing":
        return Problem(field, "", "this field must be there")
    if field == "kind" and value == "job":
        return problem(field, value, "jobs are not supported yet; use 'service'")
    if found["type"] == "string_type" and isinstance(value, int | float) and not isinstance(value, bool):
        return problem(field, value, f'write it as a text: "{value}"')
    return problem(field, value, message.removeprefix("Value error, "))


def _unknown(path: tuple[Any, ...]) -> str:
    models: dict[str, type[BaseModel]] = {"placement": Placement, "resources": Resources, "restart": Restart}
    model = models.get(str(path[0]), PipelineRecord) if len(path) > 1 else PipelineRecord
    near = difflib.get_close_matches(str(path[-1]), model.model_fields, n=1, cutoff=0.5)
    known = ", ".join(model.model_fields)
    return f"there is no such field; did you mean '{near[0]}'?" if near else f"there is no such field; known: {known}"


def _text(data: bytes) -> str:
    return data[:80].decode("utf-8", "replace")
