"""Text of strangers as it may be shown: nothing in it can move a cursor, or turn what stands beside it.

Whoever may make a database or a table writes into reports and terminals with its name.  Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

REPLACED_BY: Final = "?"
# C0 and DEL, C1 (which terminals obey as they do ESC), and the signs that change the direction of writing.
_CONTROLS: Final = (*range(0x20), *range(0x7F, 0xA0))
_DIRECTIONS: Final = (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
# Other lines than "\n" makes, in whose middle a reader sees a new one.
_SEPARATORS: Final = (0x2028, 0x2029)
_LINE: Final[Mapping[int, str]] = dict.fromkeys((*_CONTROLS, *_DIRECTIONS, *_SEPARATORS), REPLACED_BY)
_TEXT: Final[Mapping[int, str]] = {sign: by for sign, by in _LINE.items() if chr(sign) not in "\t\n"}


def plain_text(text: str) -> str:
    """Return text with a "?" for each sign that is none to be seen, but tabs and line feeds."""
    return text.translate(_TEXT)


def plain_line(text: str) -> str:
    """Return text as ``plain_text`` does, in one line and without tabs: a name."""
    return text.translate(_LINE)
