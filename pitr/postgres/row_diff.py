"""Which rows a dry run changes: triggers note each row before and after, in the transaction that is undone.

Tables are found by the statistics of the transaction, so nobody needs to name them; also those that a
trigger or a foreign key of the owner's changes.  TRUNCATE is not seen, nor are foreign tables.

Reference: PostgreSQL manual, "The Cumulative Statistics System" (pg_stat_xact_user_tables), "CREATE TRIGGER".
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pitr.postgres.applied_events import ReplaySession
from pitr.postgres.sql_errors import mapped_errors

TABLES_MAX: Final = 1_000
SAMPLES_MAX: Final = 20
"""Rows of one table that are shown; beyond, they are counted."""
_TEXT_CHARS_MAX: Final = 2_000

_NOTES: Final = """
CREATE TEMPORARY TABLE pitr_noted (
    number bigint GENERATED ALWAYS AS IDENTITY, relation oid, key jsonb, before jsonb, after jsonb
);
CREATE FUNCTION pitr.note_row() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    before_row jsonb; after_row jsonb; before_key jsonb; after_key jsonb;
BEGIN
    IF TG_OP <> 'INSERT' THEN
        before_row := to_jsonb(OLD);
        SELECT jsonb_agg(before_row -> name) INTO before_key FROM unnest(TG_ARGV) AS name;
    END IF;
    IF TG_OP <> 'DELETE' THEN
        after_row := to_jsonb(NEW);
        SELECT jsonb_agg(after_row -> name) INTO after_key FROM unnest(TG_ARGV) AS name;
    END IF;
    IF TG_OP = 'UPDATE' AND before_key IS DISTINCT FROM after_key THEN
        INSERT INTO pg_temp.pitr_noted (relation, key, before) VALUES (TG_RELID, before_key, before_row);
        INSERT INTO pg_temp.pitr_noted (relation, key, after) VALUES (TG_RELID, after_key, after_row);
    ELSE
        INSERT INTO pg_temp.pitr_noted (relation, key, before, after)
        VALUES (TG_RELID, coalesce(after_key, before_key), before_row, after_row);
    END IF;
    RETURN NULL;
END $$;
"""
_TOUCHED: Final = """
SELECT format('%I.%I', schemaname, relname) FROM pg_stat_xact_user_tables
WHERE n_tup_ins + n_tup_upd + n_tup_del > 0 AND schemaname <> 'pitr' AND schemaname NOT LIKE 'pg\\_%'
ORDER BY 1 LIMIT 1001
"""
_KEY: Final = """
SELECT a.attname FROM pg_index i
JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey)
WHERE i.indrelid = to_regclass(%s) AND i.indisprimary ORDER BY array_position(i.indkey::int2[], a.attnum)
"""
# Without a primary key each note stands for itself.
_NET: Final = """
CREATE TEMPORARY TABLE pitr_net AS
SELECT relation, max(number) AS number,
       (array_agg(before ORDER BY number))[1] AS before, (array_agg(after ORDER BY number DESC))[1] AS after
FROM pg_temp.pitr_noted GROUP BY relation, key, CASE WHEN key IS NULL THEN number END
"""
_COUNTS: Final = """
SELECT relation::regclass::text, count(*) FILTER (WHERE before IS NULL AND after IS NOT NULL),
       count(*) FILTER (WHERE before IS NOT NULL AND after IS NOT NULL AND before <> after),
       count(*) FILTER (WHERE before IS NOT NULL AND after IS NULL)
FROM pg_temp.pitr_net GROUP BY 1 ORDER BY 1
"""
_SAMPLES: Final = """
SELECT name, before::text, after::text FROM (
    SELECT relation::regclass::text AS name, before, after, number,
           row_number() OVER (PARTITION BY relation ORDER BY number) AS place
    FROM pg_temp.pitr_net WHERE before IS DISTINCT FROM after
) AS one WHERE place <= %s ORDER BY name, number
"""


@dataclass(frozen=True, slots=True)
class RowChange:
    """One row before and after, as JSON; None where it is not."""

    before: str | None
    after: str | None

    def changed_fields(self) -> tuple[str, ...]:
        """Return the names of the columns that differ; none for a row that is new or gone."""
        if self.before is None or self.after is None:
            return ()
        before, after = json.loads(self.before), json.loads(self.after)
        return tuple(sorted(name for name in after if before.get(name) != after[name]))


@dataclass(frozen=True, slots=True)
class TableDiff:
    """What became of one table's rows, net; ``samples`` are the first of them."""

    table: str
    inserted: int
    updated: int
    deleted: int
    samples: tuple[RowChange, ...] = ()


class RowDiff:
    """Watches the tables that one transaction changes.  The transaction must be undone."""

    def __init__(self, session: ReplaySession) -> None:
        """Begin, in an open transaction.  Raises ServerRefused, ServerUnavailable."""
        self._session = session.connection
        self._watched: set[str] = set()
        with mapped_errors():
            self._session.execute(_NOTES.encode())

    def unwatched(self) -> Sequence[str]:
        """Return the tables, quoted, of which rows were changed in this transaction unwatched."""
        with mapped_errors():
            rows = self._session.execute(_TOUCHED.encode()).fetchall()
        return [str(name) for (name,) in rows if name not in self._watched][:TABLES_MAX]

    def watch(self, tables: Sequence[str]) -> None:
        """Watch tables from now on."""
        for table in tables:
            self._watched.add(table)
            with mapped_errors():
                key = self._session.execute(_KEY.encode(), (table,)).fetchall()
                names = ", ".join(_literal(str(name)) for (name,) in key)
                # The name is one that the server quoted.
                self._session.execute(
                    (
                        f"CREATE TRIGGER zzzz_pitr_note AFTER INSERT OR UPDATE OR DELETE ON {table}"
                        f" FOR EACH ROW EXECUTE FUNCTION pitr.note_row({names})"
                    ).encode()
                )

    def result(self) -> list[TableDiff]:
        """Return what was changed so far; once only."""
        with mapped_errors():
            self._session.execute(_NET.encode())
            counts = self._session.execute(_COUNTS.encode()).fetchall()
            samples = self._session.execute(_SAMPLES.encode(), (SAMPLES_MAX,)).fetchall()
        return [
            TableDiff(
                str(table),
                int(str(inserted)),
                int(str(updated)),
                int(str(deleted)),
                tuple(RowChange(_cut(b), _cut(a)) for name, b, a in samples if name == table),
            )
            for table, inserted, updated, deleted in counts
        ]


def _cut(text: object) -> str | None:
    if text is None:
        return None
    whole = str(text)
    # It stays JSON, for whoever reads it as such.
    return whole if len(whole) <= _TEXT_CHARS_MAX else json.dumps({"…": whole[:_TEXT_CHARS_MAX]})


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
