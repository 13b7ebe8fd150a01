"""The small pure parts around the loop: catching up, orphans, the census."""

import pytest

from scheduler.catchup import CatchUp, reached
from scheduler.garbage import DELETIONS_MAX, KEEP_S, Orphans, missing
from shared.documents import InputMark, Pin
from shared.states import Overlap
from shared.store import Mark


def pin(digest: str) -> Pin:
    return Pin(
        store_id="s",
        term=1,
        plan=1,
        pipeline="p",
        version="1",
        digest=digest,
        config_digest="",
        overlap=Overlap.SHAREABLE,
        overlap_reason="",
        inputs=(),
        stop_grace_s=1,
        cpu=0,
        memory_bytes=0,
        image="",
        volumes=(),
        captured={},
    )


# -- catching up -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("have", "covers"),
    [
        pytest.param(None, False, id="not listed yet"),
        pytest.param(InputMark("t", 4), False, id="behind"),
        pytest.param(InputMark("t", 5), True, id="just there"),
        pytest.param(InputMark("t", 6), True, id="further"),
        pytest.param(InputMark("u", 9), False, id="another stream, however long"),
    ],
)
def test_whether_an_input_was_read_far_enough(have: InputMark | None, covers: bool) -> None:
    assert reached(InputMark("t", 5), have) is covers


@pytest.mark.parametrize(
    ("answers", "waits"),
    [
        pytest.param([], True, id="nobody asked"),
        pytest.param([Mark("t", 4)] * 2, True, id="said twice that it is shorter"),
        pytest.param([Mark("t", 4)] * 3, False, id="said three times that it is shorter"),
        pytest.param([Mark("u", 9)] * 3, False, id="said three times that it was made anew"),
        pytest.param([Mark("t", 5)] * 9, True, id="it is all there, only our watch is late"),
        pytest.param([Mark("t", 4), Mark("t", 4), Mark("t", 5), Mark("t", 4)], True, id="not three times in a row"),
    ],
)
def test_when_the_wait_for_an_input_ends(answers: list[Mark], waits: bool) -> None:
    catch_up = CatchUp({"reports": InputMark("t", 5), "hosts": InputMark("t", 1)})
    for answer in answers:
        catch_up = catch_up.answered("reports", answer)
    assert ("reports" in catch_up.behind({})) is waits
    assert "hosts" in catch_up.behind({}), "one input says nothing about another"


def test_behind_names_what_is_not_read_far_enough() -> None:
    catch_up = CatchUp({"a": InputMark("t", 5), "b": InputMark("t", 5)})
    assert catch_up.behind({"a": InputMark("t", 9), "c": InputMark("t", 1)}) == ("b",)


# -- garbage -----------------------------------------------------------------------------------------------------------


def test_an_orphan_is_due_a_day_after_it_was_first_seen() -> None:
    orphans = Orphans().after({"x", "y"}, [pin("y")], 100.0)
    orphans = orphans.after({"x", "y"}, [pin("y")], 100.0 + KEEP_S - 1)
    assert orphans.due(100.0 + KEEP_S - 1) == ()
    assert orphans.due(100.0 + KEEP_S) == ("x",)


def test_an_orphan_that_was_pinned_meanwhile_begins_anew() -> None:
    orphans = Orphans().after({"x"}, [], 0.0).after({"x"}, [pin("x")], 10.0).after({"x"}, [], 20.0)
    assert orphans.due(KEEP_S + 10) == ()
    assert orphans.due(KEEP_S + 20) == ("x",)


def test_a_bounded_number_is_deleted_at_once() -> None:
    names = {f"{number:04}" for number in range(DELETIONS_MAX * 2)}
    assert Orphans().after(names, [], 0.0).due(KEEP_S) == tuple(sorted(names)[:DELETIONS_MAX])


def test_missing_names_the_versions_whose_bundle_is_gone() -> None:
    assert missing({"x"}, {("p", "1"): pin("x"), ("p", "2"): pin("y")}) == {("p", "2")}
