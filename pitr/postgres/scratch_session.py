"""A session with a scratch server: what a verification asks it.  Read-only unless said otherwise.

The cluster's own objects are strangers' code: nothing is preloaded, names are looked up in ``pg_catalog``
unless said otherwise, and each statement has a time limit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import TracebackType

import psycopg
from psycopg.conninfo import make_conninfo

from pitr.errors import PitrError

_CONNECT_TIMEOUT_S = 20
ROWS_MAX = 100_000
_FETCHED_ROWS = 1000
# 16384: the first number that PostgreSQL gives to what is made after initdb (access/transam.h).
_CLOSED = """
SELECT datname, CASE WHEN datconnlimit = -2 THEN 'a DROP DATABASE of it was cut short'
                     WHEN NOT datallowconn THEN 'it lets nobody in' ELSE 'it is a template' END
  FROM pg_database
 WHERE (datistemplate OR NOT datallowconn OR datconnlimit = -2)
   AND NOT (oid < 16384 AND datname = 'template0' AND NOT datallowconn)
   AND NOT (oid < 16384 AND datname = 'template1' AND NOT EXISTS (SELECT FROM pg_class WHERE oid >= 16384))
 ORDER BY 1"""


class QueryFailed(PitrError):
    """A statement did not succeed; ``is_timeout`` if it was too slow."""

    def __init__(self, message: str, *, detail: str | None = None, is_timeout: bool = False) -> None:
        super().__init__(message, detail=detail)
        self.is_timeout = is_timeout


class ScratchSession:
    """One session with one database.  A context manager; not thread-safe."""

    def __init__(
        self,
        dsn: str,
        *,
        superuser: str | None,
        database: str,
        timeout_s: float,
        is_read_only: bool = True,
        search_path: str = "pg_catalog",
    ) -> None:
        """Connect as ``superuser``, None: as ``dsn`` says.  Raises QueryFailed."""
        user = "" if superuser is None else superuser
        options = {
            "statement_timeout": str(max(1, round(timeout_s * 1000))),
            "lock_timeout": str(max(1, round(timeout_s * 1000))),
            "default_transaction_read_only": "on" if is_read_only else "off",
            # An ALTER ROLE or ALTER DATABASE in the restored cluster must not decide what runs here.
            "session_preload_libraries": "",
            "search_path": search_path,
            "row_security": "off",
            "TimeZone": "UTC",
            "DateStyle": "ISO",
            "IntervalStyle": "postgres",
            "bytea_output": "hex",
            "extra_float_digits": "1",
        }
        try:
            self._session = psycopg.connect(
                make_conninfo(dsn, **({"user": user} if user else {})),
                dbname=database,
                autocommit=True,
                connect_timeout=_CONNECT_TIMEOUT_S,
                application_name="pitr verify",
                options=" ".join(f"-c {name}={value}" for name, value in options.items()),
            )
        except psycopg.Error as cause:
            raise QueryFailed(f"no session with database {database}", detail=str(cause).strip()) from cause

    def __enter__(self) -> ScratchSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the session.  May be repeated."""
        self._session.close()

    def rows(
        self, statement: str, params: Sequence[object] | None = None, *, rows_max: int | None = None
    ) -> list[tuple[object, ...]]:
        """Run a statement and return its rows; of several statements those of all.

        At most ``rows_max``, if that is given; without it ROWS_MAX, and more are an error: who counts on all
        of them must not judge by some.  Raises QueryFailed.
        """
        if rows_max is None:
            found = self.rows(statement, params, rows_max=ROWS_MAX + 1)
            if len(found) > ROWS_MAX:
                raise QueryFailed(f"there are more than {ROWS_MAX} rows to look at", detail=statement[:500])
            return found
        found = []
        try:
            cursor = self._session.execute(statement.encode(), params)
            while True:
                if cursor.description:
                    found += cursor.fetchmany(rows_max - len(found))
                if len(found) >= rows_max or not cursor.nextset():
                    return found
        except psycopg.Error as cause:
            raise _failed(cause) from cause

    def each_row(self, statement: str) -> Iterator[tuple[object, ...]]:
        """Run a query and yield its rows, however many, a few at a time.  Raises QueryFailed."""
        try:
            with self._session.transaction(), self._session.cursor("each_row") as cursor:
                cursor.itersize = _FETCHED_ROWS
                yield from cursor.execute(statement.encode())
        except psycopg.Error as cause:
            raise _failed(cause) from cause

    def value(self, statement: str, params: Sequence[object] | None = None) -> object:
        """Return the first column of the first row, None without one.  Raises QueryFailed."""
        found = self.rows(statement, params, rows_max=1)
        return found[0][0] if found else None


def _failed(cause: psycopg.Error) -> QueryFailed:
    said = str(cause).strip()
    is_timeout = isinstance(cause, psycopg.errors.QueryCanceled)
    return QueryFailed(
        said.splitlines()[0] if said else type(cause).__name__, detail=said, is_timeout=is_timeout
    )


def databases_of(dsn: str, *, superuser: str | None, timeout_s: float) -> list[str]:
    """Return the databases that let anybody in, but for templates.  Raises QueryFailed."""
    with ScratchSession(dsn, superuser=superuser, database="template1", timeout_s=timeout_s) as session:
        # A DROP DATABASE that was cut leaves one with connection limit -2, which nobody may use.
        found = session.rows(
            "SELECT datname FROM pg_database"
            " WHERE datallowconn AND NOT datistemplate AND datconnlimit <> -2 ORDER BY 1"
        )
    return [str(name) for (name,) in found]


def closed_databases_of(dsn: str, *, superuser: str | None, timeout_s: float) -> list[tuple[str, str]]:
    """Return the databases that ``databases_of`` leaves out, and why; none that are as initdb made them.

    Raises QueryFailed.
    """
    with ScratchSession(dsn, superuser=superuser, database="template1", timeout_s=timeout_s) as session:
        found = session.rows(_CLOSED)
    return [(str(name), str(reason)) for name, reason in found]
