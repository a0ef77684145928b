"""The notes of a restore of a chain: nothing of them outlives it."""

from __future__ import annotations

from pathlib import Path

import pytest
from fix_chain import PAGE_BYTES, ChainMaker, page

from pitr.errors import NotAuthentic

PATH = "base/5/16384"


def chain_on(full: str) -> ChainMaker:
    """A full backup that holds the file ``full``, and one that takes a page of PATH from it."""
    chain = ChainMaker()
    layer = chain.layer()
    layer.add_whole(full, page(1))
    chain.add(layer)
    layer = chain.layer()
    layer.add_changed(PATH, [], [], size_bytes=PAGE_BYTES, parent_bytes=PAGE_BYTES)
    chain.add(layer)
    return chain


def test_a_restore_leaves_no_notes(tmp_path: Path) -> None:
    chain_on(PATH).restore(tmp_path)
    assert (tmp_path / "root" / PATH).read_bytes() == page(1)
    assert [path.name for path in tmp_path.iterdir()] == ["root"]


def test_a_restore_that_fails_leaves_no_notes(tmp_path: Path) -> None:
    with pytest.raises(NotAuthentic, match="lacks"):
        chain_on("base/5/2").restore(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["root"]
