"""Which assignments an agent obeys."""

from __future__ import annotations

import pytest

from agent.core.admit import Admit, Admitted, Reject, Unchanged, admit
from shared.documents import Assignment


def document(
    store: str = "store-a", term: int = 5, plan: int = 10, *, accepted: tuple[str, ...] = (), host: str = "h1"
) -> Assignment:
    return Assignment(store_id=store, term=term, plan=plan, host=host, session=None, accepted=accepted)


CURRENT = Admitted(assignment=document(), chain=("store-0",))


@pytest.mark.parametrize(
    ("current", "found", "chain"),
    [
        pytest.param(None, document(), (), id="the first one, of any store"),
        pytest.param(None, document(accepted=("store-0",)), ("store-0",), id="the first one brings its chain"),
        pytest.param(CURRENT, document(plan=11), ("store-0",), id="a later plan"),
        pytest.param(CURRENT, document(term=6, plan=11), ("store-0",), id="a later term"),
        pytest.param(
            CURRENT, document("store-b", 1, 1, accepted=("store-a",)), ("store-a", "store-0"),
            id="another store, accepted for ours: smaller numbers do not matter",
        ),
        pytest.param(
            CURRENT, document("store-b", 1, 1, accepted=("store-x", "store-a")), ("store-a", "store-0", "store-x"),
            id="accepted for several",
        ),
        pytest.param(
            CURRENT, document("store-0", 9, 9, accepted=("store-a",)), ("store-a",),
            id="back to a store that was left, on an operator's word",
        ),
    ],
)  # fmt: skip
def test_obeyed(current: Admitted | None, found: Assignment, chain: tuple[str, ...]) -> None:
    assert admit("h1", current, found) == Admit(Admitted(assignment=found, chain=chain))


@pytest.mark.parametrize(
    ("found", "words"),
    [
        pytest.param(document(plan=9), "older than term 5, plan 10", id="plan goes back"),
        pytest.param(document(term=4, plan=99), "older than", id="term goes back, whatever the plan"),
        pytest.param(document("store-b", 9, 99), "shoal store accept store-b", id="another store, not accepted"),
        pytest.param(
            document("store-b", 9, 99, accepted=("store-0",)),
            "obeys store store-a",
            id="accepted for another than ours",
        ),
        pytest.param(
            document("store-0", 9, 99), "obeys store store-a", id="a store that was left comes back by itself"
        ),
        pytest.param(document(host="h2", plan=11), "for host 'h2'", id="another host's"),
        pytest.param(document(store="", plan=11), "names no store", id="no store"),
        pytest.param(document(accepted=("x",)), "second, different", id="same numbers, other content"),
    ],
)
def test_not_obeyed(found: Assignment, words: str) -> None:
    verdict = admit("h1", CURRENT, found)
    assert isinstance(verdict, Reject)
    assert words in verdict.reason


@pytest.mark.parametrize("current", [None, CURRENT])
def test_no_document_is_no_instruction(current: Admitted | None) -> None:
    assert admit("h1", current, None) == Unchanged()


def test_the_same_document_again_changes_nothing() -> None:
    assert admit("h1", CURRENT, document()) == Unchanged()


def test_executions_of_every_store_in_the_chain_are_ours() -> None:
    assert CURRENT.accepted == {"store-a", "store-0"}
