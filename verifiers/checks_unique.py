"""Unique keys of which two rows are there: what C14 asks where ``pg_amcheck`` cannot tell, before 17.

The commonest cause is a collation that changed: its index then has an order that is none, so it lets a second
row of a key in, and finds only one of them.  So the rows are read, and no index.
"""

from __future__ import annotations

from typing import Final

from pitr.postgres.scratch_session import ScratchSession

_KEYS_MAX: Final = 5000
# Each key column with the index's own collation; a partition has an index of its own, its parent has no rows.
UNIQUE_KEYS: Final = """
SELECT i.indexrelid::regclass::text, i.indrelid::regclass::text, i.indnullsnotdistinct,
       pg_get_expr(i.indpred, i.indrelid),
       ARRAY(SELECT '(' || pg_get_indexdef(i.indexrelid, k.n::int, false) || ')' ||
                    coalesce(' COLLATE ' || quote_ident(s.nspname) || '.' || quote_ident(c.collname), '')
               FROM generate_series(1, i.indnkeyatts) k(n)
               LEFT JOIN pg_collation c ON c.oid = i.indcollation[k.n - 1]
               LEFT JOIN pg_namespace s ON s.oid = c.collnamespace ORDER BY k.n)
  FROM pg_index i JOIN pg_class t ON t.oid = i.indrelid JOIN pg_namespace s ON s.oid = t.relnamespace
 WHERE i.indisunique AND i.indisvalid AND t.relkind IN ('r', 'm')
   AND s.nspname !~ '^pg_' AND s.nspname <> 'information_schema'
 ORDER BY 2, 1"""
_BY_ROWS: Final = """
SELECT set_config('enable_indexscan', 'off', false), set_config('enable_indexonlyscan', 'off', false),
       set_config('enable_bitmapscan', 'off', false), set_config('temp_file_limit', %s, false)"""


def ask_without_indexes(session: ScratchSession, room_bytes: int) -> None:
    """Let the rest of a session read tables, and sort on disk in no more than half the room.

    The disk may be others' as well.  Raises QueryFailed.
    """
    session.rows(_BY_ROWS, [str(room_bytes // 2048)])


def unique_queries(session: ScratchSession) -> list[tuple[str, str]]:
    """Return what to ask for duplicates, each with what it is of.  Raises QueryFailed."""
    found = []
    for index, table, counts_nulls, predicate, keys in session.rows(UNIQUE_KEYS, rows_max=_KEYS_MAX + 1):
        assert isinstance(keys, list)
        conditions = [] if predicate is None else [f"({predicate})"]
        if not counts_nulls:
            conditions += [f"{key} IS NOT NULL" for key in keys]
        where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
        query = f"SELECT 1 FROM ONLY {table}{where} GROUP BY {', '.join(keys)} HAVING count(*) > 1 LIMIT 1"
        found.append((f"unique key {index} of {table}", query))
    return found
