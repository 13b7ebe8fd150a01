"""Every refusal of the server becomes the error that says what may have happened."""

import pytest

from shared.errors import Busy, Conflict, Missing, StoreError, StoreUnavailable, Unfit
from shared.nats_errors import NoMessage, read_refusal, refusal


@pytest.mark.parametrize(
    ("code", "words", "kind"),
    [
        (10071, "wrong last sequence: 42", Conflict),
        (10164, "wrong last sequence", Busy),  # no verdict: another write is in flight on R3
        (10163, "expected last sequence per subject temporarily unavailable", Busy),
        (10008, "JetStream system temporarily unavailable", Busy),
        (10176, "atomic publish batch is incomplete", Busy),
        (10210, "atomic publish too many inflight", Busy),
        (10037, "no message found", NoMessage),
        (10059, "stream not found", Missing),
        (10174, "atomic publish is disabled", Unfit),
        (10077, "maximum bytes exceeded", StoreUnavailable),
        (99999, "something new", StoreUnavailable),
    ],
)
def test_a_refused_write_surely_did_not_happen(code: int, words: str, kind: type[StoreError]) -> None:
    found = refusal({"code": 400, "err_code": code, "description": words}, "shoal_control journal")
    assert type(found) is kind
    assert "shoal_control journal" in str(found)
    assert words in str(found)


@pytest.mark.parametrize(
    ("words", "actual"), [("wrong last sequence: 42", 42), ("wrong last sequence: 0", 0), ("odd", None)]
)
def test_a_conflict_names_the_actual_revision(words: str, actual: int | None) -> None:
    found = refusal({"err_code": 10071, "description": words}, "k")
    assert isinstance(found, Conflict)
    assert found.actual == actual


def test_only_the_missing_stream_is_missing_and_only_the_missing_message_is_an_absent_key() -> None:
    assert not isinstance(refusal({"err_code": 10059}, "k"), NoMessage)
    assert isinstance(refusal({"err_code": 10037}, "k"), NoMessage)


def test_a_read_that_is_refused_without_a_verdict_is_only_unavailable() -> None:
    assert type(read_refusal({"err_code": 10008, "description": "no leader"}, "k")) is StoreUnavailable
    assert type(read_refusal({"err_code": 10059}, "k")) is Missing
