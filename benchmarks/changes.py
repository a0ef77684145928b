"""Changes between two backups: so many rows, drawn at random over all tables of notes."""

from __future__ import annotations

from benchmarks.cluster import BenchCluster

# An edited note is a new row elsewhere, and new entries in both indexes.
_EDIT = """
UPDATE {table} SET note = note || ' reviewed', observations = observations || '{{"reviewed": true}}'
WHERE id IN (SELECT 1 + floor(random() * {rows})::bigint FROM generate_series(1, {count}))
"""


class Notes:
    """The tables of notes of a cluster, each with its rows, for edits by number."""

    def __init__(self, cluster: BenchCluster) -> None:
        self._cluster = cluster
        self._rows: dict[str, int] = {}

    def add(self, table: str) -> None:
        """Take a filled table in: index its rows by their number."""
        self._cluster.execute(f"CREATE UNIQUE INDEX ON {table} (id)")
        self._rows[table] = int(str(self._cluster.execute(f"SELECT count(*) FROM {table}")[0][0]))
        self._cluster.execute(f"VACUUM (FREEZE, ANALYZE) {table}")
        self._cluster.execute("CHECKPOINT")

    def edit(self, count: int) -> None:
        """Edit ``count`` rows, over the tables as they are large, and have them written to the files."""
        total = sum(self._rows.values())
        for table, rows in self._rows.items():
            self._cluster.execute(_EDIT.format(table=table, rows=rows, count=max(1, count * rows // total)))
        self._cluster.execute("CHECKPOINT")
