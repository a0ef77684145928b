"""What can be wrong in a configuration beside single values, and how mistakes are told.  Pure.

The schema judges each setting alone; here is judged what settings say together, also when some of the
others are wrong: whoever corrects a file wants to do it once.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cli.errors import ConfigRefused
from storage.url import MalformedURL, parse_region_url, shown_url

PIECE_BYTES = 4 << 20
SPOOL_BYTES_MAX = 1 << 30
_NAME_CHARS_MAX = 80
MISTAKES_MAX = 50
"""So many are told of one file."""

Place = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Mistake:
    """One thing that is wrong, and where: ``place`` as keys and list positions from the top."""

    place: Place
    text: str

    @property
    def name(self) -> str:
        """Return the place as people write it: ``region[1].url``."""
        text = ""
        for part in self.place:
            if isinstance(part, int):
                text += f"[{part}]"
                continue
            # A key may hold anything in quotes, and this is shown on a terminal.
            shown = part if part.isprintable() and len(part) <= _NAME_CHARS_MAX else ascii(part)
            shown = shown[:_NAME_CHARS_MAX]
            text += f".{shown}" if text else shown
        return text or "the file"


class SoundSettings:
    """The settings that are right by themselves, whatever is wrong with the others."""

    def __init__(self, tables: Mapping[str, Any], mistakes: Sequence[Mistake]) -> None:
        self._tables = tables
        self._wrong = {mistake.place for mistake in mistakes}

    def is_wrong(self, *place: str | int) -> bool:
        """Tell whether a mistake is known of this setting, or of a table that it stands in."""
        return any(place[:length] in self._wrong for length in range(len(place) + 1))

    def get(self, *place: str | int) -> Any:
        """Return a value as it stands in the file; None if it is not there or is wrong."""
        if self.is_wrong(*place):
            return None
        value: Any = self._tables
        for part in place:
            try:
                value = value[part]
            except (KeyError, IndexError, TypeError):
                return None
        return value


def contradictions(sound: SoundSettings) -> Iterator[Mistake]:
    """Yield what each setting alone does not show."""
    yield from _quorum(sound)
    yield from _spool(sound)
    yield from _patroni(sound)
    for attribute in ("name", "url"):
        yield from _given_twice(sound, attribute)
    has_text, has_file = (bool(sound.get("keys", name)) for name in ("recipients", "recipients_file"))
    is_doubtful = any(sound.is_wrong("keys", name) for name in ("recipients", "recipients_file"))
    if not is_doubtful and has_text == has_file:
        text = "give either recipients or recipients_file: nobody could read the backups else"
        yield Mistake(("keys",), text)


def _quorum(sound: SoundSettings) -> Iterator[Mistake]:
    quorum, regions = sound.get("repository", "quorum"), sound.get("region")
    # A region whose url is wrong is a region that is meant all the same.
    if isinstance(quorum, int) and isinstance(regions, list) and quorum > len(regions):
        there = "there is only one" if len(regions) == 1 else f"there are only {len(regions)}"
        yield Mistake(("repository", "quorum"), f"{quorum} regions are wanted, but {there}")


def _patroni(sound: SoundSettings) -> Iterator[Mistake]:
    members = sound.get("cluster", "patroni")
    names = ("patroni_ca_file", "patroni_certificate_file", "patroni_key_file")
    for name in names:
        if (
            sound.get("cluster", name) is not None
            and not members
            and not sound.is_wrong("cluster", "patroni")
        ):
            yield Mistake(("cluster", name), "it is for https URLs in patroni, and there are none")
    if sound.get("cluster", names[2]) is not None and sound.get("cluster", names[1]) is None:
        yield Mistake(("cluster", names[2]), "it is the key of patroni_certificate_file, which is not given")


def _spool(sound: SoundSettings) -> Iterator[Mistake]:
    places = (("daemon", "spool_bytes_max"), ("wal", "piece_bytes"))
    if any(sound.is_wrong(*place) for place in places):
        return
    spool, piece = (sound.get(*place) for place in places)
    least = 2 * (PIECE_BYTES if piece is None else int(piece))
    if (SPOOL_BYTES_MAX if spool is None else spool) < least:
        # A piece that never fits would hold archiving for ever.
        text = f"expected at least {least}: room for two pieces of wal.piece_bytes"
        yield Mistake(("daemon", "spool_bytes_max"), text)


def _given_twice(sound: SoundSettings, attribute: str) -> Iterator[Mistake]:
    seen: set[str] = set()
    for at in range(len(sound.get("region") or ())):
        value = sound.get("region", at, attribute)
        if not isinstance(value, str):
            continue
        if attribute == "url":
            value = _one_form(value)
        if value in seen:
            shown = shown_url(value) if attribute == "url" else value
            text = f"{shown!r} is given twice; one copy is no second region"
            yield Mistake(("region", at, attribute), text)
        seen.add(value)


def _one_form(url: str) -> str:
    """Return the one form of a URL: the same directory may be written with and without a last slash."""
    try:
        return str(parse_region_url(url))
    except MalformedURL:
        return url


def mistakes_refused(
    what: str, mistakes: Sequence[str], count: int | None = None, *, hint: str
) -> ConfigRefused:
    """Return the refusal of a file, which tells the first of its ``mistakes``; ``count``: how many it has."""
    count = len(mistakes) if count is None else count
    shown = list(mistakes[:MISTAKES_MAX])
    if count > len(shown):
        shown.append(f"and {count - len(shown)} more")
    return ConfigRefused(
        f"{what} has " + ("a mistake" if count == 1 else f"{count} mistakes"),
        detail="\n".join(shown),
        hint=hint,
    )


def unknown_setting(place: Place, known: Mapping[str, Sequence[str]]) -> str:
    """Say that a setting is unknown, and which is probably meant.

    ``known``: the settings of each table by its name, the top level's under the empty one.
    """
    name = str(place[-1])
    table = ".".join(part for part in place[:-1] if isinstance(part, str))
    # The cut-off of 0.6 is difflib's own: "qorum" is "quorum", "x" is nothing.
    close = difflib.get_close_matches(name[:_NAME_CHARS_MAX], known.get(table, ()), n=1)
    if close:
        return f"there is no such setting; did you mean {close[0]!r}?"
    others = [other for other, names in known.items() if other != table and name in names]
    if others:
        where = f"under [{others[0]}]" if others[0] else "at the top of the file, before any [table]"
        return f"there is no such setting here; it stands {where}"
    return "there is no such setting"
