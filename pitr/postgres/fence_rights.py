"""Whether a role may do what a fence's mark does, asked without doing it.

Reference: PostgreSQL manual, "Access Privilege Inquiry Functions"; docs/events.md, "Rights".
"""

from __future__ import annotations

from typing import Final

import psycopg

from pitr.postgres.sql_errors import mapped_errors

_CONNECT_TIMEOUT_S: Final = 5
_OPTIONS: Final = "-c statement_timeout=5s -c default_transaction_read_only=on -c search_path=pg_catalog"
# Names are not resolved: that needs rights of its own.  Of what is not there the answer is null.
_LOOK: Final = """
    WITH place AS (
        SELECT n.oid AS schema, c.oid AS fence,
               (SELECT d.objid FROM pg_depend d JOIN pg_class s ON s.oid = d.objid AND s.relkind = 'S'
                WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = c.oid
                  AND d.deptype IN ('a', 'i') LIMIT 1) AS sequence
        FROM (VALUES (1)) AS one LEFT JOIN pg_namespace n ON n.nspname = 'pitr'
             LEFT JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = 'fence')
    SELECT fence IS NOT NULL,
           has_database_privilege(current_database(), 'CREATE'), has_schema_privilege(schema, 'CREATE'),
           has_schema_privilege(schema, 'USAGE'), has_table_privilege(fence, 'SELECT'),
           has_table_privilege(fence, 'INSERT'), has_table_privilege(fence, 'UPDATE'),
           has_table_privilege(fence, 'DELETE'), has_sequence_privilege(sequence, 'USAGE')
    FROM place"""
_TO_MAKE: Final = ("CREATE on the database", "CREATE on schema pitr")
_TO_WRITE: Final = (
    "USAGE on schema pitr",
    "SELECT on pitr.fence",
    "INSERT on pitr.fence",
    "UPDATE on pitr.fence",
    "DELETE on pitr.fence",
    "USAGE on the sequence of pitr.fence",
)


def lacking_rights(dsn: str) -> tuple[str, ...]:
    """Return the rights that the role lacks to make or write ``pitr.fence``; none if it can.

    Reads only.  Raises ServerUnavailable, ServerRefused.
    """
    with (
        mapped_errors(),
        psycopg.connect(
            dsn,
            autocommit=True,
            connect_timeout=_CONNECT_TIMEOUT_S,
            application_name="pitr doctor",
            options=_OPTIONS,
        ) as session,
    ):
        row = session.execute(_LOOK.encode()).fetchone()
    assert row is not None, "place has one row"
    is_there, make, write = row[0], row[1:3], row[3:]
    asked = zip(_TO_WRITE, write, strict=True) if is_there else zip(_TO_MAKE, make, strict=True)
    return tuple(name for name, has in asked if has is False)
