"""The configuration file: found, read, and all its mistakes told in one message.

TOML by tomllib; the schema is in ``cli.config_schema``.  Secrets never stand in it, only
the paths of files that hold them.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cli.config_mistakes import MISTAKES_MAX, mistakes_refused
from cli.errors import ConfigRefused, UsageRefused
from cli.settings import Settings
from pitr.errors import NotInitialised

if TYPE_CHECKING:
    from cli.config_mistakes import Mistake

# A configuration has a few kilobytes; a larger file is the wrong file, and is not read into memory.
CONFIG_BYTES_MAX = 1024 * 1024
# A key of thousands of dotted parts takes a parser minutes; a line with three hosts has a dozen dots.
_DOTS_MAX = 64
_HEADER = re.compile(r"\s*(\[\[?)\s*([A-Za-z0-9_.\"'-]+)\s*\]")
_KEY = re.compile(r"\s*([A-Za-z0-9_\"'-]+)\s*=")


def config_places() -> tuple[Path, ...]:
    """Return where a configuration is looked for, in order."""
    return (
        Path("pitr.toml"),
        Path("~/.config/pitr/pitr.toml").expanduser(),
        Path("/etc/pitr/pitr.toml"),
    )


def find_config_or_none(given: Path | None) -> Path | None:
    """Return the configuration's path; None if none is given and none is at its usual places."""
    if given is not None:
        return given
    return next((place for place in config_places() if may_be_there(place)), None)


def find_config(given: Path | None) -> Path:
    """Return the configuration's path.  Raises NotInitialised; UsageRefused if a given one is missing."""
    found = find_config_or_none(given)
    if found is None:
        raise NotInitialised(
            "no configuration was found",
            detail="looked for " + ", ".join(str(place) for place in config_places()),
            hint="pitr init, or name the file with --config or $PITR_CONFIG",
        )
    if not may_be_there(found):
        raise UsageRefused(
            f"there is no configuration file {found}",
            detail="it was named by --config or $PITR_CONFIG",
            hint="check the name; pitr init makes a configuration",
        )
    return found


def may_be_there(path: Path) -> bool:
    """Tell whether something is at ``path``; in doubt yes, so that reading it tells what is wrong.

    A file that may not be looked at, or a link to nothing, must not be passed over for another one; and
    ``Path.exists`` raises where a directory may not be searched.
    """
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def load_settings(path: Path) -> Settings:
    """Read and check a configuration file.  Raises ConfigRefused with every mistake found."""
    text = _read(path)
    if any(line.count(".") > _DOTS_MAX for line in text.splitlines()):
        raise _refusal(path, [f"this is not a configuration: a line has more than {_DOTS_MAX} dots"])
    try:
        tables = tomllib.loads(text)
    except ValueError as error:  # also a number of more digits than Python reads
        raise _refusal(path, [f"this is not TOML: {error}"]) from error
    except RecursionError as error:
        raise _refusal(path, ["this is not a configuration: it nests too deeply"]) from error
    # pydantic takes a tenth of a second to import; only who reads a configuration pays for it.
    from cli.config_schema import check_tables

    checked = check_tables(tables, base=path.absolute().parent, path=path.absolute())
    if isinstance(checked, Settings):
        return checked
    raise _refusal(path, _tell(checked, text), len(checked))


def _tell(found: Sequence[Mistake], text: str) -> list[str]:
    """Return a line for each mistake that is told, in the order of the file; those without a place last."""
    # Cut before they are looked for: each search reads the whole file.
    placed = [(line_of(text, mistake.place), mistake) for mistake in found[:MISTAKES_MAX]]
    placed.sort(key=lambda pair: (pair[0] is None, pair[0] or 0))
    return [
        ("" if line is None else f"line {line}: ") + f"{mistake.name}: {mistake.text}"
        for line, mistake in placed
    ]


def line_of(text: str, place: tuple[str | int, ...]) -> int | None:
    """Return the line where ``place`` (table, position in its array, key …) stands; None if it is not there.

    Good for the usual forms; what is written in inline tables is found at their key.
    """
    wanted = [str(part) for part in place]
    counts: dict[str, int] = {}
    prefix: list[str] = []
    best: tuple[int, int] | None = None
    for number, line in enumerate(text.splitlines(), 1):
        here = prefix
        if header := _HEADER.match(line):
            name = header[2].replace('"', "").replace("'", "")
            prefix = name.split(".")
            if header[1] == "[[" and prefix != wanted:
                prefix.append(str(counts.get(name, 0)))
                counts[name] = counts.get(name, 0) + 1
            here = prefix
        elif key := _KEY.match(line):
            here = [*prefix, key[1].strip("\"'")]
        else:
            continue
        if wanted[: len(here)] == here and (best is None or len(here) > best[0]):
            best = (len(here), number)
    return best[1] if best is not None else None


def _read(path: Path) -> str:
    try:
        if path.is_dir():
            raise _unreadable(path, "it is a directory", f"name the file in it: {path / 'pitr.toml'}")
        if not path.is_file():
            raise _unreadable(path, "it is not a file", "name a file with --config or $PITR_CONFIG")
        with path.open("rb") as file:
            content = file.read(CONFIG_BYTES_MAX + 1)
    except OSError as error:
        reason = error.strerror or str(error)
        raise _unreadable(path, reason, "check the path, its mode and who runs pitr") from error
    if len(content) > CONFIG_BYTES_MAX:
        raise _refusal(path, [f"it has more than {CONFIG_BYTES_MAX} bytes: not a configuration"])
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise _refusal(path, [f"line {line}: this is not UTF-8 text"]) from error


def _unreadable(path: Path, reason: str, hint: str) -> ConfigRefused:
    return ConfigRefused(f"the configuration {path} cannot be read", detail=reason, hint=hint)


def _refusal(path: Path, mistakes: Sequence[str], count: int = 1) -> ConfigRefused:
    return mistakes_refused(
        f"the configuration {path}",
        mistakes,
        count,
        hint=f"correct {path}; docs/config.md tells what each setting means",
    )
