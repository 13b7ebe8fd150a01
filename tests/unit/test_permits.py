"""Lease and grant files: what was written is read, anything else is nothing."""

from __future__ import annotations

import pytest

from runner.permits import Grant, Lease, grant_text, lease_text, parse_grant, parse_lease

LEASE = Lease(agent="a1", boot="b-1", number=3, deadline_s=1234.567891, lease_s=8.0)
GRANT = Grant(agent="a1", boot="b-1", number=3, execution="shoal-0123abcd-orders-0-17", bound=True)


def test_what_is_written_is_read() -> None:
    assert parse_lease(lease_text(LEASE)) == LEASE
    assert parse_grant(grant_text(GRANT)) == GRANT


@pytest.mark.parametrize("cut", range(len(lease_text(LEASE))))
def test_a_truncated_lease_is_none(cut: int) -> None:
    assert parse_lease(lease_text(LEASE)[:cut]) is None


@pytest.mark.parametrize("cut", range(len(grant_text(GRANT))))
def test_a_truncated_grant_is_none(cut: int) -> None:
    assert parse_grant(grant_text(GRANT)[:cut]) is None


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("deadline_s=1234.567891", "deadline_s=nan"),
        ("deadline_s=1234.567891", "deadline_s=inf"),
        ("deadline_s=1234.567891", "deadline_s=-1"),
        ("lease_s=8.0", "lease_s=0"),
        ("lease_s=8.0", "lease_s=1e7"),
        ("number=3", "number=x"),
        ("number=3", "number=-3"),
        ("agent=a1", "agent="),
        ("agent=a1", "name=a1"),
        ("agent=a1\nboot=b-1", "boot=b-1\nagent=a1"),
        ("lease_s=8.0\n", "lease_s=8.0\nmore=1\n"),
    ],
)
def test_anything_else_is_no_lease(old: str, new: str) -> None:
    text = lease_text(LEASE)
    assert old in text
    assert parse_lease(text.replace(old, new)) is None


@pytest.mark.parametrize(("old", "new"), [("bound=yes", "bound=true"), ("number=3", "number="), ("=shoal-", "\x00")])
def test_anything_else_is_no_grant(old: str, new: str) -> None:
    text = grant_text(GRANT)
    assert old in text
    assert parse_grant(text.replace(old, new)) is None
