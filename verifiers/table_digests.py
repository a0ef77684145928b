"""What tables and schema come to, as digests that two servers can be compared by.

A table's is the number of its rows and the sum of a 64-bit hash of each: it does not depend on their order,
and a row that is wrong, missing or there twice changes it.  It proves nothing against who makes rows up.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from pitr.errors import PitrError
from pitr.postgres.scratch_session import ScratchSession

TABLES_MAX: Final = 20_000
_TABLES: Final = """
SELECT quote_ident(n.nspname) || '.' || quote_ident(c.relname)
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'm') AND c.relpersistence = 'p' AND c.relispopulated
   AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
 ORDER BY 1"""
_ROWS: Final = (
    'SELECT count(*), coalesce(sum(hashtextextended(t::text COLLATE "C", 0)), 0)::text FROM ONLY {} t'
)
_USER: Final = "n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'"
_SCHEMA: Final = (
    f"""SELECT n.nspname, c.relname, c.relkind, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,
               pg_get_expr(d.adbin, d.adrelid)
          FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
          JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
          LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
         WHERE {_USER} AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S') ORDER BY 1, 2, a.attnum""",
    f"""SELECT n.nspname, r.relname, c.conname, pg_get_constraintdef(c.oid), c.convalidated
          FROM pg_constraint c JOIN pg_namespace n ON n.oid = c.connamespace
          LEFT JOIN pg_class r ON r.oid = c.conrelid WHERE {_USER} ORDER BY 1, 2, 3""",
    f"""SELECT n.nspname, c.relname, pg_get_indexdef(c.oid)
          FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE {_USER} AND c.relkind IN ('i', 'I') ORDER BY 1, 2""",
    f"""SELECT n.nspname, c.relname, pg_get_viewdef(c.oid)
          FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE {_USER} AND c.relkind IN ('v', 'm') ORDER BY 1, 2""",
    f"""SELECT n.nspname, c.relname, pg_get_triggerdef(t.oid), t.tgenabled
          FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE {_USER} AND NOT t.tgisinternal ORDER BY 1, 2, 3""",
    f"""SELECT n.nspname, p.proname, pg_get_function_identity_arguments(p.oid), p.prosrc, p.prosecdef
          FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE {_USER} ORDER BY 1, 2, 3, 4""",
)


@dataclass(frozen=True, slots=True)
class TableDigest:
    """One table, ``database.schema.table``: how many rows, and the sum of their hashes as text."""

    table: str
    rows: int
    digest: str


@dataclass(frozen=True, slots=True)
class ClusterDigests:
    """All tables of all databases, by name, and a digest of each database's schema."""

    tables: tuple[TableDigest, ...]
    schemas: tuple[tuple[str, str], ...]


def cluster_digests(databases: list[str], open_session: Callable[[str], ScratchSession]) -> ClusterDigests:
    """Read every table.  Raises QueryFailed; PitrError for more than TABLES_MAX tables."""
    tables: list[TableDigest] = []
    schemas: list[tuple[str, str]] = []
    for database in sorted(databases):
        with open_session(database) as session:
            schemas.append((database, _schema_sha256(session)))
            for (table,) in session.rows(_TABLES):
                if len(tables) >= TABLES_MAX:
                    raise PitrError(f"there are more than {TABLES_MAX} tables; no fingerprint is taken")
                ((count, digest),) = session.rows(_ROWS.format(table))
                tables.append(TableDigest(f"{database}.{table}", int(str(count)), str(digest)))
    return ClusterDigests(tuple(tables), tuple(schemas))


def differences(expected: ClusterDigests, found: ClusterDigests) -> list[str]:
    """Return in words what differs, by table and schema; nothing if all is alike."""
    said = []
    before = {one.table: one for one in expected.tables}
    after = {one.table: one for one in found.tables}
    for name in sorted(before.keys() | after.keys()):
        one, other = before.get(name), after.get(name)
        if one is None:
            said.append(f"table {name} is there and was not in the source")
        elif other is None:
            said.append(f"table {name} is missing")
        elif one.rows != other.rows:
            said.append(f"table {name} has {other.rows} rows, the source had {one.rows}")
        elif one.digest != other.digest:
            said.append(f"table {name} has other rows than the source")
    if dict(expected.schemas) != dict(found.schemas):
        schemas = dict(found.schemas)
        other_schemas = [name for name, digest in expected.schemas if schemas.get(name) != digest]
        said += [f"the schema of database {name} differs" for name in other_schemas or sorted(schemas)]
    return said


def _schema_sha256(session: ScratchSession) -> str:
    digest = hashlib.sha256()
    for statement in _SCHEMA:
        for row in session.each_row(statement):
            digest.update("\0".join(str(value) for value in row).encode("utf-8", "surrogateescape") + b"\n")
    return digest.hexdigest()
