"""Backups with signs of rot, made up for tests of who judges them."""

from __future__ import annotations

from dataclasses import replace

import fix_archive as fix

from pitr.catalogue.backup_record import BackupManifest
from pitr.catalogue.backup_signs import BackupSigns, RelationSign
from pitr.wal.lsn import LSN

MIB = 1 << 20
PATH = "base/5/16384"


def backup(
    number: int, *relations: RelationSign, is_incremental: bool = False, aliens: int = 0
) -> BackupManifest:
    at = (number + 1) * fix.SEGMENT_BYTES
    made = fix.backup_of(LSN(at), LSN(at + 1000), stopped_at=fix.at_second(number), number=number)
    signs = BackupSigns(("base/5/README.txt",) * min(aliens, 1), aliens, relations)
    if is_incremental:
        return replace(made, type="incr", parent=backup(0).backup, signs=signs)
    return replace(made, signs=signs)


def sign(*, copied_mib: float = 100, ratio: float = 4.0, path: str = PATH) -> RelationSign:
    return RelationSign(path, 100 * MIB, int(copied_mib * MIB), int(copied_mib * MIB / ratio))
