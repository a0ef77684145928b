"""The grammar of recovery targets: what a person types, read without guessing.  Pure.

First match wins, and whatever has two readings is refused with both of them: a restore to the
wrong hour looks like a success.  The clock and the zones are arguments.  The grammar with
examples is docs/targets.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo

from whenever import PlainDateTime, RepeatedTime, SkippedTime, TimeZoneNotFoundError, ZonedDateTime

from pitr.errors import MalformedValue, TargetRefused
from pitr.recovery import (
    RESTORE_POINT_BYTES_MAX,
    XID_MAX,
    XID_MIN,
    RecoveryTarget,
    TargetTimeline,
    instant_text,
    local_text,
)
from pitr.wal.lsn import LSN

TEXT_CHARS_MAX: Final = 200
# PostgreSQL's own epoch: its timestamps count from here.  It also keeps every zone's arithmetic in range.
_OLDEST: Final = datetime(2000, 1, 1, tzinfo=UTC)
# No place on Earth is further from UTC.
_OFFSET_MIN, _OFFSET_MAX = timedelta(hours=-12), timedelta(hours=14)
_DATE_TIME = (
    r"(?P<year>\d{4})-(?P<month>\d\d)-(?P<day>\d\d)[T ]"
    r"(?P<hour>\d\d):(?P<minute>\d\d)(?::(?P<second>\d\d)(?:\.(?P<fraction>\d{1,6}))?)?"
)
_WITH_OFFSET = re.compile(_DATE_TIME + r" ?(?P<offset>Z|UTC|[+-]\d\d(?::?\d\d)?)", re.ASCII)
_LOCAL = re.compile(_DATE_TIME, re.ASCII)
_ZONE = r"(?P<zone>[A-Za-z][A-Za-z0-9_+-]*(?:/[A-Za-z0-9_+-]+)*)"
_LOCAL_WITH_ZONE = re.compile(_DATE_TIME + r" " + _ZONE, re.ASCII)
_BARE_LSN = re.compile(r"[0-9A-Fa-f]{1,8}/[0-9A-Fa-f]{1,8}")
_UNIT = r"(?:s|secs?|seconds?|m|mins?|minutes?|h|hours?|d|days?|w|weeks?)"
# Each amount is followed by a comma or blank, the next amount, " ago" or the end.
_DURATION = re.compile(rf"-?(?:\d{{1,7}} ?{_UNIT}(?:,? (?:and )?|(?=\d)|(?= ago)|$))+(?: ?ago)?", re.ASCII)
_CLOCK = re.compile(
    r"(?:today|yesterday|\d{1,4} days? ago)(?: at)?"
    r" (?P<hour>\d\d):(?P<minute>\d\d)(?::(?P<second>\d\d))?",
    re.ASCII,
)
_ENDS_WITH_ZONE = re.compile(r"(?P<phrase>.*\S) " + _ZONE, re.ASCII)
# What a person is likely to type and we refuse, with the reason.
_REFUSED: Final = (
    (re.compile(r"@?\d{5,}(\.\d+)?"), "a bare number is no time: it could be seconds or milliseconds"),
    (
        re.compile(r"\d{1,2}[/.]\d{1,2}[/.]\d{2,4}.*"),
        "this date has two readings: is the month first, or the day?",
    ),
    (re.compile(r"\d{4}[/.]\d{1,2}[/.]\d{1,2}.*"), "a date is written with hyphens: YYYY-MM-DD"),
    (re.compile(r"\d{4}-\d\d-\d\d"), "a date alone is no moment: add the time of day"),
    (re.compile(r"today|yesterday|\d+ days? ago at"), "a day is no moment: add the time of day"),
    (re.compile(r"\d{1,2}:\d\d(:\d\d)?.*"), "a time of day alone does not say which day"),
    (re.compile(r"(in .*|tomorrow.*|\+\d.*)"), "the future cannot be restored"),
)
# Abbreviations that name several zones; the first offsets that each may mean.
_ABBREVIATIONS: Final = {
    "IST": ("Asia/Kolkata", "Asia/Jerusalem", "Europe/Dublin"),
    "CST": ("America/Chicago", "Asia/Shanghai", "America/Havana"),
    "CDT": ("America/Chicago", "America/Havana"),
    "EST": ("America/New_York", "America/Panama", "Australia/Sydney"),
    "EDT": ("America/New_York", "America/Toronto"),
    "MST": ("America/Denver", "America/Phoenix", "Asia/Kuala_Lumpur"),
    "PST": ("America/Los_Angeles", "Asia/Manila", "Asia/Karachi"),
    "PDT": ("America/Los_Angeles", "America/Tijuana"),
    "AST": ("America/Halifax", "Asia/Riyadh"),
    "BST": ("Europe/London", "Asia/Dhaka"),
    "CET": ("Europe/Berlin", "Africa/Algiers"),
    "CEST": ("Europe/Berlin", "Europe/Madrid"),
    "EET": ("Europe/Athens", "Africa/Cairo"),
    "GMT": ("Europe/London", "Africa/Abidjan"),
    "WET": ("Europe/Lisbon", "Atlantic/Canary"),
}
_HINT = (
    "write YYYY-MM-DDTHH:MM:SSZ, or a local time with its zone such as Europe/Berlin; "
    'or latest, immediate, lsn:, xid:, name:, "10 minutes ago"'
)


@dataclass(frozen=True, slots=True)
class TargetClock:
    """What a target's text is read against.

    ``zone`` was given for it (``--tz`` or configuration), None if not; ``local_zone`` is only shown.
    """

    now: datetime
    zone: str | None = None
    local_zone: str = "UTC"


def parse_target(
    text: str,
    *,
    now: datetime,
    zone: str | None = None,
    local_zone: str = "UTC",
    is_inclusive: bool = True,
    timeline: TargetTimeline = "latest",
) -> RecoveryTarget:
    """Read a recovery target.  ``now`` is aware; zones are IANA names.

    Raises TargetRefused for everything that is not exactly one past moment or place in the WAL.
    """
    if now.tzinfo is None:
        raise MalformedValue("the present must have a zone")
    if not text.strip() or len(text) > TEXT_CHARS_MAX or not text.isprintable():
        raise TargetRefused(
            "not a recovery target", detail=f"it must have 1 to {TEXT_CHARS_MAX} characters", hint=_HINT
        )
    target = _parse_place(text) or _parse_time(" ".join(text.split()), TargetClock(now, zone, local_zone))
    return replace(target, is_inclusive=is_inclusive, timeline=timeline)


def _parse_place(text: str) -> RecoveryTarget | None:
    """Read a target that is no time; None if it is one."""
    if text.startswith("name:"):
        return _named(text.removeprefix("name:"))
    text = text.strip()
    if text == "latest":
        return RecoveryTarget("latest")
    if text == "immediate":
        return RecoveryTarget("immediate")
    if text.startswith("lsn:") or _BARE_LSN.fullmatch(text):
        try:
            return RecoveryTarget("lsn", lsn=LSN.parse(text.removeprefix("lsn:")))
        except MalformedValue as cause:
            raise TargetRefused(
                f"not an LSN: {text!r}", hint="an LSN is two hexadecimal numbers, such as lsn:16/B374D848"
            ) from cause
    if text.startswith("xid:"):
        number = text.removeprefix("xid:")
        if not re.fullmatch(r"[0-9]{1,10}", number) or not XID_MIN <= int(number) <= XID_MAX:
            raise TargetRefused(
                f"not a transaction id: {number!r}",
                detail=f"it must be a decimal number from {XID_MIN} to {XID_MAX}, without the epoch",
                hint="of a 64-bit id take the lower 32 bits: select pg_current_xact_id()::xid",
            )
        return RecoveryTarget("xid", xid=int(number))
    return None


def _named(name: str) -> RecoveryTarget:
    if not 0 < len(name.encode("utf-8", "replace")) <= RESTORE_POINT_BYTES_MAX:
        raise TargetRefused(
            f"not a restore point's name: {name!r}",
            detail=f"a name has 1 to {RESTORE_POINT_BYTES_MAX} bytes",
            hint="names are those given to pg_create_restore_point()",
        )
    return RecoveryTarget("name", name=name)


def _parse_time(text: str, clock: TargetClock) -> RecoveryTarget:
    if match := _WITH_OFFSET.fullmatch(text):
        at = _with_offset(match)
    elif match := _LOCAL.fullmatch(text):
        at = _local(_plain(match), text, clock)
    elif match := _LOCAL_WITH_ZONE.fullmatch(text):
        at = _in_zone(_plain(match), match["zone"])
    else:
        at = _relative(text, clock)
    if at < _OLDEST:
        raise TargetRefused(f"{instant_text(at)} is before anything that can be archived")
    if at > clock.now:
        raise TargetRefused(
            f"{_both(at, clock)} is in the future",
            detail=f"now is {_both(clock.now, clock)}",
            hint="for the newest moment that can be restored say latest",
        )
    return RecoveryTarget("time", instant=at)


def _plain(match: re.Match[str]) -> PlainDateTime:
    second, fraction = match["second"] or "0", match["fraction"] or ""
    try:
        return PlainDateTime(
            int(match["year"]),
            int(match["month"]),
            int(match["day"]),
            int(match["hour"]),
            int(match["minute"]),
            int(second),
            nanosecond=int(fraction.ljust(9, "0")),
        )
    except ValueError as cause:
        raise TargetRefused(f"no such date or time of day: {match[0]!r}", detail=str(cause)) from cause


def _with_offset(match: re.Match[str]) -> datetime:
    plain = _plain(match)
    offset = timedelta()
    if match["offset"] not in ("Z", "UTC"):
        sign, digits = match["offset"][0], match["offset"][1:].replace(":", "").ljust(4, "0")
        offset = timedelta(hours=int(digits[:2]), minutes=int(digits[2:]))
        offset = -offset if sign == "-" else offset
        if not _OFFSET_MIN <= offset <= _OFFSET_MAX or int(digits[2:]) > 59:
            raise TargetRefused(
                f"no place has the offset {match['offset']}", detail="offsets go from -12:00 to +14:00"
            )
    try:
        return plain.to_stdlib().replace(tzinfo=UTC) - offset
    except OverflowError as cause:
        raise TargetRefused(f"no such moment: {match[0]!r}") from cause


def _local(plain: PlainDateTime, text: str, clock: TargetClock) -> datetime:
    """Read a local time without a zone: only in a zone that was given for it."""
    if clock.zone is not None:
        return _in_zone(plain, clock.zone)
    in_utc = f"{plain.format_iso()}Z"
    readings = [in_utc]
    if clock.local_zone != "UTC":
        # Either reading may do not exist; the refusal stands all the same.
        local = plain.assume_tz(_known_zone(clock.local_zone), disambiguation="compatible")
        readings.append(f"{plain.format_iso()} {clock.local_zone} (= {instant_text(_stdlib(local))})")
    raise TargetRefused(
        f"{text!r} has no time zone",
        detail=f"it could be {' or '.join(readings)}",
        hint="add Z or the zone's name, or say --tz ZONE",
    )


def _in_zone(plain: PlainDateTime, zone: str) -> datetime:
    """Read a local time in a zone; refuse the hours that a change of clocks repeats or skips."""
    name = _known_zone(zone)
    try:
        return _stdlib(plain.assume_tz(name, disambiguation="raise"))
    except (RepeatedTime, SkippedTime) as cause:
        first = plain.assume_tz(name, disambiguation="earlier")
        second = plain.assume_tz(name, disambiguation="later")
        if isinstance(cause, RepeatedTime):
            readings = [_with_its_offset(plain, first), _with_its_offset(plain, second)]
            why = "is there twice, as the clocks go back"
        else:
            # Of a skipped hour each reading is the wall time with the offset of one side of the gap.
            readings = [_with_its_offset(plain, second), _with_its_offset(plain, first)]
            why = "does not exist, as the clocks go forward"
        raise TargetRefused(
            f"{plain.format_iso()} {zone} {why}",
            detail=f"it could be {' or '.join(readings)}",
            hint="say which, with its offset",
        ) from cause


def _with_its_offset(plain: PlainDateTime, reading: ZonedDateTime) -> str:
    offset = reading.to_stdlib().strftime("%z")
    at = plain.to_stdlib().replace(tzinfo=UTC) - (reading.to_stdlib().utcoffset() or timedelta())
    return f"{plain.format_iso()}{offset[:3]}:{offset[3:5]} (= {instant_text(at)})"


def _known_zone(zone: str) -> str:
    """Return an IANA zone that exists; refuse abbreviations by name."""
    if zone in ("UTC", "Z"):
        return "UTC"
    readings = _ABBREVIATIONS.get(zone.upper())
    if readings is not None:
        raise TargetRefused(
            f"{zone.upper()} is no time zone but an abbreviation",
            detail=f"it could be {', '.join(readings[:-1])} or {readings[-1]}",
            hint=f"say the zone's name, such as {readings[0]}, or the offset",
        )
    if "/" not in zone:
        raise TargetRefused(
            f"{zone!r} is not a time zone's name",
            detail="abbreviations and countries name several zones",
            hint="say the zone as Area/City, such as Europe/Berlin, or the offset",
        )
    try:
        PlainDateTime(2000, 1, 1).assume_tz(zone, disambiguation="compatible")
    except TimeZoneNotFoundError as cause:
        raise TargetRefused(
            f"there is no time zone {zone!r}", hint="say the zone as Area/City, such as Europe/Berlin"
        ) from cause
    return zone


def _relative(text: str, clock: TargetClock) -> datetime:
    """Read a phrase that is relative to now; everything else is refused here."""
    phrase, zone = text, clock.zone
    match = _ENDS_WITH_ZONE.fullmatch(text)
    if match and ("/" in match["zone"] or match["zone"] == "UTC" or match["zone"] in _ABBREVIATIONS):
        phrase, zone = match["phrase"], _known_zone(match["zone"])
    if _DURATION.fullmatch(phrase):
        return _ask_dateparser(phrase, clock.now.astimezone(UTC)).replace(tzinfo=UTC)
    if clock_match := _CLOCK.fullmatch(phrase):
        if (
            int(clock_match["hour"]) > 23
            or int(clock_match["minute"]) > 59
            or int(clock_match["second"] or 0) > 59
        ):
            raise TargetRefused(f"no such time of day: {phrase!r}")
        return _wall_clock(phrase, zone, clock)
    for pattern, why in _REFUSED:
        if pattern.fullmatch(phrase):
            raise TargetRefused(f"{text!r} is refused: {why}", hint=_HINT)
    raise TargetRefused(f"not a recovery target: {text!r}", hint=_HINT)


def _wall_clock(phrase: str, zone: str | None, clock: TargetClock) -> datetime:
    """Read "yesterday 14:00": which day it is depends on where."""
    known = _known_zone(zone or clock.local_zone)
    wall = clock.now.astimezone(ZoneInfo(known)).replace(tzinfo=None)
    plain = PlainDateTime(_ask_dateparser(phrase, wall))
    if zone is None:
        return _local(plain, phrase, clock)
    return _in_zone(plain, known)


def _ask_dateparser(phrase: str, base: datetime) -> datetime:
    """Return what a phrase of the shapes above means from ``base``; naive, in the zone of ``base``."""
    # Imported here: it takes a second, and only this form of target needs it.
    import dateparser

    found = dateparser.parse(
        phrase,
        languages=["en"],
        # Without these it takes 01/02/2026 for a day in January, and IST for Israel.
        settings={"PARSERS": ["relative-time"], "RELATIVE_BASE": base.replace(tzinfo=None)},
    )
    if not isinstance(found, datetime) or found.tzinfo is not None:
        raise TargetRefused(f"not a recovery target: {phrase!r}", hint=_HINT)
    return found


def _stdlib(zoned: ZonedDateTime) -> datetime:
    return zoned.to_stdlib().astimezone(UTC)


def _both(at: datetime, clock: TargetClock) -> str:
    zone = clock.zone or clock.local_zone
    return instant_text(at) if zone == "UTC" else f"{instant_text(at)} = {local_text(at, zone)}"
