"""The doctor's look at the clock of a region: S3 signs by it, and retention counts by it."""

from __future__ import annotations

import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from typing import Final

from storage.url import S3Location, parse_region_url
from verifiers.base import Finding, Severity
from verifiers.probes import clock_finding

CLOCK_TIMEOUT_S: Final = 5.0


def probe_clock(name: str, url: str, *, now: Callable[[], datetime]) -> Iterator[Finding]:
    """Compare our clock with the Date of an S3 server's answer, whatever it answers.

    A clock that could not be compared is a warning: it is not known to be right.
    """
    location = parse_region_url(url)
    if not isinstance(location, S3Location):
        return
    check = f"region.{name}.clock"
    before = now()
    try:
        date = _date_of(location)
    except (OSError, HTTPException, ValueError) as error:
        hint = "see the region's other findings; a private authority is named by ca= in the region's URL"
        text = f"its clock could not be compared: {error}"
        yield Finding(check, Severity.WARN, name, text, hint)
        return
    middle = before + (now() - before) / 2
    skew_s = (date - middle).total_seconds()
    # The header has whole seconds, so half a second of what is seen may be rounding.
    yield clock_finding(check, name, skew_s + 0.5)


def _date_of(location: S3Location) -> datetime:
    """Return the server's clock.  Raises OSError, HTTPException; ValueError if it tells no time."""
    endpoint = location.endpoint_url or f"https://s3.{location.region_name or 'us-east-1'}.amazonaws.com"
    context = ssl.create_default_context(cafile=location.ca_bundle)
    try:
        with urllib.request.urlopen(endpoint, timeout=CLOCK_TIMEOUT_S, context=context) as answer:
            date = answer.headers.get("Date")
    except urllib.error.HTTPError as refused:
        with refused:
            date = refused.headers.get("Date")
    if date is None:
        raise ValueError("its answer has no Date")
    found = parsedate_to_datetime(date)
    # "-0000", which says that the zone is not known, is UTC in HTTP (RFC 9110 §5.6.7).
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)
