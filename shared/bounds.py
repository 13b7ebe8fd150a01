"""What a value in a document between components may be at most, whoever wrote it.

Documents are validated once, at the border; behind it they are trusted. So the border must refuse what arithmetic,
paths and environments choke on: NaN, infinities, numbers that no float can hold, names that are paths or hold a NUL.
These types say so where a field is declared. They bind `decode` only: what is constructed inside is not checked.

The limits are far beyond anything that works, not settings.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from shared.ids import check_id, check_version, parse_execution


def _execution(value: str) -> str:
    parse_execution(value)
    return value


def _finite(value: Mapping[str, Any]) -> Mapping[str, Any]:
    json.dumps(value, allow_nan=False)  # raises ValueError
    return value


Number = Annotated[int, Field(ge=0, le=2**53)]  # revisions, terms, plans, counts: below sheets.NOT_APPLIED
Bytes = Annotated[int, Field(ge=0, le=2**53)]
Cores = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
Seconds = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
LeaseSeconds = Annotated[float, Field(gt=0, le=3600, allow_inf_nan=False)]
Slot = Annotated[int, Field(ge=0, le=10**6)]

HostName = Annotated[str, AfterValidator(check_id)]
PipelineId = Annotated[str, AfterValidator(check_id)]
Version = Annotated[str, AfterValidator(check_version)]
Execution = Annotated[str, AfterValidator(_execution)]
StoreId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{0,64}$")]  # becomes part of names of files and containers
Identity = Annotated[str, Field(pattern=r"^[!-~]{0,128}$")]  # agent ids, boot ids: a line of a lease file
Request = Annotated[str, Field(pattern=r"^[!-~]{0,200}$")]  # which restart was asked for
Fields = Annotated[Mapping[str, Any], AfterValidator(_finite)]  # as JSON has them: NaN would be read back as null
Digest = Annotated[str, Field(pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]{0,127})?$")]  # becomes the name of a directory
