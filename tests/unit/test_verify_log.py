"""Files of the verifier's own: each writer of the log has its own, whatever scratch folder it works in."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from cli.verify_log import WRITERS_MAX, own_number
from pitr.errors import AlreadyRunning


def test_no_two_writers_have_the_same_number_at_once(tmp_path: Path) -> None:
    with ExitStack() as held:
        numbers = [held.enter_context(own_number(tmp_path)) for _ in range(WRITERS_MAX)]
        assert numbers == [*range(1, WRITERS_MAX + 1)]
        with pytest.raises(AlreadyRunning, match="run already"), own_number(tmp_path):
            pass
    with own_number(tmp_path) as again:
        assert again == 1
