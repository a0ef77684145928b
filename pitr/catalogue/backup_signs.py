"""What a backup saw of the files beside their bytes: signs of rot, and of somebody who encrypts.  Pure.

Part of the signed manifest; judged by ``pitr.rot_signals``.  Reference: docs/format.md §8.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pitr.catalogue.fields import Fields
from pitr.catalogue.records import Payload

ALIEN_NAMED_MAX: Final = 100
# The largest; what is smaller moves no average.
RELATIONS_NAMED_MAX: Final = 1000


@dataclass(frozen=True, slots=True)
class RelationSign:
    """One large relation file: its size, how much of it was copied, and to what that compressed."""

    path: str
    size_bytes: int
    copied_bytes: int
    stored_bytes: int

    @property
    def ratio(self) -> float:
        """Return how well it compressed: 1 is not at all."""
        return self.copied_bytes / max(1, self.stored_bytes)

    @property
    def changed_share(self) -> float:
        """Return the part of it that was copied."""
        return self.copied_bytes / max(1, self.size_bytes)


@dataclass(frozen=True, slots=True)
class BackupSigns:
    """``alien_files`` lie among relations and are none; ALIEN_NAMED_MAX of ``alien_count`` are named."""

    alien_files: tuple[str, ...] = ()
    alien_count: int = 0
    relations: tuple[RelationSign, ...] = ()

    def to_payload(self) -> Payload:
        return {
            "alien_files": list(self.alien_files),
            "alien_count": self.alien_count,
            "relations": [
                [each.path, each.size_bytes, each.copied_bytes, each.stored_bytes] for each in self.relations
            ],
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> BackupSigns:
        return cls(
            fields.texts("alien_files", count_max=ALIEN_NAMED_MAX),
            fields.integer("alien_count"),
            tuple(
                RelationSign(
                    fields.as_text("relations", path), *fields.as_integers("relations", numbers, count=3)
                )
                for path, *numbers in fields.lists("relations", count_max=RELATIONS_NAMED_MAX, least=4)
            ),
        )


NO_SIGNS: Final = BackupSigns()
