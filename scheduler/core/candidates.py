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
from dataclasses import dataclass

from pydantic import ValidationError

from shared.bundle import Bundle, build_bundle, runtime_of
from shared.configuration import Configuration, Derived, derive
from shared.documents import Pin
from shared.errors import BadInput
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
    overlap, reason = _overlap(record, derived)
    pin = Pin(
        store_id="",
        term=0,
        plan=0,
        pipeline=record.id,
        version=record.version,
        digest=bundle.digest,
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
    return Admitted(pin, bundle)


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
