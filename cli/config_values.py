"""Values of the configuration, as people type them: each read, or refused in words that pydantic collects."""

from __future__ import annotations

import contextlib
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator

from cli.units import NO_LIMIT, parse_duration, parse_rate, parse_size
from pitr.errors import MalformedValue, PitrError
from pitr.pipeline.keys import Recipient
from pitr.pipeline.sign import Verifier
from storage.url import parse_region_url

# A look at the server ends after ten seconds.
LATENCY_MAX_S = 10.0


def read_duration(value: object) -> float:
    if isinstance(value, str):
        return parse_duration(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    raise ValueError("expected seconds, or a text such as '24h'")


def read_known_zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError("expected an IANA zone such as 'Europe/Berlin'") from error
    return name


def read_duration_or_never(value: object) -> float | None:
    if value == "never":
        return None
    duration_s = read_duration(value)
    if not 60 <= duration_s <= 366 * 86_400:
        raise ValueError("expected 'never', or at least 60s and at most 366d")
    return duration_s


def read_objective(value: object) -> float | None:
    if value == "off":
        return None
    duration_s = read_duration(value)
    if not 1 <= duration_s <= 7 * 86_400:
        raise ValueError("expected 'off', or at least 1s and at most 7d")
    return duration_s


def read_heartbeat(value: object) -> float | None:
    if value == "off":
        return None
    duration_s = read_duration(value)
    if not 0.5 <= duration_s <= 3600:
        raise ValueError("expected 'off', or at least 500ms and at most 1h")
    return duration_s


def read_size(value: object) -> int:
    if not isinstance(value, str):
        raise ValueError("expected a size such as '1 GiB'")
    return parse_size(value)


def read_rate(value: object) -> float | None:
    if not isinstance(value, str):
        raise ValueError(f"expected a rate such as '200 MiB/s', or '{NO_LIMIT}'")
    return parse_rate(value)


def read_lag(value: object) -> tuple[int | None, float | None]:
    """Return bytes, or seconds."""
    if value == "off":
        return None, None
    if isinstance(value, str):
        with contextlib.suppress(MalformedValue):
            return None, parse_duration(value)
        with contextlib.suppress(MalformedValue):
            return parse_size(value), None
    raise ValueError("expected a size such as '64 MiB', a duration such as '10s', or 'off'")


def read_latency(value: object) -> float | None:
    if value == "off":
        return None
    if isinstance(value, str):
        with contextlib.suppress(MalformedValue):
            latency_s = parse_duration(value)
            if 0.001 <= latency_s <= LATENCY_MAX_S:
                return latency_s
    raise ValueError(f"expected a duration such as '200ms', at most {LATENCY_MAX_S:g}s, or 'off'")


def read_listen(text: str) -> str:
    if text == "off":
        return text
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 <= int(port) < 65_536:
        raise ValueError("expected HOST:PORT, such as '127.0.0.1:9187', or 'off'")
    if host not in {"127.0.0.1", "::1", "[::1]", "localhost"}:
        raise ValueError("metrics have no authentication and stay on loopback: 127.0.0.1 or ::1")
    return text


def read_recipient(text: str) -> str:
    return str(Recipient.parse(text))


def read_root(text: str) -> str:
    return str(Verifier.parse(text))


def read_region_url(text: str) -> str:
    return str(parse_region_url(text))


def as_value_error(parse: Any) -> AfterValidator:
    """Let an error of ours reach pydantic as the ValueError that it collects."""

    def check(value: str) -> Any:
        try:
            return parse(value)
        except PitrError as error:
            raise ValueError("; ".join(filter(None, (error.message, error.hint)))) from error

    return AfterValidator(check)
