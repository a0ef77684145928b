"""The value of ``synchronous_standby_names``: whom it names, and whether commits hang without one of them.

Pure.  It says what PostgreSQL would do with a value; it does not say which standbys there are.

Reference: PostgreSQL ``src/backend/replication/syncrep_scanner.l``, ``syncrep_gram.y`` and
``SyncRepGetStandbyPriority`` in ``syncrep.c``; 15 to 18.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from pitr.errors import MalformedValue

EVERYBODY: Final = "*"
# atoi of more is another number, and nobody has so many standbys.
_COUNT_MAX: Final = (1 << 31) - 1
# The first that matches longest wins, as in flex: "anyone" is a name, "any" is a word of the grammar.
_TOKEN: Final = re.compile(
    r"""(?P<space>[ \t\n\r\f\v]+)
      | "(?P<quoted>(?:[^"]|"")*+)"
      | (?P<name>[A-Za-z\x80-\U0010ffff_][A-Za-z\x80-\U0010ffff_0-9$]*)
      | (?P<number>[0-9]+)
      | (?P<sign>[*,()])""",
    re.VERBOSE,
)


class SyncMethod(StrEnum):
    """Whose acknowledgements count: the first ones of the list, or any."""

    FIRST = "FIRST"
    ANY = "ANY"


@dataclass(frozen=True, slots=True)
class SyncNames:
    """A value: commits wait for ``count`` of ``names``, nobody if there are none."""

    method: SyncMethod
    count: int
    names: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> SyncNames:
        """Return what a value means.  Raises MalformedValue where PostgreSQL would refuse it."""
        if not text:
            return NOBODY
        return _Parser(text).value()

    def __str__(self) -> str:
        """Return a value that means the same, each name in quotes."""
        if not self.names:
            return ""
        # A star in quotes is everybody as well.
        listed = ", ".join('"' + name.replace('"', '""') + '"' for name in self.names)
        return f"{self.method} {self.count} ({listed})"

    def names_standby(self, application_name: str) -> bool:
        """Tell whether a standby of this name may be synchronous."""
        return any(_is_named(application_name, name) for name in self.names)

    def names_nobody_but(self, application_name: str) -> bool:
        """Tell whether nobody else may ever acknowledge a commit."""
        return bool(self.names) and all(_folded(name) == _folded(application_name) for name in self.names)

    def hang_without(self, application_name: str, others: Iterable[str]) -> bool:
        """Tell whether commits wait for ever while only ``others`` stream, each named once per session."""
        if not self.names_standby(application_name):
            return False
        return sum(map(self.names_standby, others)) < self.count

    def without(self, application_name: str) -> SyncNames:
        """Return what is still asked of the others when this one is no longer waited for.

        One acknowledgement less is wanted.  Where everybody may give it, nothing is left: so may this one.
        """
        others = tuple(name for name in self.names if not _is_named(application_name, name))
        if EVERYBODY in self.names or self.count <= 1 or not others:
            return NOBODY
        return SyncNames(self.method, self.count - 1, others)


NOBODY: Final = SyncNames(SyncMethod.FIRST, 0, ())


def _folded(name: str) -> str:
    """Fold the case of ASCII alone: the server makes an application_name ASCII before it compares."""
    return "".join(chr(ord(sign) + 32) if "A" <= sign <= "Z" else sign for sign in name)


def _is_named(application_name: str, name: str) -> bool:
    return name == EVERYBODY or _folded(name) == _folded(application_name)


class _Parser:
    """The grammar's one rule, over the tokens of a text."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = list(self._scan())
        self._at = 0

    def value(self) -> SyncNames:
        method = SyncMethod.FIRST
        if self._kind() == "word":
            method = SyncMethod(self._take("word").upper())
            count = self._count()
        elif self._kind() == "number" and self._kind(1) == "(":
            count = self._count()
        else:
            return self._ended(SyncNames(method, 1, self._names()))
        self._take("(")
        names = self._names()
        self._take(")")
        return self._ended(SyncNames(method, count, names))

    def _scan(self) -> Iterable[tuple[str, str]]:
        at = 0
        while at < len(self._text):
            match = _TOKEN.match(self._text, at)
            if match is None:
                raise self._refused(f"at {self._text[at : at + 20]!r}")
            at = match.end()
            kind, text = match.lastgroup, match[0]
            if kind == "quoted":
                yield "name", match["quoted"].replace('""', '"')
            elif kind == "name" and text.upper() in SyncMethod.__members__:
                yield "word", text
            elif text == EVERYBODY:
                yield "name", text
            elif kind == "sign":
                yield text, text
            elif kind != "space":
                yield str(kind), text

    def _names(self) -> tuple[str, ...]:
        names = [self._name()]
        while self._kind() == ",":
            self._take(",")
            names.append(self._name())
        return tuple(names)

    def _name(self) -> str:
        return self._take("number" if self._kind() == "number" else "name")

    def _count(self) -> int:
        digits = self._take("number")
        # Longer ones than this have a limit of their own in Python.
        count = int(digits) if len(digits) <= 20 else _COUNT_MAX + 1
        if not 0 < count <= _COUNT_MAX:
            raise self._refused(f"{digits[:20]} is no number of standbys")
        return count

    def _kind(self, ahead: int = 0) -> str | None:
        at = self._at + ahead
        return self._tokens[at][0] if at < len(self._tokens) else None

    def _take(self, kind: str) -> str:
        if self._kind() != kind:
            raise self._refused(
                f"expected {kind} at {''.join(text for _, text in self._tokens[self._at :])[:20]!r}"
            )
        self._at += 1
        return self._tokens[self._at - 1][1]

    def _ended(self, value: SyncNames) -> SyncNames:
        if self._kind() is not None:
            raise self._refused("something follows the list")
        return value

    def _refused(self, why: str) -> MalformedValue:
        return MalformedValue(f"not a value of synchronous_standby_names: {why}")
