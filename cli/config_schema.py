"""The schema of the configuration: what each setting may be, checked by pydantic, made ``cli.settings``."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
)

from cli.config_mistakes import (
    PIECE_BYTES,
    SPOOL_BYTES_MAX,
    Mistake,
    SoundSettings,
    contradictions,
    unknown_setting,
)
from cli.settings import (
    BackupSettings,
    ClusterSettings,
    DaemonSettings,
    KeySettings,
    RegionSettings,
    RepositorySettings,
    RetentionSettings,
    Settings,
    WalSettings,
)
from cli.units import NO_LIMIT, parse_duration, parse_rate, parse_size
from pitr.errors import MalformedValue, PitrError
from pitr.pipeline.keys import Recipient
from pitr.pipeline.sign import Verifier
from pitr.priority import Priority
from pitr.strain import StrainBounds
from storage.url import parse_region_url

REGIONS_MAX = 16
# A look at the server ends after ten seconds.
LATENCY_MAX_S = 10.0
_PASSWORD = re.compile(r"(^|[\s?&])password\s*=", re.IGNORECASE)
_URL_PASSWORD = re.compile(r"^[a-z0-9+]+://[^/@]*:[^/@]*@", re.IGNORECASE)


def _duration(value: object) -> float:
    if isinstance(value, str):
        return parse_duration(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    raise ValueError("expected seconds, or a text such as '24h'")


def _no_password(dsn: str) -> str:
    if _PASSWORD.search(dsn) or _URL_PASSWORD.match(dsn):
        raise ValueError("a password must not stand here; use a password file (passfile=, ~/.pgpass)")
    return dsn


def _known_zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError("expected an IANA zone such as 'Europe/Berlin'") from error
    return name


def _duration_or_never(value: object) -> float | None:
    if value == "never":
        return None
    duration_s = _duration(value)
    if not 60 <= duration_s <= 366 * 86_400:
        raise ValueError("expected 'never', or at least 60s and at most 366d")
    return duration_s


def _heartbeat(value: object) -> float | None:
    if value == "off":
        return None
    duration_s = _duration(value)
    if not 0.5 <= duration_s <= 3600:
        raise ValueError("expected 'off', or at least 500ms and at most 1h")
    return duration_s


def _rate(value: object) -> float | None:
    if not isinstance(value, str):
        raise ValueError(f"expected a rate such as '200 MiB/s', or '{NO_LIMIT}'")
    return parse_rate(value)


def _lag(value: object) -> tuple[int | None, float | None]:
    """Return bytes, or seconds."""
    if value == "off":
        return None, None
    if isinstance(value, str):
        with contextlib.suppress(MalformedValue):
            return None, parse_duration(value)
        with contextlib.suppress(MalformedValue):
            return parse_size(value), None
    raise ValueError("expected a size such as '64 MiB', a duration such as '10s', or 'off'")


def _latency(value: object) -> float | None:
    if value == "off":
        return None
    if isinstance(value, str):
        with contextlib.suppress(MalformedValue):
            latency_s = parse_duration(value)
            if 0.001 <= latency_s <= LATENCY_MAX_S:
                return latency_s
    raise ValueError(f"expected a duration such as '200ms', at most {LATENCY_MAX_S:g}s, or 'off'")


def _listen(text: str) -> str:
    if text == "off":
        return text
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 <= int(port) < 65_536:
        raise ValueError("expected HOST:PORT, such as '127.0.0.1:9187', or 'off'")
    if host not in {"127.0.0.1", "::1", "[::1]", "localhost"}:
        raise ValueError("metrics have no authentication and stay on loopback: 127.0.0.1 or ::1")
    return text


def _recipient(text: str) -> str:
    return str(Recipient.parse(text))


def _root(text: str) -> str:
    return str(Verifier.parse(text))


def _region_url(text: str) -> str:
    return str(parse_region_url(text))


def _as_value_error(parse: Any) -> AfterValidator:
    """Let an error of ours reach pydantic as the ValueError that it collects."""

    def check(value: str) -> Any:
        try:
            return parse(value)
        except PitrError as error:
            raise ValueError("; ".join(filter(None, (error.message, error.hint)))) from error

    return AfterValidator(check)


Duration = Annotated[float, BeforeValidator(_duration), Field(gt=0, le=366 * 86_400, allow_inf_nan=False)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _Cluster(_Table):
    name: Name = "main"
    dsn: Annotated[str, Field(min_length=1), AfterValidator(_no_password)]
    slot: Annotated[str, Field(pattern=r"^[a-z0-9_]{1,63}$")] = "pitr"


class _Repository(_Table):
    id: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    quorum: Annotated[int, Field(ge=1, le=REGIONS_MAX)]


class _Region(_Table):
    name: Name
    url: Annotated[str, AfterValidator(_region_url)]
    credentials_file: str | None = None
    credentials_profile: Annotated[str, Field(min_length=1)] = "default"


class _Keys(_Table):
    signing_key_file: str
    root: Annotated[str, _as_value_error(_root)]
    recipients: Annotated[list[Annotated[str, _as_value_error(_recipient)]], Field(max_length=32)] = []
    recipients_file: str | None = None


class _Wal(_Table):
    piece_age_s: Annotated[float, Field(ge=0.05, le=3600)] = 1.0
    piece_bytes: Annotated[int, Field(ge=64 << 10, le=16 << 20)] = PIECE_BYTES
    puts_in_flight: Annotated[int, Field(ge=1, le=16)] = 4
    heartbeat: Annotated[float | None, BeforeValidator(_heartbeat)] = None


class _Backup(_Table):
    workers: Annotated[int, Field(ge=1, le=64)] = 2
    # One union member at a time would give two messages for one mistake.
    full_every: Annotated[float | None, BeforeValidator(_duration_or_never)] = 86_400.0
    incr_every: Annotated[float | None, BeforeValidator(_duration_or_never)] = 3_600.0
    deadline: Duration = 43_200.0
    source: Literal["files", "protocol"] = "files"
    rate_limit: Annotated[float | None, BeforeValidator(_rate)] = None
    nice: Annotated[int, Field(ge=0, le=19)] = 10
    io_class: Literal["best-effort", "idle"] = "best-effort"
    pause_lag: Annotated[tuple[int | None, float | None], BeforeValidator(_lag)] = (None, None)
    pause_latency: Annotated[float | None, BeforeValidator(_latency)] = None


class _Retention(_Table):
    pitr_window: Annotated[
        float, BeforeValidator(_duration), Field(ge=10, le=3660 * 86_400, allow_inf_nan=False)
    ] = 35 * 86_400.0
    minimum_backups: Annotated[int, Field(ge=1, le=1000)] = 2


class _Daemon(_Table):
    state_dir: str
    metrics_listen: Annotated[str, AfterValidator(_listen)] = "127.0.0.1:9187"
    drain: Duration = 25.0
    # At least what may be under way at once: the pieces' puts, and segments of 16 MiB.
    spool_bytes_max: Annotated[int, Field(ge=8 << 20, le=1 << 40)] = SPOOL_BYTES_MAX


class _Postgres(_Table):
    bin_dir: str | None = None


class _Config(_Table):
    cluster: _Cluster
    repository: _Repository
    region: Annotated[list[_Region], Field(min_length=1, max_length=REGIONS_MAX)]
    keys: _Keys
    daemon: _Daemon
    wal: _Wal = _Wal()
    backup: _Backup = _Backup()
    retention: _Retention = _Retention()
    postgres: _Postgres = _Postgres()
    timezone: Annotated[str, AfterValidator(_known_zone)] | None = None


# The settings that each table may have, for whoever mistypes one.
_KNOWN = {
    "": tuple(_Config.model_fields),
    **{
        name: tuple(table.model_fields)
        for name, table in (
            ("cluster", _Cluster),
            ("repository", _Repository),
            ("region", _Region),
            ("keys", _Keys),
            ("wal", _Wal),
            ("backup", _Backup),
            ("retention", _Retention),
            ("daemon", _Daemon),
            ("postgres", _Postgres),
        )
    },
}


def check_tables(tables: dict[str, Any], *, base: Path, path: Path) -> Settings | list[Mistake]:
    """Return the settings, or every mistake in them.

    ``base`` is the directory that relative paths in the file start from.
    """
    config: _Config | None = None
    mistakes: list[Mistake] = []
    try:
        config = _Config.model_validate(tables)
    except ValidationError as error:
        mistakes = [_mistake(line) for line in error.errors(include_url=False, include_input=False)]
    sound = SoundSettings(tables, mistakes)
    mistakes += contradictions(sound)
    recipients: tuple[str, ...] = ()
    file = sound.get("keys", "recipients_file")
    if isinstance(file, str):
        try:
            recipients = _read_recipients(_path(base, file))
        except (OSError, ValueError) as error:
            text = error.strerror if isinstance(error, OSError) else str(error)
            mistakes.append(Mistake(("keys", "recipients_file"), text or "it cannot be read"))
    if config is None or mistakes:
        return mistakes
    return _settings(config, recipients or tuple(config.keys.recipients), base, path)


# pydantic's words for these are a programmer's.
_EXPECTED = {
    "string_type": "text in quotes",
    "int_type": "a whole number",
    "float_type": "a number",
    "list_type": "a list: [...]",
}


def _mistake(line: Any) -> Mistake:
    text = str(line["msg"]).removeprefix("Value error, ")
    place = tuple(line["loc"])
    if line["type"] == "extra_forbidden":
        text = unknown_setting(place, _KNOWN)
    elif line["type"] == "missing":
        text = "this is required"
    elif line["type"] == "string_pattern_mismatch":
        text = f"expected text that matches {line['ctx']['pattern']}"
    elif line["type"] in ("model_type", "model_attributes_type"):
        text = "expected a table with settings of its own" + (f": [{place[0]}]" if len(place) == 1 else "")
    elif place == ("region",) and line["type"] == "list_type":
        text = "expected [[region]], in two brackets, once for each region"
    elif line["type"] in _EXPECTED:
        text = f"expected {_EXPECTED[line['type']]}"
    elif text.startswith("Input should be"):
        text = "expected " + text.removeprefix("Input should be ").removeprefix("a valid ")
    return Mistake(place, text)


def _read_recipients(path: Path) -> tuple[str, ...]:
    """Return the recipients of a file: one a line, ``#`` begins a comment."""
    with path.open("r", encoding="utf-8") as file:
        content = file.read(256 * 1024)
    lines = [line.partition("#")[0].strip() for line in content.splitlines()]
    recipients = []
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            recipients.append(_recipient(line))
        except PitrError as error:
            raise ValueError(f"line {number} of {path}: {error.message}") from error
    if not recipients:
        raise ValueError(f"{path} names no recipient")
    return tuple(recipients)


def _path(base: Path, text: str) -> Path:
    path = Path(text).expanduser()
    return path if path.is_absolute() else base / path


def _settings(config: _Config, recipients: tuple[str, ...], base: Path, path: Path) -> Settings:
    host, _, port = config.daemon.metrics_listen.rpartition(":")
    return Settings(
        path=path,
        cluster=ClusterSettings(config.cluster.name, config.cluster.dsn, config.cluster.slot),
        repository=RepositorySettings(config.repository.id, config.repository.quorum),
        regions=tuple(
            RegionSettings(
                region.name,
                region.url,
                _path(base, region.credentials_file) if region.credentials_file else None,
                region.credentials_profile,
            )
            for region in config.region
        ),
        keys=KeySettings(_path(base, config.keys.signing_key_file), recipients, config.keys.root),
        daemon=DaemonSettings(
            _path(base, config.daemon.state_dir),
            host.strip("[]") or "127.0.0.1",
            int(port) if host else None,
            config.daemon.drain,
            config.daemon.spool_bytes_max,
        ),
        wal=WalSettings(
            config.wal.piece_age_s, config.wal.piece_bytes, config.wal.puts_in_flight, config.wal.heartbeat
        ),
        backup=BackupSettings(
            config.backup.workers,
            config.backup.full_every,
            config.backup.incr_every,
            config.backup.deadline,
            config.backup.source,
            rate_limit=config.backup.rate_limit,
            priority=Priority(config.backup.nice, config.backup.io_class),
            strain=StrainBounds(*config.backup.pause_lag, config.backup.pause_latency),
        ),
        retention=RetentionSettings(config.retention.pitr_window, config.retention.minimum_backups),
        timezone=config.timezone,
        bin_dir=_path(base, config.postgres.bin_dir) if config.postgres.bin_dir else None,
    )
