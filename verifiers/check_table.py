"""The checks of a verification, in one table: what each is called, and whether a verdict needs it.  Pure.

An id never changes its meaning.  ``is_required``: without it a verification is WARNED at best.  Reference:
docs/verify.md, "The checks"; docs/drills.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class CheckSpec:
    """What is to be stated of one check, however it ends."""

    id: str
    category: str
    title: str
    tool: str
    is_required: bool = True


_TABLE: Final = (
    CheckSpec("C01", "integrity", "records and WAL are signed, and linked to each other", "pitr"),
    CheckSpec("C02", "integrity", "each stored object has the digest that was signed", "pitr"),
    CheckSpec("C03", "integrity", "each stored object opens with its key, and says so", "pitr"),
    CheckSpec("C04", "integrity", "the restored files are those of the backup", "pg_verifybackup"),
    CheckSpec("C05", "completeness", "the WAL on the way was replayed without a gap", "pitr"),
    CheckSpec("C06", "integrity", "the control file names this cluster, cleanly shut down", "pg_controldata"),
    CheckSpec("C07", "integrity", "each data page has the right checksum", "pg_checksums"),
    CheckSpec(
        "C08", "integrity", "each table and B-tree is consistent, with every row indexed", "pg_amcheck"
    ),
    CheckSpec("C09", "target", "recovery ended exactly at the target", "pitr"),
    CheckSpec("C10", "target", "the last commit before the target is there, with its time", "pitr"),
    CheckSpec("C11", "completeness", "the tables equal those of the source at the same LSN", "pitr", False),
    CheckSpec("C12", "completeness", "the whole schema can be read", "pg_dumpall"),
    CheckSpec(
        "C13", "completeness", "extensions and collations have the versions they were made with", "pitr"
    ),
    CheckSpec(
        "C14", "integrity", "foreign keys, checks and NOT NULL hold for the rows that are there", "pitr"
    ),
    CheckSpec("C15", "application", "the owner's own queries find nothing wrong", "pitr", False),
    CheckSpec("C16", "application", "Kafka offsets agree with the target", "pitr", False),
    CheckSpec("C17", "security", "the backup shows no sign of rot or ransomware", "pitr"),
    CheckSpec("C18", "security", "every owner and grantee is a role of the cluster", "pitr"),
    CheckSpec("C19", "security", "the restored server archives nowhere and has no way out", "pitr"),
    CheckSpec("C20", "security", "the scratch place was wiped", "pitr"),
    CheckSpec("C21", "completeness", "the restore and the checks of its server came to their end", "pitr"),
)
_DRILLS: Final = (
    CheckSpec("D01", "storage", "a region alone keeps what is put into it, and gives it back", "pitr"),
    CheckSpec("D02", "security", "the identity opens what is sealed to the recipients", "pitr"),
    CheckSpec("D03", "completeness", "an archived piece of WAL opens, and is what the index says", "pitr"),
    CheckSpec("D04", "completeness", "the slot keeps the WAL that is not archived yet", "pitr", False),
    CheckSpec("D05", "configuration", "doctor finds no fault", "pitr", False),
    CheckSpec("D10", "drill", "a step of the scenario was done in time", "pitr"),
    CheckSpec("D11", "drill", "the region that was cut off was not read", "pitr"),
    CheckSpec("D12", "drill", "nothing is lost of what the regions had at the failure", "pitr"),
)
CHECKS: Final = {spec.id: spec for spec in _TABLE}
"""Those of a verification: each of them has a result in its report."""
DRILL_CHECKS: Final = {spec.id: spec for spec in _DRILLS}
"""Those that only a drill has: of its parts, or of its steps (``D10.NAME``)."""
