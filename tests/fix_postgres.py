"""Real PostgreSQL servers for the tests: made on demand, and stopped whatever happens."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import pytest
from fix_ports import free_port
from psycopg import sql as psql

from pitr.errors import PitrError, ServerRefused
from pitr.postgres.installation import Installation, find_pg
from pitr.postgres.instance import Instance
from pitr.postgres.server_user import ServerUser, hand_over, readable_installation, server_user

START_TIMEOUT_S = 90.0
_START_TRIES_MAX = 5
_DEFAULT_SETTINGS = {
    "wal_level": "replica",
    "max_wal_senders": "10",
    "max_replication_slots": "10",
    "listen_addresses": "127.0.0.1",
    "fsync": "off",
    "log_min_messages": "log",
}
SUMMARIES_SINCE = 17


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test with the argument ``pg_installation`` on each major version."""
    if "pg_installation" in metafunc.fixturenames:
        metafunc.parametrize("pg_installation", majors(), indirect=True, ids=lambda major: f"pg{major}")


@pytest.hookimpl(tryfirst=True)  # before ``-m`` is looked at
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave to ``make test-all`` what is long and ``mostly_17``, on 18."""
    for item in items:
        on = (
            item.callspec.id.split("-")
            if isinstance(item, pytest.Function) and hasattr(item, "callspec")
            else []
        )
        if "pg18" in on and item.get_closest_marker("mostly_17") is not None:
            item.add_marker(pytest.mark.slow)


ONLY_17 = pytest.mark.parametrize("module_major", [17], indirect=True, ids=["pg17"])


def majors(*, slow: Sequence[int] = ()) -> list[object]:
    """Return the major versions to run on, marked; ``slow`` ones only in ``make test-all``."""
    found: list[object] = [
        pytest.param(major, marks=pytest.mark.slow) if major in slow else major for major in (17, 18)
    ]
    return [
        *found,
        pytest.param(15, marks=pytest.mark.needs_apt),
        pytest.param(16, marks=pytest.mark.slow),
    ]


def _preferred() -> Path | None:
    named = os.environ.get("PITR_PG_BIN")
    return Path(named) if named else None


@dataclass(frozen=True, slots=True)
class PostgresHouse:
    """What all servers of a test run share."""

    user: ServerUser | None
    cache_dir: Path
    _found: dict[int, Installation] = field(default_factory=dict)

    def installation(self, major: int) -> Installation:
        """Return the installation that the server's user can run.  Fails where there is none."""
        if major not in self._found:
            found = find_pg(major, preferred=_preferred())
            self._found[major] = readable_installation(found, self.user, self.cache_dir)
        return self._found[major]


@pytest.fixture(scope="session")
def postgres_house() -> Iterator[PostgresHouse]:
    """The server's user, and copies of the wheels where that user cannot read them."""
    cache_dir = Path(tempfile.mkdtemp(prefix="pitr-pg-"))
    cache_dir.chmod(0o755)
    # restore_command runs this Python as the server's user.
    yield PostgresHouse(server_user(must_run=[sys.executable, "--version"]), cache_dir)
    shutil.rmtree(cache_dir)


@pytest.fixture
def pg_installation(request: pytest.FixtureRequest, postgres_house: PostgresHouse) -> Installation:
    """Each major version in turn: 17 and 18; in `make test-all` also 15 and 16."""
    return postgres_house.installation(request.param)


@pytest.fixture
def pg17(postgres_house: PostgresHouse) -> Installation:
    """The installation for tests that need no other version."""
    return postgres_house.installation(17)


@pytest.fixture
def server_user_or_none(postgres_house: PostgresHouse) -> ServerUser | None:
    """Whom PostgreSQL runs as; None when the tests do not run as root."""
    return postgres_house.user


@pytest.fixture
def server_tmp_path() -> Iterator[Path]:
    """A folder with a short path that the server's user may pass through: pytest's own is closed to it."""
    folder = Path(tempfile.mkdtemp(prefix="pitr-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module", params=majors(slow=[18]), ids=lambda major: f"pg{major}")
def module_major(request: pytest.FixtureRequest) -> int:
    """Each major version in turn, for what the tests of a module share: 17; in `make test-all` the others."""
    major: int = request.param
    return major


@dataclass(slots=True)
class RunningPostgres:
    """One server of the tests, and short ways to ask it."""

    instance: Instance
    host: str = "127.0.0.1"

    @property
    def dsn(self) -> str:
        """The conninfo of the superuser, over the Unix socket."""
        return self.instance.dsn

    @property
    def tcp_dsn(self) -> str:
        return f"host={self.host} port={self.port} user=postgres dbname=postgres"

    @property
    def data_dir(self) -> Path:
        return self.instance.data_dir

    @property
    def port(self) -> int:
        return self.instance.port

    def execute(self, sql: str, *params: object, dbname: str = "postgres") -> list[tuple[object, ...]]:
        """Run one statement in a transaction of its own; return its rows."""
        with psycopg.connect(self.dsn, dbname=dbname, autocommit=True, connect_timeout=20) as connection:
            cursor = connection.execute(sql.encode(), params or None)
            return cursor.fetchall() if cursor.description else []

    def value(self, sql: str, *params: object, dbname: str = "postgres") -> object:
        """Return the first column of the first row."""
        return self.execute(sql, *params, dbname=dbname)[0][0]

    def checkpoint(self) -> None:
        self.execute("CHECKPOINT")

    def switch_wal(self) -> str:
        """End the WAL segment; return the LSN where it ended."""
        return str(self.value("SELECT pg_switch_wal()"))

    def restart(self, mode: str = "fast") -> None:
        self.instance.restart(mode, timeout_s=START_TIMEOUT_S)

    def start(self, settings: Mapping[str, str] | None = None) -> None:
        """Start it again, after a stop or a kill, with the default settings and these."""
        self.instance.start(
            server_settings(self.instance.installation, settings), timeout_s=START_TIMEOUT_S, wait=True
        )

    def stop(self, mode: str = "fast") -> None:
        self.instance.stop(mode, timeout_s=START_TIMEOUT_S)

    def kill(self) -> None:
        self.instance.kill()


PostgresFactory = Callable[..., RunningPostgres]


@pytest.fixture
def postgres_factory(postgres_house: PostgresHouse) -> Iterator[PostgresFactory]:
    """Return a callable that makes a new cluster and starts it.

    ``factory(major=17, settings={…}, name="primary", initdb=(), installation=None)``; all of them are
    killed and removed at the end of the test.
    """
    with _Servers(postgres_house) as make:
        yield make


@pytest.fixture(scope="module")
def module_postgres_factory(postgres_house: PostgresHouse) -> Iterator[PostgresFactory]:
    """Return the same for servers that the tests of one module share."""
    with _Servers(postgres_house) as make:
        yield make


class _Servers:
    """The servers of one fixture: makes them, and ends them all."""

    def __init__(self, house: PostgresHouse) -> None:
        self._house = house
        self._instances: list[Instance] = []
        self._folders: list[Path] = []

    def __enter__(self) -> PostgresFactory:
        return self._make

    def __exit__(self, *_: object) -> None:
        failures = []
        for instance in self._instances:
            try:
                instance.kill()
            except PitrError as failure:  # the others must be stopped all the same
                failures.append(failure)
        for folder in self._folders:
            shutil.rmtree(folder, ignore_errors=True)
        if failures:
            raise failures[0]

    def _make(
        self,
        major: int = 17,
        settings: Mapping[str, str] | None = None,
        name: str = "primary",
        initdb: Sequence[str] = (),
        installation: Installation | None = None,
    ) -> RunningPostgres:
        installation = installation or self._house.installation(major)
        folder = Path(tempfile.mkdtemp(prefix=f"pitr-{name[:12]}-"))
        self._folders.append(folder)
        folder.chmod(0o755)
        for attempt in range(1, _START_TRIES_MAX + 1):
            instance = Instance(
                installation,
                folder / "data",
                user=self._house.user,
                socket_dir=folder / "s",
                port=free_port(),
                log_path=folder / "log",
            )
            if attempt == 1:
                instance.init(["--no-sync", *initdb])
                hand_over(folder / "data", self._house.user)
            self._instances.append(instance)
            try:
                instance.start(server_settings(installation, settings), timeout_s=START_TIMEOUT_S)
            except ServerRefused as refusal:
                # Another process may have taken the port meanwhile; anything else would fail again.
                if attempt == _START_TRIES_MAX or "could not bind" not in (folder / "log").read_text():
                    raise
                print(f"port {instance.port} was taken: {refusal}")
                continue
            break
        return RunningPostgres(instance)


def server_settings(installation: Installation, settings: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the settings of the tests' servers, with these on top; no summaries before PostgreSQL 17."""
    result = dict(_DEFAULT_SETTINGS)
    if installation.major >= SUMMARIES_SINCE:
        result["summarize_wal"] = "on"
    result |= settings or {}
    if installation.major < SUMMARIES_SINCE:
        result.pop("summarize_wal", None)
    return result


_TABLES = """
    SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'm') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
    ORDER BY 1, 2"""


def table_digests(dsn: str, databases: Sequence[str] = ("postgres",)) -> dict[str, str]:
    """Return ``{"database.schema.table": "rows:digest"}`` of all user tables; equal tables give equal texts.

    One transaction per database.  The digest does not depend on the order of the rows.
    """
    digests = {}
    for database in databases:
        with psycopg.connect(dsn, dbname=database, connect_timeout=20) as connection:
            connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            connection.execute("SET LOCAL TimeZone = 'UTC'")
            connection.execute("SET LOCAL DateStyle = 'ISO'")
            for schema, table in connection.execute(_TABLES).fetchall():
                query = psql.SQL(
                    "SELECT count(*), coalesce(sum(hashtextextended(t::text, 0)), 0) FROM {} t"
                ).format(psql.Identifier(schema, table))
                row = connection.execute(query).fetchone()
                assert row is not None
                digests[f"{database}.{schema}.{table}"] = f"{row[0]}:{row[1]}"
    return digests
