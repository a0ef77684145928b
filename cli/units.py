"""Sizes and rates as people type them: ``50 MiB/s``, ``64 MiB``."""

from __future__ import annotations

import re

from pitr.errors import MalformedValue

NO_LIMIT = "none"
# A rate below this would take years, and is a slip of the unit.
RATE_MIN = 16 * 1024
_RATE_MAX = 1 << 50
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(B|KiB|MiB|GiB|TiB|kB|MB|GB|TB)")
_UNIT_BYTES = {
    **{unit: 1 << 10 * power for power, unit in enumerate(("B", "KiB", "MiB", "GiB", "TiB"))},
    **{unit: 10 ** (3 * power) for power, unit in enumerate(("kB", "MB", "GB", "TB"), 1)},
}


def parse_size(text: str) -> int:
    """Return the bytes of ``64 MiB`` or ``1.5GB``.  Raises MalformedValue."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise MalformedValue(f"not a size: {text!r}; write a number with KiB, MiB or GiB, such as 64 MiB")
    return int(float(match[1]) * _UNIT_BYTES[match[2]])


def parse_rate(text: str) -> float | None:
    """Return the bytes a second of ``50 MiB/s``, None for ``none``.  Raises MalformedValue."""
    if text.strip() == NO_LIMIT:
        return None
    size, slash, second = text.strip().rpartition("/")
    if not slash or second.strip() != "s":
        raise MalformedValue(f"not a rate: {text!r}; write one such as 50 MiB/s, or {NO_LIMIT}")
    rate = parse_size(size)
    if not RATE_MIN <= rate <= _RATE_MAX:
        raise MalformedValue(f"not a rate that a backup can be read at: {text!r}; at least 16 KiB/s")
    return float(rate)


def format_rate(rate: float | None) -> str:
    """Return a rate for people."""
    if rate is None:
        return "no limit"
    from cli.output import format_bytes

    return f"{format_bytes(round(rate))}/s"
