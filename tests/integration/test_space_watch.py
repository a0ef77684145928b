"""The daemon asks for a backup when a tablespace is newer than the last one, and not again and again."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from fix_postgres import PostgresFactory, PostgresHouse

from cli.space_watch import ASK_EVERY_S, SpaceWatch
from pitr.postgres.server_user import hand_over


class Log:
    """Keeps what is said."""

    def __init__(self) -> None:
        self.warnings: list[tuple[str, dict[str, object]]] = []
        self.hidden: list[str] = []

    def warning(self, text: str, **more: object) -> None:
        self.warnings.append((text, more))

    def debug(self, text: str, **_more: object) -> None:
        self.hidden.append(text)


def test_a_tablespace_that_the_last_backup_lacks_makes_one_due(
    postgres_factory: PostgresFactory, postgres_house: PostgresHouse, server_tmp_path: Path
) -> None:
    server = postgres_factory(17, settings={"allow_in_place_tablespaces": "on"})
    log, asked, seconds = Log(), [], [1000.0]
    backups = SimpleNamespace(last=None, is_running=False)
    watch = SpaceWatch(
        lambda: server.dsn,
        cast(Any, backups),
        ask=lambda: asked.append(seconds[0]),
        log=cast(Any, log),
        monotonic=lambda: seconds[0],
    )
    server.execute("CREATE TABLESPACE inside LOCATION ''")
    space = server_tmp_path / "later"
    space.mkdir()
    hand_over(space, postgres_house.user)
    watch.look()
    assert not asked, "without a backup the first is due anyway"
    backups.last = SimpleNamespace(backup="20261130T170000Z-0", tablespaces=())
    watch.look()
    assert not asked, "one in the data directory is part of it"
    server.execute(f"CREATE TABLESPACE later LOCATION '{space}'")
    backups.is_running = True
    watch.look()
    assert not asked, "what runs may have it"
    backups.is_running = False
    watch.look()
    watch.look()
    assert asked == [1000.0]
    oid = int(str(server.value("SELECT oid FROM pg_tablespace WHERE spcname = 'later'")))
    ((text, more),) = log.warnings
    assert "lacks a tablespace" in text
    assert more == {"tablespaces": f"later ({oid})", "backup": "20261130T170000Z-0"}
    seconds[0] += ASK_EVERY_S
    watch.look()
    assert asked == [1000.0, 1000.0 + ASK_EVERY_S]
    seconds[0] += ASK_EVERY_S
    backups.last = SimpleNamespace(backup="next", tablespaces=(SimpleNamespace(oid=oid),))
    watch.look()
    assert len(asked) == 2
    server.stop()
    backups.last = SimpleNamespace(backup="next", tablespaces=())
    watch.look()
    assert len(asked) == 2
    assert log.hidden == ["the tablespaces cannot be looked at"]
