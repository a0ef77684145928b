"""Sizes, rates, durations and pairs as people type them: ``64 MiB``, ``50 MiB/s``, ``24h``, ``NAME=FILE``."""

from __future__ import annotations

import re

from cli.errors import UsageRefused
from pitr.errors import MalformedValue

NO_LIMIT = "none"
# A rate below this would take years, and is a slip of the unit.
RATE_MIN = 16 * 1024
# No disk is so fast; what is more is a slip, too.
RATE_MAX = 1 << 50
# More digits than a size or a duration has would overflow below.
_NUMBER = r"([0-9]{1,18}(?:\.[0-9]{1,9})?)"
_SIZE = re.compile(_NUMBER + r"\s*(B|KiB|MiB|GiB|TiB|kB|MB|GB|TB)")
_UNIT_BYTES = {
    **{unit: 1 << 10 * power for power, unit in enumerate(("B", "KiB", "MiB", "GiB", "TiB"))},
    **{unit: 10 ** (3 * power) for power, unit in enumerate(("kB", "MB", "GB", "TB"), 1)},
}
_DURATION = re.compile(_NUMBER + r"\s*(ms|s|min|m|h|d)")
# A hundred years; a date so far away is still one.
_DURATION_MAX_S = 36_525 * 86_400.0
_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86_400.0}


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
    if rate < RATE_MIN:
        raise MalformedValue(f"too low a rate for a backup: {text!r}; at least 16 KiB/s")
    if rate > RATE_MAX:
        raise MalformedValue(f"too high a rate: {text!r}; at most 1024 TiB/s, or {NO_LIMIT}")
    return float(rate)


def parse_duration(text: str) -> float:
    """Return the seconds of ``60s``, ``5 min``, ``24h``.  Raises MalformedValue."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise MalformedValue(f"not a duration: {text!r}; write a number with ms, s, min, h or d, such as 60s")
    seconds = float(match[1]) * _UNIT_S[match[2]]
    if seconds > _DURATION_MAX_S:
        raise MalformedValue(f"too long a duration: {text!r}; at most a hundred years")
    return seconds


def read_duration_option(option: str, text: str) -> float:
    """Return the seconds that were typed for an option.  Raises UsageRefused."""
    try:
        return parse_duration(text)
    except MalformedValue as error:
        what, _, how = error.message.partition("; ")
        raise UsageRefused(f"{option}: {what}", detail=how) from error


def parse_pair(text: str, form: str) -> tuple[str, str]:
    """Return both sides of an option's ``NAME=VALUE``; ``form`` is the option as its help shows it.

    Raises UsageRefused if a side is missing.
    """
    name, separator, value = text.partition("=")
    if not separator or not name or not value:
        raise UsageRefused(f"not {form}: {text!r}")
    return name, value


def format_rate(rate: float | None) -> str:
    """Return a rate for people."""
    if rate is None:
        return "no limit"
    from cli.output import format_bytes

    return f"{format_bytes(round(rate))}/s"
