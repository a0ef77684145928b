"""Configuration files outside of the data directory: what they include, their names in a backup.  Pure.

Reads only as much of PostgreSQL's files as names other files; a mistake in one is the server's matter.

Reference: PostgreSQL src/backend/utils/misc/guc-file.l, src/backend/libpq/hba.c (tokenize_auth_file).
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

# The settings that name a file; they are in every backup's manifest.
FILE_SETTINGS: Final = ("config_file", "hba_file", "ident_file")
# Where such files are in a backup, and below the data directory that is restored from it: docs/format.md §8.
CONFIG_DIRECTORY: Final = b"pitr-config"
# "settings": name = value, as in postgresql.conf.  "access": tokens, as in pg_hba.conf and pg_ident.conf.
Syntax: TypeAlias = Literal["settings", "access"]

_WORD: Final = r"(include_if_exists|include_dir|include)"
_SETTING: Final = re.compile(
    rf"[ \t]*{_WORD}(?:[ \t]*=[ \t]*|[ \t]+)(?:'((?:[^'\\]|''|\\.)*)'|([A-Za-z_/.][^\s#']*))", re.IGNORECASE
)
_ACCESS: Final = re.compile(rf'[ \t]*{_WORD}[ \t]+(?:"([^"]*)"|([^\s,"#]+))')
_LIST: Final = re.compile(r'(?:^|[\s,])@(?:"([^"]*)"|([^\s,"#]+))')
_ESCAPED: Final = re.compile(r"''|\\(.)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Include:
    """A file, or a directory whose ``*.conf`` are meant; ``path`` is absolute."""

    path: str
    is_directory: bool


def includes_of(text: str, syntax: Syntax, path: str) -> Iterator[Include]:
    """Yield what the file at ``path``, which holds ``text``, includes, in its order."""
    folder = posixpath.dirname(path)
    for line in text.splitlines():
        match = (_SETTING if syntax == "settings" else _ACCESS).match(line)
        if match is not None:
            word, quoted, plain = match.groups()
            named = plain if quoted is None else quoted
            if syntax == "settings" and quoted is not None:
                named = _ESCAPED.sub(lambda found: found[1] or "'", quoted)
            yield Include(_absolute(folder, named), word.lower() == "include_dir")
        elif syntax == "access":
            for quoted, plain in _LIST.findall(line.partition("#")[0]):
                yield Include(_absolute(folder, quoted or plain), is_directory=False)


def is_included_name(name: str) -> bool:
    """Tell whether ``include_dir`` takes a file of this name (GetConfFilesInDir)."""
    return name.endswith(".conf") and not name.startswith(".")


def stored_path(path: str) -> bytes | None:
    """Return what the file at an absolute path is called in a backup; None if it cannot be called so."""
    whole = posixpath.normpath(path)
    if not whole.startswith("/") or whole.startswith("//") or whole == "/" or "\0" in whole:
        return None
    return CONFIG_DIRECTORY + whole.encode("utf-8", "surrogateescape")


def parents_of(path: bytes) -> list[bytes]:
    """Return the directories above a stored path, from the top."""
    parts = path.split(b"/")
    return [b"/".join(parts[:count]) for count in range(1, len(parts))]


def _absolute(folder: str, named: str) -> str:
    return posixpath.normpath(posixpath.join(folder, named))
