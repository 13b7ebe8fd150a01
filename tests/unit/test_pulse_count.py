"""The pure part of the pulse: how silence is counted, and what is news."""

from dataclasses import replace

from scheduler.core.timings import PULSE_S
from scheduler.core.view import GoneView
from scheduler.roll import Roll
from scheduler.tally import GRACE_S, Tally
from shared.documents import Driver, Heartbeat, Session, encode
from shared.store import Entry, Listing, Mark

SHAREABLE_S, EXCLUSIVE_S = 4.0, 12.0
GRACE = int(GRACE_S / PULSE_S)


def beat(host: str, sequence: int = 1, *, agent: str = "a", boot: str = "b", number: int = 1) -> Heartbeat:
    return Heartbeat(
        store_id="s",
        host=host,
        session=Session(agent, boot, number),
        sequence=sequence,
        lease_s=8,
        fence_kill_s=2,
        poll_s=0.25,
        cpu=4,
        memory_bytes=1,
        labels={"zone": 'tricky "sequence":7'},
        drivers={"process": Driver(True)},
    )


def entry(heartbeat: Heartbeat, revision: int) -> Entry:
    return Entry(heartbeat.host, encode(heartbeat), revision)


def listing(*entries: Entry, deleted: dict[str, int] | None = None) -> Listing:
    return Listing({found.key: found for found in entries}, deleted or {}, Mark("t", 100))


def roll(*entries: Entry) -> Roll:
    made = Roll((SHAREABLE_S, EXCLUSIVE_S))
    made.list(listing(*entries), interrupted=False)
    made.views()
    return made


def pulses(made: Roll, count: int) -> None:
    for _ in range(count):
        made.pulse()


def silence(made: Roll, host: str) -> float:
    return made.views(fresh=True)[0][host].silence_s


# -- Tally -------------------------------------------------------------------------------------------------------------


def test_silence_is_pulses_since_last_heard() -> None:
    tally: Tally[str] = Tally()
    tally.meet("a")
    tally.pulse()
    tally.hear("a")
    tally.pulse()
    tally.pulse()
    assert tally.silence_s("a") == 1.0
    assert tally.age_s == 1.5


def test_zero_without_grace_begins_at_zero_and_counts_at_once() -> None:
    tally: Tally[str] = Tally()
    tally.meet("a")
    for _ in range(10):
        tally.pulse()
    tally.zero(grace=False)
    assert (tally.silence_s("a"), tally.age_s) == (0.0, 0.0)
    tally.pulse()
    assert (tally.silence_s("a"), tally.age_s) == (0.5, 0.5)


def test_after_an_interruption_who_was_not_heard_gets_the_whole_grace() -> None:
    tally: Tally[str] = Tally()
    tally.meet("quiet")
    tally.meet("heard")
    tally.zero(grace=True)
    tally.hear("heard")
    for _ in range(GRACE - 1):
        tally.pulse()
    assert (tally.silence_s("quiet"), tally.age_s) == (0.0, 0.0)
    assert tally.silence_s("heard") == GRACE_S - PULSE_S
    tally.pulse()
    assert (tally.silence_s("quiet"), tally.age_s) == (GRACE_S, GRACE_S)


def test_a_later_zero_without_grace_ends_the_grace() -> None:
    tally: Tally[str] = Tally()
    tally.meet("a")
    tally.zero(grace=True)
    tally.zero(grace=False)
    for _ in range(8):
        tally.pulse()
    assert tally.silence_s("a") == 4.0


# -- Roll --------------------------------------------------------------------------------------------------------------


def test_a_heartbeat_that_differs_in_its_sequence_only_is_no_news() -> None:
    made = roll(entry(beat("h"), 1))
    made.change(entry(beat("h", 2), 2))
    assert not made.news
    made.change(entry(replace(beat("h", 3), labels={"zone": 'tricky "sequence":8'}), 3))
    assert made.news
    views, changed = made.views()
    assert changed == {"h"}
    assert (views["h"].heartbeat.labels["zone"], views["h"].revision) == ('tricky "sequence":8', 3)


def test_the_sequence_that_a_snapshot_shows_is_the_newest() -> None:
    """An operator's word on a session counts until it is heard again, which its sequence tells."""
    made = roll(entry(beat("h"), 1))
    made.change(entry(beat("h", 7), 2))
    assert made.views(fresh=True)[0]["h"].heartbeat == beat("h", 7)
    made.change(entry(replace(beat("h", 8), labels={}), 3))
    made.change(Entry("h", encode(replace(beat("h"), labels={})).replace(b":1,", b":" + b"9" * 5000 + b",", 1), 4))
    assert made.views(fresh=True)[0]["h"].heartbeat.sequence == 8, "what is no number says nothing"


def test_who_is_heard_after_a_silence_is_news_with_the_next_pulse() -> None:
    made = roll(entry(beat("h"), 1))
    pulses(made, int(SHAREABLE_S / PULSE_S) + 2)
    assert made.views()[0]["h"].silence_s > SHAREABLE_S
    made.change(entry(beat("h", 2), 2))
    made.pulse()
    assert made.news
    assert made.views()[0]["h"].silence_s == PULSE_S


def test_a_new_session_is_news_and_its_identity_is_counted_apart() -> None:
    made = roll(entry(beat("h"), 1))
    pulses(made, 2)
    made.change(entry(beat("h", agent="other"), 2))
    pulses(made, 2)
    view = made.views(fresh=True)[0]["h"]
    assert view.silence_s == 1.0
    assert view.heard == {("a", "b"): 2.0, ("other", "b"): 1.0}


def test_crossing_a_threshold_is_news_once() -> None:
    made = roll(entry(beat("h"), 1), entry(beat("live"), 2))
    for number in range(1, int(SHAREABLE_S / PULSE_S) + 1):
        assert not made.news
        made.change(entry(beat("live", number), 2 + number))
        made.pulse()
    views, changed = made.views()
    # The leader's own age crosses the threshold too, which every host's view shows.
    assert changed == {"h", "live"}
    assert (views["h"].silence_s, views["live"].silence_s) == (SHAREABLE_S, PULSE_S)
    made.change(entry(beat("live", 99), 200))
    made.pulse()
    assert not made.news


def test_a_tombstone_is_news_but_no_sign_of_life() -> None:
    made = roll(entry(beat("h"), 1))
    pulses(made, 3)
    made.change(entry(replace(beat("h"), dead=Session("a", "b", 1)), 2))
    view = made.views()[0]["h"]
    assert (view.revision, view.silence_s, view.heard) == (2, 1.5, {("a", "b"): 1.5})
    assert view.heartbeat.dead == Session("a", "b", 1)


def test_a_list_starts_the_silence_anew_of_who_may_have_been_heard_meanwhile() -> None:
    made = roll(entry(beat("h"), 1), entry(beat("dead"), 2))
    made.change(entry(beat("h", 3, agent="other"), 3))
    pulses(made, 30)
    made.views()
    made.list(listing(entry(beat("h", 4, agent="other"), 4), entry(beat("dead"), 2)), interrupted=False)
    views, changed = made.views()
    assert "dead" not in changed
    assert (views["h"].silence_s, views["h"].heard) == (0.0, {("a", "b"): 0.0, ("other", "b"): 0.0})
    assert views["h"].term_age_s == 0.0, "an agent that nobody has seen may have been heard in between as well"
    pulses(made, 8)
    views, changed = made.views(fresh=True)
    assert "h" in changed
    assert (views["h"].silence_s, views["h"].term_age_s) == (SHAREABLE_S, SHAREABLE_S)
    assert (views["dead"].silence_s, views["dead"].heard) == (19.0, {("a", "b"): 19.0})
    assert views["dead"].term_age_s == 19.0


def test_a_list_starts_the_silence_anew_of_a_key_that_it_lacks() -> None:
    made = roll(entry(beat("h"), 1))
    pulses(made, 30)
    made.list(listing(), interrupted=False)
    assert silence(made, "h") == 0.0


def test_a_list_leaves_alone_how_long_a_deleted_host_has_been_gone() -> None:
    made = roll(entry(beat("h"), 1), entry(beat("i"), 2))
    made.change(Entry("h", None, 3))
    made.change(Entry("i", None, 4))
    pulses(made, 30)
    made.list(listing(deleted={"h": 3, "i": 6}), interrupted=False)
    assert {key: gone.silence_s for key, gone in made.gone().items()} == {"h": 15.0, "i": 0.0}


def test_a_list_after_an_interruption_gives_grace() -> None:
    made = roll(entry(beat("h"), 1))
    pulses(made, 30)
    made.list(listing(entry(beat("h", 9), 9), entry(beat("new"), 10)), interrupted=True)
    pulses(made, GRACE - 1)
    assert (silence(made, "h"), silence(made, "new")) == (0.0, 0.0)
    made.views()
    made.pulse()
    assert made.news
    assert (silence(made, "h"), silence(made, "new")) == (GRACE_S, GRACE_S)


def test_who_was_heard_since_everything_began_anew_is_news_with_the_next_pulse() -> None:
    made = roll(entry(beat("h"), 1), entry(beat("dead"), 2))
    made.zero(grace=False)
    views, _ = made.views()
    assert (views["h"].unheard, views["dead"].unheard) == (True, True)
    made.change(entry(beat("h", 2), 3))
    assert not made.news, "after a takeover these are all hosts"
    made.pulse()
    views, changed = made.views()
    assert changed == {"h"}
    assert (views["h"].unheard, views["dead"].unheard) == (False, True)
    made.change(entry(beat("h", 3), 4))
    made.pulse()
    assert not made.news


def test_a_host_that_is_gone_without_a_marker_is_held_until_a_second_list_agrees() -> None:
    made = roll(entry(beat("h"), 1))
    made.list(listing(), interrupted=False)
    assert "h" in made.views()[0]
    made.list(listing(), interrupted=False)
    assert "h" not in made.views()[0]


def test_a_host_that_came_back_between_two_lists_is_held_again() -> None:
    made = roll(entry(beat("h"), 1))
    made.list(listing(), interrupted=False)
    made.change(entry(beat("h", 2), 2))
    made.list(listing(), interrupted=False)
    assert "h" in made.views()[0]


def test_a_deleted_host_is_gone_at_once() -> None:
    made = roll(entry(beat("h"), 1), entry(beat("i"), 2))
    made.change(Entry("h", None, 3))
    made.list(listing(deleted={"i": 4}), interrupted=False)
    views, changed = made.views()
    assert not views
    assert changed == {"h", "i"}


UNREADABLE = (b"", b"[]", b'{"host": 1}', encode(beat("other")))


def test_what_cannot_be_read_is_no_sign_of_life_and_is_what_a_tombstone_goes_over() -> None:
    made = roll(entry(beat("h"), 1))
    pulses(made, 2)
    made.views()
    for revision, value in enumerate(UNREADABLE, 5):
        made.change(Entry("h", value, revision))
    made.change(Entry("Not.An.Id", encode(beat("h")), 9))
    views, changed = made.views(fresh=True)
    assert (views["h"].revision, views["h"].silence_s, views["h"].heartbeat) == (8, 1.0, beat("h"))
    assert changed == {"h"}


def test_a_list_that_shows_the_same_unreadable_heartbeat_again_wakes_nobody() -> None:
    made = roll(entry(beat("h"), 1))
    strange = [Entry("h", b"x", 5), Entry("never-seen", b"x", 6)]
    made.list(listing(*strange), interrupted=False)
    pulses(made, 4)
    made.list(listing(*strange), interrupted=False)
    assert silence(made, "h") == 2.0, "somebody may have been heard before the first of them, not after"
    assert made.gone()["never-seen"] == GoneView(6, 2.0)


def test_an_unreadable_heartbeat_of_a_host_that_was_never_seen() -> None:
    """As one whose key is gone: nobody knows when it was heard last, so its silence begins now."""
    made = roll()
    pulses(made, 100)
    made.change(Entry("h", b"x", 7))
    pulses(made, 3)
    made.change(Entry("h", b"y", 8))
    assert made.gone() == {"h": GoneView(8, 1.5)}
    made.change(entry(beat("h"), 9))
    assert not made.gone()


def test_repeated_and_older_changes_change_nothing() -> None:
    made = roll(entry(beat("h", 5), 5))
    pulses(made, 2)
    made.change(entry(beat("h", 5), 5))
    made.change(entry(beat("h", 4, agent="older"), 4))
    view = made.views(fresh=True)[0]["h"]
    assert (view.revision, view.silence_s, set(view.heard)) == (5, 1.0, {("a", "b")})


def test_a_snapshot_is_not_changed_by_what_comes_after() -> None:
    made = roll(entry(beat("h"), 1))
    before, _ = made.views(fresh=True)
    made.change(entry(beat("h", agent="new"), 2))
    made.views()
    assert set(before["h"].heard) == {("a", "b")}


def test_a_hosts_stream_that_was_made_anew_is_read_in_spite_of_lower_revisions() -> None:
    made = roll(entry(beat("h"), 50), entry(beat("gone"), 51))
    pulses(made, 30)
    made.list(listing(entry(beat("h", agent="new"), 1)), interrupted=True, other=True)
    views, _ = made.views()
    assert (views["h"].revision, views["h"].heartbeat.session.agent, views["h"].silence_s) == (1, "new", 0.0)
    assert "gone" in views
    made.change(entry(beat("h", 2, agent="new"), 2))
    assert made.views(fresh=True)[0]["h"].revision == 2


# -- how long a silence must be ----------------------------------------------------------------------------------------


def needs(made: Roll, host: str = "h") -> float | None:
    return made.views(fresh=True)[0][host].silent_exclusive_s


def leased(lease_s: float, **fields: object) -> Heartbeat:
    return replace(beat("h", **fields), lease_s=lease_s)  # type: ignore[arg-type]


def test_each_host_is_announced_when_its_own_time_is_over() -> None:
    made = roll(entry(leased(60.0), 1))
    pulses(made, 139)
    made.views()
    assert not made.news
    made.pulse()
    assert made.news
    view = made.views()[0]["h"]
    assert (view.silence_s, view.silent_exclusive_s) == (70.0, 70.0)


def test_a_longer_lease_counts_until_it_is_over_also_for_silences_that_begin_before() -> None:
    made = roll(entry(leased(60.0), 1))
    made.change(entry(leased(8.0, sequence=2), 2))
    assert needs(made) == 70.0
    pulses(made, 139)
    made.change(entry(leased(8.0, sequence=3), 3))
    assert needs(made) == 70.0
    pulses(made, 1)
    assert needs(made) == 70.0, "a silence has one end from its beginning"
    made.change(entry(leased(8.0, sequence=4), 4))
    assert needs(made) == 12.0


def test_a_longer_lease_counts_at_once() -> None:
    made = roll(entry(leased(8.0), 1))
    made.change(entry(leased(12.0, sequence=2), 2))
    assert needs(made) == 16.5


def test_another_identity_does_not_shorten_what_its_predecessor_needs() -> None:
    made = roll(entry(leased(60.0, agent="one"), 1))
    made.change(entry(leased(8.0, agent="two"), 2))
    assert needs(made) == 70.0
    assert made.views(fresh=True)[0]["h"].silent_exclusive_of == {("one", "b"): 70.0, ("two", "b"): 12.0}
    pulses(made, 140)
    made.change(entry(leased(8.0, agent="two", sequence=2), 3))
    assert needs(made) == 12.0


def test_a_tombstone_is_no_sign_of_life() -> None:
    made = roll(entry(beat("h"), 1))
    pulses(made, 24)
    made.change(entry(replace(beat("h"), dead=Session("a", "b", 1)), 2))
    view = made.views()[0]["h"]
    assert (view.silence_s, view.revision, view.heartbeat.dead) == (12.0, 2, Session("a", "b", 1))
    made.change(entry(beat("h", 2, number=2), 3))
    view = made.views()[0]["h"]
    assert (view.silence_s, view.heartbeat.dead) == (0.0, None)


def test_a_deleted_key_is_silent_from_its_deletion_and_keeps_its_revision() -> None:
    made = roll(entry(beat("h"), 1))
    pulses(made, 100)
    made.change(Entry("h", None, 7))
    pulses(made, 3)
    (gone,) = made.gone().values()
    assert (gone.revision, gone.silence_s) == (7, 1.5)
    made.change(entry(beat("h", 2), 8))
    assert not made.gone()


def test_who_was_heard_before_a_key_was_deleted_is_not_forgotten() -> None:
    """Otherwise whoever makes the key anew would have no predecessor, and be answered at once."""
    made = roll(entry(leased(60.0, agent="one"), 1))
    pulses(made, 100)
    made.change(entry(leased(60.0, agent="one", sequence=2), 2))
    made.change(Entry("h", None, 3))
    pulses(made, 2)
    made.change(entry(leased(8.0, agent="two"), 4))
    view = made.views(fresh=True)[0]["h"]
    assert view.heard == {("one", "b"): 1.0, ("two", "b"): 0.0}
    assert view.silent_exclusive_s == 70.0
