"""What admission says about a version that is wanted and not pinned yet: a closed union.

    Ready        everything is in place; writing the pin makes the version this digest for ever
    Rejected     the configuration must be changed by whoever wrote it
    Unavailable  nothing is known yet: the object is not there, or the store or Bento's lint did not answer

A version that is wanted and has no candidate is being looked at; the admission wakes the planner when that ends.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from shared.archive import write_archive
from shared.bundle import Bundle, build_bundle, read_bundle, runtime_of
from shared.configuration import RUNTIME, Configuration, Derived, derive, read_configuration
from shared.documents import Pin
from shared.errors import BadInput, problem
from shared.record import MEMORY_DEFAULT_BYTES, PipelineRecord, captured
from shared.states import Overlap

# How Bento's lint says that it does not have a component.
UNKNOWN_COMPONENT = re.compile(r"unable to infer [a-z_ ]{1,30} type from candidates| type '[^']*' was not recognised")

_PROBLEMS_MAX = 10  # shown of one configuration; who has corrected ten sees the next


@dataclass(frozen=True, slots=True)
class Ready:
    """The bundle lies in the bundles bucket. `pin` is complete but for `store_id`, `term` and `plan` ("", 0, 0), which
    the commit that writes it fills in; `pin.captured` is of the record that admission saw."""

    pin: Pin


@dataclass(frozen=True, slots=True)
class Rejected:
    """What is wrong, each sentence with field, value and remedy. `config_digest` names the object that was read ("" if
    it could not be read as a whole): another object under the same name is looked at anew."""

    problems: tuple[str, ...]
    config_digest: str = ""


@dataclass(frozen=True, slots=True)
class Unavailable:
    """No verdict yet, and why. `missing`: the object is not in the bucket, so its user has to act; its arrival wakes
    the plan. Otherwise it is tried again by itself."""

    reason: str
    missing: bool = False


Candidate = Ready | Rejected | Unavailable


@dataclass(frozen=True, slots=True)
class Admitted:
    """A verdict that becomes `Ready` once the bundle is stored."""

    pin: Pin
    bundle: Bundle


def admit(
    record: PipelineRecord, configuration: Configuration, derived: Derived, complaints: Sequence[str]
) -> Admitted | Rejected:
    """The verdict on a configuration that was read, derived from and linted. Equal input, equal bytes."""
    if record.image:
        # Another image may bring another Bento; it lints again when it starts, and knows what it has.
        complaints = [complaint for complaint in complaints if not UNKNOWN_COMPONENT.search(complaint)]
    if complaints:
        return Rejected(_shortened(complaints), configuration.digest)
    bundle = build_bundle(runtime_of(record, configuration, derived), configuration)
    return Admitted(_pin(record, configuration, derived, bundle.digest), bundle)


def _pin(record: PipelineRecord, configuration: Configuration, derived: Derived, digest: str) -> Pin:
    overlap, reason = _overlap(record, derived)
    return Pin(
        store_id="",
        term=0,
        plan=0,
        pipeline=record.id,
        version=record.version,
        digest=digest,
        config_digest=configuration.digest,
        overlap=overlap,
        overlap_reason=reason,
        inputs=derived.inputs,
        stop_grace_s=derived.stop_grace_s,
        cpu=record.resources.cpu or 0.0,
        memory_bytes=MEMORY_DEFAULT_BYTES if record.resources.memory is None else record.resources.memory,
        image=record.image,
        volumes=tuple(dict.fromkeys(volume.split(":")[0] for volume in record.volumes)),
        captured=captured(record),
    )


def rebuild(pin: Pin, configuration: Configuration) -> Bundle | None:
    """The bundle that a pin names, from the configuration object; None if that is another object, or if this release
    of Shoal would make other bytes of it."""
    if configuration.digest != pin.config_digest:
        return None
    try:
        record = PipelineRecord.model_validate_json(
            json.dumps({**pin.captured, "id": pin.pipeline, "version": pin.version, "status": "published"})
        )
        bundle = build_bundle(runtime_of(record, configuration, derive(configuration, record.env)), configuration)
    except (BadInput, ValidationError):
        return None
    return bundle if bundle.digest == pin.digest else None


def remade(pipeline: str, version: str, digest: str, data: bytes) -> Pin:
    """The pin of what runs, from its bundle, when the pin itself was lost. BadInput: these bytes do not say.

    Nothing is taken from the pipeline's record: it may speak of another version by now.
    """
    runtime, files = read_bundle(data, digest)
    if (runtime.pipeline, runtime.version) != (pipeline, version):
        raise BadInput(problem("bundle", f"{runtime.pipeline}/{runtime.version}", f"it is not of {pipeline}/{version}"))
    configuration = replace(read_configuration(write_archive(files)), digest=runtime.config_digest)
    fields: dict[str, Any] = {
        "id": pipeline,
        "version": version,
        "status": "published",
        "env": dict(runtime.env),
        "volumes": list(runtime.volumes),
        "image": runtime.image,
        "resources": {"cpu": runtime.cpu, "memory": runtime.memory_bytes},
        "restart": {
            "delay_s": runtime.restart_delay_s,
            "delay_max_s": runtime.restart_delay_max_s,
            "reset_after_s": runtime.restart_reset_after_s,
        },
        "overlap": runtime.overlap,
        "kind": runtime.kind,
    }
    try:
        was = PipelineRecord.model_validate_json(json.dumps(fields))
    except ValidationError as error:
        raise BadInput(problem("bundle", digest, f"no record has such a {RUNTIME} ({error.error_count()})")) from error
    return replace(_pin(was, configuration, derive(configuration, was.env), digest), stop_grace_s=runtime.stop_grace_s)


def rejected(error: BadInput, config_digest: str = "") -> Rejected:
    """The verdict on a configuration that cannot be read at all."""
    return Rejected(_shortened([str(found) for found in error.problems]), config_digest)


def _overlap(record: PipelineRecord, derived: Derived) -> tuple[Overlap, str]:
    if record.overlap == "forbid":
        return Overlap.EXCLUSIVE, "the record says 'overlap: forbid'"
    if record.overlap == "allow":
        return Overlap.SHAREABLE, "the record says 'overlap: allow'"
    return derived.overlap, derived.overlap_reason


def _shortened(problems: Sequence[str]) -> tuple[str, ...]:
    if len(problems) <= _PROBLEMS_MAX:
        return tuple(problems)
    return (*problems[:_PROBLEMS_MAX], f"and {len(problems) - _PROBLEMS_MAX} more of this kind")
