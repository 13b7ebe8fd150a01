"""What counts as gone while somebody waits for it."""

import pytest

from cli.wait import is_draft


@pytest.mark.parametrize(
    ("record", "draft"),
    [
        (b'{"id": "orders", "status": "draft"}', True),
        (b'{"id": "draft", "status": "published"}', False),
        (b'{"id": "orders", "status": ["draft"]}', False),
        (b'["draft"]', False),
        (b'"draft"', False),
        (b"draft", False),
        (b"[" * 100_000, False),
    ],
)
def test_only_the_status_makes_a_draft(record: bytes, draft: bool) -> None:
    assert is_draft(record) is draft
