"""The control file: taken whole or not at all."""

from __future__ import annotations

import pytest
from fix_control import control_file

from pitr.errors import MalformedValue
from pitr.postgres.control import ControlFile, parse_control_file


@pytest.mark.parametrize("crc_offset", [288, 296, 300])
@pytest.mark.parametrize("size_bytes", [512, 8192])
def test_a_whole_control_file_names_its_cluster(crc_offset: int, size_bytes: int) -> None:
    control = parse_control_file(bytes(control_file(crc_offset, size_bytes)))
    assert control == ControlFile(7_000_000_000_000_000_001, 1300, 202406281, 6)
    assert control.version_directory(17) == b"PG_17_202406281"


def test_a_control_file_tells_whether_its_recovery_has_ended() -> None:
    assert parse_control_file(bytes(control_file(288, state=5))).is_in_archive_recovery
    assert not parse_control_file(bytes(control_file(288))).is_in_archive_recovery


@pytest.mark.parametrize("offset", [0, 9, 120, 287, 288, 291])
def test_a_torn_control_file_is_refused(offset: int) -> None:
    content = control_file(288)
    content[offset] ^= 0x40
    with pytest.raises(MalformedValue):
        parse_control_file(bytes(content))


@pytest.mark.parametrize("size_bytes", [0, 511, 8193])
def test_a_control_file_of_another_size_is_refused(size_bytes: int) -> None:
    with pytest.raises(MalformedValue):
        parse_control_file(bytes(size_bytes))
