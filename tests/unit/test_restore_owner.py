"""Whose restored files are, told where PostgreSQL would refuse them."""

from __future__ import annotations

import io
import pwd

from cli.output import Output
from cli.restore_owner import owner_lines, warn_of_owner
from pitr.postgres.server_user import ServerUser


def test_files_of_root_and_of_nobody_are_told_with_the_next_step() -> None:
    nobody = pwd.getpwnam("nobody")
    for user, name in (
        (ServerUser(nobody.pw_uid, nobody.pw_gid, is_mapped=True), "root"),
        (ServerUser(nobody.pw_uid, nobody.pw_gid), "nobody"),
    ):
        output = Output(stdout=io.StringIO(), stderr=io.StringIO())
        warn_of_owner(output, user)
        assert output.warnings == [
            f"the restored files will belong to {name}; PostgreSQL refuses files that are not its own user's"
        ]
        told = output.stderr.getvalue()
        assert [line[:8] for line in told.splitlines()] == ["warning:", "  why:  ", "  next: "]
        assert "--owner" in told


def test_who_is_not_root_is_told_nothing() -> None:
    output = Output(stdout=io.StringIO(), stderr=io.StringIO())
    warn_of_owner(output, None)
    assert output.stderr.getvalue() == ""


def test_the_next_step_names_postgres_only_where_there_is_such_a_user() -> None:
    assert owner_lines("root", has_usual=True)[2].endswith("--owner postgres")
    assert "there is no user postgres here" in owner_lines("nobody", has_usual=False)[1]
    assert owner_lines("nobody", has_usual=False)[2].endswith("--owner USER")
