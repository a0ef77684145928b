"""Region URLs: where a region is, as an operator writes it.

    s3://bucket/prefix?endpoint=http://127.0.0.1:9000&region=eu-central-1&profile=minio&ca=/etc/ca.pem
    s3://bucket/prefix?lock=compliance&lock_days=2190     what verifiers put is locked for so long
    file:///srv/backup
    memory:name             for tests: lives as long as the process

Strict: an unknown option or a credential in the URL is refused, for URLs end up
in configuration files, process lists and logs.
"""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from storage.checks import check_prefix
from storage.local import DirectoryStore
from storage.locks import LockMode
from storage.memory import MemoryStore
from storage.s3 import S3Credentials, S3Store
from storage.s3_dialects import PROFILES
from storage.s3_lock import LOCK_DAYS_MAX, S3Lock
from storage.store import ObjectStore, StoreError, StoreRefused

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_REGION = re.compile(r"[a-z0-9-]{1,64}")
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_OPTIONS = ("endpoint", "region", "profile", "ca", "lock", "lock_days")
_MODES: dict[str, LockMode] = {"governance": "GOVERNANCE", "compliance": "COMPLIANCE"}


class MalformedURL(StoreError, ValueError):
    """The text is no region URL.  It says which part is wrong, and never repeats a credential."""


@dataclass(frozen=True, slots=True)
class S3Location:
    """A bucket, or what is below a prefix in it."""

    bucket: str
    prefix: str = ""
    endpoint_url: str | None = None
    region_name: str | None = None
    profile: str = "aws"
    ca_bundle: str | None = None
    lock: LockMode | None = None
    lock_days: int | None = None

    def __str__(self) -> str:
        given = {
            "endpoint": self.endpoint_url,
            "region": self.region_name,
            "profile": None if self.profile == "aws" else self.profile,
            "ca": self.ca_bundle,
            "lock": None if self.lock is None else self.lock.lower(),
            "lock_days": None if self.lock_days is None else str(self.lock_days),
        }
        options = urlencode({name: value for name, value in given.items() if value}, safe=":/")
        path = f"/{self.prefix}" if self.prefix else ""
        return f"s3://{self.bucket}{path}{'?' if options else ''}{options}"


@dataclass(frozen=True, slots=True)
class DirectoryLocation:
    """A directory of this host."""

    path: Path

    def __str__(self) -> str:
        return f"file://{quote(str(self.path))}"


@dataclass(frozen=True, slots=True)
class MemoryLocation:
    """A store that lives as long as the process; one for each name."""

    name: str

    def __str__(self) -> str:
        return f"memory:{self.name}"


RegionLocation = S3Location | DirectoryLocation | MemoryLocation

_memory_lock = threading.Lock()
_memory_stores: dict[str, MemoryStore] = {}


def parse_region_url(text: str) -> RegionLocation:
    """Read a region's URL.  Raises MalformedURL."""
    if any(ord(character) <= 32 or ord(character) == 127 for character in text):
        raise MalformedURL("a region URL holds no blanks or control characters; write them as %20")
    try:
        parts = urlsplit(text)
        has_credentials = parts.username is not None or parts.password is not None
    except ValueError as error:
        raise MalformedURL(f"not a region URL: {error}") from error
    if has_credentials:
        raise MalformedURL("a region URL must not hold credentials; give them in the configuration")
    if parts.fragment:
        raise MalformedURL("a region URL has no fragment (#...)")
    if parts.scheme == "s3":
        return _parse_s3(parts.netloc, parts.path, parts.query)
    if parts.query:
        raise MalformedURL(f"a {parts.scheme or 'relative'} URL takes no options")
    if parts.scheme == "file":
        path = Path(unquote(parts.path))
        if parts.netloc not in ("", "localhost") or not path.is_absolute() or ".." in path.parts:
            raise MalformedURL("a directory's URL is file:/// and an absolute path without ..")
        if path == Path("/"):
            raise MalformedURL("the root directory cannot be a region")
        return DirectoryLocation(path)
    if parts.scheme == "memory":
        if parts.netloc or _NAME.fullmatch(parts.path) is None:
            raise MalformedURL("a memory URL is memory: and a name of letters, digits, _ and -")
        return MemoryLocation(parts.path)
    raise MalformedURL("a region URL begins with s3://, file:/// or memory:")


def asks_lock(text: str) -> bool:
    """Tell whether a region's URL wants what verifiers put to be locked.  Raises MalformedURL."""
    location = parse_region_url(text)
    return isinstance(location, S3Location) and location.lock is not None


def shown_url(text: str) -> str:
    """Return what may be shown of a URL that was refused: no user, no password, no options."""
    start, options, _ = text.partition("?")
    scheme, separator, rest = start.partition("://")
    if separator and "@" in rest:
        start = f"{scheme}://...@{rest.rpartition('@')[2]}"
    return f"{start}?..." if options else start


def place_of(location: RegionLocation) -> tuple[object, ...]:
    """Return what two spellings of one place have in common; a directory is looked at, through links."""
    if isinstance(location, S3Location):
        return "s3", (location.endpoint_url or "").rstrip("/"), location.bucket, location.prefix.strip("/")
    if isinstance(location, MemoryLocation):
        return "memory", location.name
    try:
        status = location.path.stat()
    except OSError:
        return "directory", location.path
    return "directory", status.st_dev, status.st_ino


def open_store(
    location: RegionLocation, credentials: S3Credentials | None = None, lock_prefixes: tuple[str, ...] = ()
) -> ObjectStore:
    """Return the store at ``location``; nothing is asked or made yet.  Raises StoreRefused.

    ``lock_prefixes``: objects with these are locked as they are put, where the location says how.
    """
    if isinstance(location, S3Location):
        lock = None
        if location.lock is not None and location.lock_days is not None:
            lock = S3Lock(location.lock, location.lock_days, lock_prefixes)
        return S3Store(
            location.bucket,
            location.prefix,
            endpoint_url=location.endpoint_url,
            region_name=location.region_name,
            credentials=credentials,
            profile=PROFILES[location.profile],
            ca_bundle=location.ca_bundle,
            lock=lock,
        )
    if isinstance(location, DirectoryLocation):
        return DirectoryStore(location.path)
    with _memory_lock:
        return _memory_stores.setdefault(location.name, MemoryStore())


def create_store(location: RegionLocation, credentials: S3Credentials | None = None) -> ObjectStore:
    """Return the store at ``location``, made ready for objects; may be repeated.

    A directory is made a region.  A bucket must exist: who makes it also decides on its versioning,
    lock and policy.  Raises StoreRefused or StoreUnavailable if it cannot be listed.
    """
    if isinstance(location, DirectoryLocation):
        return DirectoryStore.create(location.path)
    store = open_store(location, credentials)
    next(iter(store.list_objects("")), None)
    return store


def _parse_s3(bucket: str, path: str, query: str) -> S3Location:
    if _BUCKET.fullmatch(bucket) is None:
        raise MalformedURL(f"not a bucket's name: {bucket!r}")
    prefix = path.strip("/")
    try:
        check_prefix(f"{prefix}/" if prefix else "")
    except StoreRefused as error:
        raise MalformedURL(f"not a prefix of keys: {prefix!r}") from error
    options = _options(query)
    endpoint = options.get("endpoint")
    if endpoint is not None:
        _check_endpoint(endpoint)
    region = options.get("region")
    if region is not None and _REGION.fullmatch(region) is None:
        raise MalformedURL(f"not a region's name: {region!r}")
    # A server of one's own is rarely AWS, but guessing its dialect would guess how safe a put is.
    profile = options.get("profile", "aws")
    if profile not in PROFILES:
        raise MalformedURL(f"unknown profile {profile!r}; known: {', '.join(PROFILES)}")
    lock, days = _lock(options)
    return S3Location(bucket, prefix, endpoint, region, profile, options.get("ca"), lock, days)


def _lock(options: dict[str, str]) -> tuple[LockMode | None, int | None]:
    lock, days = options.get("lock"), options.get("lock_days", "")
    if lock is None and not days:
        return None, None
    if lock not in _MODES:
        raise MalformedURL(f"lock is one of {', '.join(_MODES)}")
    if not days.isascii() or not days.isdigit() or not 1 <= int(days) <= LOCK_DAYS_MAX:
        raise MalformedURL(f"lock needs lock_days, from 1 to {LOCK_DAYS_MAX}")
    return _MODES[lock], int(days)


def _options(query: str) -> dict[str, str]:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True) if query else []
    except ValueError as error:
        raise MalformedURL("the options of a region URL are name=value, joined by &") from error
    options: dict[str, str] = {}
    for name, value in pairs:
        if name not in _OPTIONS:
            # The value is left out: it may be a secret.
            raise MalformedURL(f"unknown option {name!r}; known: {', '.join(_OPTIONS)}")
        if name in options or not value:
            raise MalformedURL(f"option {name!r} needs one value")
        options[name] = value
    return options


def _check_endpoint(endpoint: str) -> None:
    try:
        parts = urlsplit(endpoint)
        has_port = parts.port is None or parts.port > 0
        has_credentials = parts.username is not None or parts.password is not None
    except ValueError as error:
        raise MalformedURL(f"not an endpoint: {error}") from error
    if has_credentials:
        raise MalformedURL("an endpoint must not hold credentials; give them in the configuration")
    if parts.scheme not in ("http", "https") or not parts.hostname or not has_port:
        raise MalformedURL("an endpoint is http:// or https:// and a host")
    if parts.path.strip("/") or parts.query or parts.fragment:
        raise MalformedURL("an endpoint has no path and no options")
