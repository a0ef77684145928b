"""What is known of an archive's backups: chains, looked up without searching."""

from __future__ import annotations

from dataclasses import replace

import fix_archive as fix

from pitr.survey import KnownBackups, chain_of
from pitr.wal.lsn import LSN


class CountedName(str):
    """A name that counts how often it is compared."""

    compared = 0

    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        CountedName.compared += 1
        return str.__eq__(self, other)


def test_each_link_of_a_chain_is_looked_up_however_many_backups_there_are() -> None:
    """Years of backups in long chains: searching them all at each link of each is hours."""
    chain = [
        fix.backup_of(LSN(number * 1000), LSN(number * 1000 + 9), stopped_at=fix.at_second(9), number=number)
        for number in range(1, 101)
    ]
    for at in range(1, len(chain)):
        chain[at] = replace(chain[at], type="incr", parent=CountedName(chain[at - 1].backup))
    CountedName.compared = 0
    parents = chain_of(chain[-1], KnownBackups(chain))
    assert CountedName.compared <= 3 * len(chain)
    assert [each.backup for each in parents if not isinstance(each, str)] == [
        each.backup for each in reversed(chain[:-1])
    ]
