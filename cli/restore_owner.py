"""Who owns restored files: chosen when root restores, and told where PostgreSQL would refuse them."""

from __future__ import annotations

import os
import pwd
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from cli.errors import UsageRefused
from pitr.postgres.server_user import ServerUser, server_user

if TYPE_CHECKING:
    from cli.output import Output

# As whom every distribution's PostgreSQL runs.
_USUAL: Final = "postgres"


def choose_owner(owner: str | None, fetch_command: Sequence[str]) -> ServerUser | None:
    """Return who owns the files and runs PostgreSQL; None for whoever runs this.

    ``owner`` is what was typed; without it root's restore takes a user that can run ``fetch_command``.
    Raises UsageRefused, ServerRefused.
    """
    if owner is None:
        return server_user(must_run=(*fetch_command, "--help"))
    if os.geteuid() != 0:
        raise UsageRefused("--owner needs root", hint="without root the files belong to who restores")
    try:
        entry = pwd.getpwnam(owner)
    except KeyError as error:
        raise UsageRefused(f"there is no user {owner!r} on this host") from error
    if entry.pw_uid == 0:
        raise UsageRefused("PostgreSQL does not run as root", hint="name another --owner, such as postgres")
    return ServerUser(entry.pw_uid, entry.pw_gid)


def warn_of_owner(output: Output, user: ServerUser | None) -> None:
    """Warn, before a restore without ``--owner``, if its files are to belong to no user of PostgreSQL."""
    if user is None:
        return
    name = "root" if user.is_mapped else _name_of(user.uid)
    if name == _USUAL:
        return
    warning, *more = owner_lines(name, has_usual=_exists(_USUAL))
    output.warn(warning)
    for line in more:
        output.note(line)


def owner_lines(name: str, *, has_usual: bool) -> tuple[str, str, str]:
    """Return what is wrong with files that belong to ``name``, why, and what to do."""
    better = _USUAL if has_usual else "USER"
    why = f"user {_USUAL} cannot run pitr where it is" if has_usual else f"there is no user {_USUAL} here"
    return (
        f"the restored files will belong to {name}; PostgreSQL refuses files that are not its own user's",
        f"  why:  this runs as root without --owner, and {why}",
        f"  next: end this, and add --owner {better}",
    )


def _name_of(uid: int) -> str:
    with suppress(KeyError):
        return pwd.getpwuid(uid).pw_name
    return f"user {uid}"


def _exists(name: str) -> bool:
    with suppress(KeyError):
        pwd.getpwnam(name)
        return True
    return False
