"""Events in quarantine: rows of ``pitr.quarantine``, kept whole, so that they can be released later.

All run in the session's own transaction.  A released row stays, with the time.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from pitr.postgres.applied_events import ReplaySession
from pitr.postgres.sql_errors import mapped_errors

Headers = tuple[tuple[str, bytes | None], ...]

_HOLD: Final = """
INSERT INTO pitr.quarantine (replay_id, topic, partition, record_offset, event_id, event_type, event_version,
    key, value, headers, timestamp_ms, is_append_time, reason, detail, stops_key)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
ON CONFLICT (replay_id, topic, partition, record_offset) DO NOTHING
"""
# What a row weighs is known before any of it is sent: a page is bounded by bytes, too.
_PAGE: Final = """
SELECT id, replay_id, topic, partition, record_offset, event_id, event_type, event_version, key, {value},
    timestamp_ms, is_append_time, reason, detail, stops_key, held_at, released_at
FROM (
    SELECT *, {size} AS own, sum({size}) OVER (ORDER BY id) AS size FROM (
        SELECT * FROM pitr.quarantine
        WHERE id > %s AND (%s::text IS NULL OR replay_id = %s){released} ORDER BY id LIMIT %s
    ) AS row
) AS page WHERE size - own < %s ORDER BY id
"""
_WHOLE: Final = (
    "value, headers",
    "coalesce(octet_length(value), 0) + coalesce(octet_length(key), 0) + octet_length(headers::text)",
)
_PLAIN: Final = ("NULL::bytea, '[]'::jsonb", "coalesce(octet_length(key), 0)")
PAGE_BYTES_MAX: Final = 16 << 20


@dataclass(frozen=True, slots=True)
class HeldRow:
    """One event in quarantine, or once there.  ``number`` is 0 for one that has no row yet."""

    number: int
    replay_id: str
    topic: str
    partition: int
    offset: int
    event_id: str | None
    event_type: str | None
    version: int
    key: bytes | None
    value: bytes | None
    headers: Headers
    timestamp_ms: int
    is_append_time: bool
    reason: str
    detail: str
    stops_key: bool
    held_at: datetime | None = None
    released_at: datetime | None = None


def hold(session: ReplaySession, rows: Iterable[HeldRow]) -> None:
    """Keep events.  One that is there already stays as it is.  Raises ServerRefused, ServerUnavailable."""
    values = [
        (
            row.replay_id, row.topic, row.partition, row.offset, _storable(row.event_id),
            _storable(row.event_type), row.version, row.key, row.value, _encode(row.headers),
            row.timestamp_ms, row.is_append_time, row.reason, _storable(row.detail), row.stops_key,
        )
        for row in rows
    ]  # fmt: skip
    if values:
        with mapped_errors(), session.connection.cursor() as cursor:
            cursor.executemany(_HOLD, values)


def keep_holding(session: ReplaySession, rows: Sequence[tuple[int, str, str]]) -> None:
    """Note why events that were to be released are held still: number, reason, detail."""
    with mapped_errors(), session.connection.cursor() as cursor:
        if rows:
            cursor.executemany(
                "UPDATE pitr.quarantine SET reason = %s, detail = %s, stops_key = true WHERE id = %s",
                [(reason, _storable(detail), number) for number, reason, detail in rows],
            )


def mark_released(session: ReplaySession, numbers: Sequence[int]) -> None:
    """Note that events were applied after all."""
    with mapped_errors():
        session.connection.execute(
            "UPDATE pitr.quarantine SET released_at = now() WHERE id = ANY(%s) AND released_at IS NULL",
            (list(numbers),),
        )


def mark_dropped(session: ReplaySession, numbers: Sequence[int], reason: str) -> None:
    """Note that events are never to be applied; why they were held goes before the detail."""
    with mapped_errors():
        session.connection.execute(
            "UPDATE pitr.quarantine SET released_at = now(), detail = reason || ': ' || detail, reason = %s"
            " WHERE id = ANY(%s) AND released_at IS NULL",
            (reason, list(numbers)),
        )


def stopped_keys(session: ReplaySession, replay_id: str, *, keys_max: int) -> set[tuple[str, bytes]]:
    """Return the topics and keys that are at a stand, one more than ``keys_max`` at most."""
    with mapped_errors():
        rows: list[tuple[Any, ...]] = session.connection.execute(
            "SELECT DISTINCT topic, key FROM pitr.quarantine WHERE replay_id = %s AND stops_key"
            " AND released_at IS NULL AND key IS NOT NULL LIMIT %s",
            (replay_id, keys_max + 1),
        ).fetchall()
    return {(str(topic), bytes(key)) for topic, key in rows}


def held_rows(
    session: ReplaySession,
    *,
    replay_id: str | None = None,
    after: int = 0,
    limit: int,
    with_released: bool = False,
    is_whole: bool = True,
    bytes_max: int = PAGE_BYTES_MAX,
) -> list[HeldRow]:
    """Return events in the order in which they were held, those numbered above ``after``.

    At most ``limit`` of them and, but for the last one, ``bytes_max``; none if there are no more.  Unless
    ``is_whole`` they are without value and headers.
    """
    value, size = _WHOLE if is_whole else _PLAIN
    released = "" if with_released else " AND released_at IS NULL"
    statement = _PAGE.format(value=value, size=size, released=released)
    with mapped_errors():
        found = session.connection.execute(
            statement.encode(), (after, replay_id, replay_id, limit, bytes_max)
        )
        return [_row(row) for row in found.fetchall()]


def held_counts(session: ReplaySession, replay_id: str | None = None) -> list[tuple[str, str, str, int, int]]:
    """Return replay, topic, reason, how many are held, and how many no longer: of one replay, or of all."""
    with mapped_errors():
        rows = session.connection.execute(
            "SELECT replay_id, topic, reason, count(*) FILTER (WHERE released_at IS NULL),"
            " count(*) FILTER (WHERE released_at IS NOT NULL)"
            " FROM pitr.quarantine WHERE %s::text IS NULL OR replay_id = %s"
            " GROUP BY 1, 2, 3 ORDER BY 1, 2, 3 LIMIT 10000",
            (replay_id, replay_id),
        ).fetchall()
    return [(str(a), str(b), str(c), int(str(d)), int(str(e))) for a, b, c, d, e in rows]


@dataclass(frozen=True, slots=True)
class HeldBecause:
    """Why events of a topic are held, and how many for that."""

    topic: str
    reason: str
    detail: str
    count: int


def held_because(session: ReplaySession, replay_id: str, limit: int) -> list[HeldBecause]:
    """Return what holds most events of a replay, in this order."""
    with mapped_errors():
        rows = session.connection.execute(
            "SELECT topic, reason, detail, count(*) FROM pitr.quarantine"
            " WHERE replay_id = %s AND released_at IS NULL"
            " GROUP BY 1, 2, 3 ORDER BY 4 DESC, 1, 2, 3 LIMIT %s",
            (replay_id, limit),
        ).fetchall()
    return [HeldBecause(str(a), str(b), str(c), int(str(d))) for a, b, c, d in rows]


def _storable(text: str | None) -> str | None:
    """Return what a text of PostgreSQL's can hold: neither NUL nor half a surrogate pair.

    JSON of strangers has both, and what an owner's function raises may quote it.
    """
    return None if text is None else text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode("utf-8")


def _encode(headers: Headers) -> str:
    return json.dumps(
        [
            [name, None if value is None else base64.b64encode(value).decode("ascii")]
            for name, value in headers
        ]
    )


def _decode(headers: Any) -> Headers:
    return tuple((str(name), None if value is None else base64.b64decode(value)) for name, value in headers)


def _row(row: tuple[Any, ...]) -> HeldRow:
    number, replay_id, topic, partition, offset, event_id, event_type, version, key, value, headers, *rest = (
        row
    )
    return HeldRow(
        number, replay_id, topic, partition, offset, event_id, event_type, version, key, value,
        _decode(headers), *rest,
    )  # fmt: skip
