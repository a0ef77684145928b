"""What the archiver cannot be told to do."""

from __future__ import annotations

import pytest

from pitr.archive_values import MIB, PIECE_BYTES_MAX, ArchiveSettings
from pitr.errors import MalformedValue


@pytest.mark.parametrize("piece_bytes_max", [None, 4 * MIB, PIECE_BYTES_MAX])
def test_a_piece_may_grow_to_what_an_object_and_the_backlog_hold(piece_bytes_max: int | None) -> None:
    settings = ArchiveSettings(slot="pitr", piece_bytes_max=piece_bytes_max)
    assert settings.backlog_bytes_max >= 2 * (settings.piece_bytes_max or settings.piece_bytes)


@pytest.mark.parametrize("piece_bytes_max", [0, 4 * MIB - 1, PIECE_BYTES_MAX + 1])
def test_a_piece_grows_neither_below_its_size_nor_beyond_an_object(piece_bytes_max: int) -> None:
    with pytest.raises(MalformedValue, match="pieces have"):
        ArchiveSettings(slot="pitr", piece_bytes_max=piece_bytes_max)
