"""Files that a command is told to make: a place that none can have is refused at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.errors import UsageRefused
from cli.made_file import check_place


def test_a_place_that_no_file_can_have_is_refused_before_the_work(tmp_path: Path) -> None:
    check_place(tmp_path / "plan.json")
    with pytest.raises(UsageRefused, match="is a directory"):
        check_place(tmp_path)
    with pytest.raises(UsageRefused, match="there is no directory"):
        check_place(tmp_path / "nowhere" / "plan.json")
    assert list(tmp_path.iterdir()) == []
