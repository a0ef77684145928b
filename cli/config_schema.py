"""The schema of the configuration: what each setting may be, checked by pydantic, made ``cli.settings``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationError,
)

from cli.config_dsn import chosen_host, no_password, patroni_url
from cli.config_events import EventsTable, MirrorTable, ReplayTable, TopicTable, events_settings
from cli.config_mistakes import (
    PIECE_BYTES,
    SPOOL_BYTES_MAX,
    Mistake,
    SoundSettings,
    contradictions,
    unknown_setting,
)
from cli.config_table import Duration, Name, Table
from cli.config_values import (
    as_value_error,
    read_duration,
    read_duration_or_never,
    read_heartbeat,
    read_known_zone,
    read_lag,
    read_latency,
    read_listen,
    read_objective,
    read_rate,
    read_recipient,
    read_region_url,
    read_root,
    read_size,
)
from cli.config_verify import DrillsTable, VerifyTable, verify_settings
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
from pitr.disk_forecast import DropPolicy
from pitr.errors import PitrError
from pitr.priority import Priority
from pitr.protection import Protect, ProtectionPolicy
from pitr.strain import StrainBounds

REGIONS_MAX = 16
PATRONI_MEMBERS_MAX = 32


class _Cluster(Table):
    name: Name = "main"
    dsn: Annotated[str, Field(min_length=1), AfterValidator(no_password), AfterValidator(chosen_host)]
    slot: Annotated[str, Field(pattern=r"^[a-z0-9_]{1,63}$")] = "pitr"
    patroni: Annotated[
        list[Annotated[str, as_value_error(patroni_url)]], Field(max_length=PATRONI_MEMBERS_MAX)
    ] = Field(default_factory=list)
    patroni_ca_file: str | None = None
    patroni_certificate_file: str | None = None
    patroni_key_file: str | None = None


class _Repository(Table):
    id: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    quorum: Annotated[int, Field(ge=1, le=REGIONS_MAX)]


class _Region(Table):
    name: Name
    url: Annotated[str, AfterValidator(read_region_url)]
    credentials_file: str | None = None
    credentials_profile: Annotated[str, Field(min_length=1)] = "default"


class _Keys(Table):
    signing_key_file: str
    root: Annotated[str, as_value_error(read_root)]
    recipients: Annotated[list[Annotated[str, as_value_error(read_recipient)]], Field(max_length=32)] = Field(
        default_factory=list
    )
    recipients_file: str | None = None


class _Wal(Table):
    piece_age_s: Annotated[float, Field(ge=0.05, le=3600)] = 1.0
    piece_bytes: Annotated[int, Field(ge=64 << 10, le=16 << 20)] = PIECE_BYTES
    puts_in_flight: Annotated[int, Field(ge=1, le=16)] = 4
    heartbeat: Annotated[float | None, BeforeValidator(read_heartbeat)] = None
    source: Literal["stream", "archive"] = "stream"
    gate_dir: Annotated[str, Field(min_length=1)] | None = None
    gate_group: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}$")] | None = None
    sync_puts_in_flight: Annotated[int, Field(ge=1, le=16)] = 8
    sync_spacing: Annotated[float, BeforeValidator(read_duration), Field(ge=0.001, le=10)] = 0.005
    protect: Literal["data", "primary"] = "data"
    lower_after: Annotated[float, BeforeValidator(read_duration), Field(ge=1, le=3600)] = 30.0
    release_after: Annotated[float, BeforeValidator(read_duration), Field(ge=1, le=86_400)] = 120.0
    when_disk_fills: Literal["keep", "drop"] = "keep"
    drop_before: Annotated[float, BeforeValidator(read_duration), Field(ge=60, le=30 * 86_400)] = 1_800.0
    drop_below: Annotated[int, BeforeValidator(read_size), Field(ge=64 << 20, le=1 << 50)] = 1 << 30
    put_price: Annotated[float, Field(ge=0, le=1000)] = 0.005


class _Backup(Table):
    workers: Annotated[int, Field(ge=1, le=64)] = 2
    # One union member at a time would give two messages for one mistake.
    full_every: Annotated[float | None, BeforeValidator(read_duration_or_never)] = 86_400.0
    incr_every: Annotated[float | None, BeforeValidator(read_duration_or_never)] = 3_600.0
    deadline: Duration = 43_200.0
    source: Literal["files", "protocol"] = "files"
    rate_limit: Annotated[float | None, BeforeValidator(read_rate)] = None
    nice: Annotated[int, Field(ge=0, le=19)] = 10
    io_class: Literal["best-effort", "idle"] = "best-effort"
    pause_lag: Annotated[tuple[int | None, float | None], BeforeValidator(read_lag)] = (None, None)
    pause_latency: Annotated[float | None, BeforeValidator(read_latency)] = None
    rto_objective: Annotated[float | None, BeforeValidator(read_objective)] = None


class _Retention(Table):
    pitr_window: Annotated[
        float, BeforeValidator(read_duration), Field(ge=10, le=3660 * 86_400, allow_inf_nan=False)
    ] = 35 * 86_400.0
    minimum_backups: Annotated[int, Field(ge=1, le=1000)] = 2


class _Daemon(Table):
    state_dir: str
    metrics_listen: Annotated[str, AfterValidator(read_listen)] = "127.0.0.1:9187"
    drain: Duration = 25.0
    # At least what may be under way at once: the pieces' puts, and segments of 16 MiB.
    spool_bytes_max: Annotated[int, Field(ge=8 << 20, le=1 << 40)] = SPOOL_BYTES_MAX


class _Postgres(Table):
    bin_dir: str | None = None


class _Config(Table):
    cluster: _Cluster
    repository: _Repository
    region: Annotated[list[_Region], Field(min_length=1, max_length=REGIONS_MAX)]
    keys: _Keys
    daemon: _Daemon
    wal: _Wal = _Wal()
    backup: _Backup = _Backup()
    retention: _Retention = _Retention()
    postgres: _Postgres = _Postgres()
    verify: VerifyTable | None = None
    events: EventsTable | None = None
    timezone: Annotated[str, AfterValidator(read_known_zone)] | None = None


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
            ("verify", VerifyTable),
            ("verify.drills", DrillsTable),
            ("events", EventsTable),
            ("events.topic", TopicTable),
            ("events.mirror", MirrorTable),
            ("events.replay", ReplayTable),
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
        mistakes = [mistake_of(line) for line in error.errors(include_url=False, include_input=False)]
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


def _wal_settings(wal: _Wal, base: Path) -> WalSettings:
    return WalSettings(
        wal.piece_age_s,
        wal.piece_bytes,
        wal.puts_in_flight,
        wal.heartbeat,
        wal.source,
        _path(base, wal.gate_dir) if wal.gate_dir else None,
        wal.gate_group,
        sync_puts_in_flight=wal.sync_puts_in_flight,
        sync_spacing_s=wal.sync_spacing,
        protection=ProtectionPolicy(Protect(wal.protect), wal.lower_after),
        put_price=wal.put_price,
        release_after_s=wal.release_after,
        drop=DropPolicy(wal.when_disk_fills == "drop", wal.drop_before, wal.drop_below),
    )


# pydantic's words for these are a programmer's.
_EXPECTED = {
    "string_type": "text in quotes",
    "int_type": "a whole number",
    "float_type": "a number",
    "list_type": "a list: [...]",
}


def mistake_of(line: Any) -> Mistake:
    """Say in people's words what pydantic found wrong."""
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
            recipients.append(read_recipient(line))
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
        cluster=ClusterSettings(
            config.cluster.name,
            config.cluster.dsn,
            config.cluster.slot,
            tuple(config.cluster.patroni),
            *(
                None if file is None else _path(base, file)
                for file in (
                    config.cluster.patroni_ca_file,
                    config.cluster.patroni_certificate_file,
                    config.cluster.patroni_key_file,
                )
            ),
        ),
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
        wal=_wal_settings(config.wal, base),
        backup=BackupSettings(
            config.backup.workers,
            config.backup.full_every,
            config.backup.incr_every,
            config.backup.deadline,
            config.backup.source,
            rate_limit=config.backup.rate_limit,
            priority=Priority(config.backup.nice, config.backup.io_class),
            strain=StrainBounds(*config.backup.pause_lag, config.backup.pause_latency),
            rto_objective_s=config.backup.rto_objective,
        ),
        retention=RetentionSettings(config.retention.pitr_window, config.retention.minimum_backups),
        verify=verify_settings(
            config.verify, base, _path(base, config.daemon.state_dir), config.cluster.name
        ),
        events=events_settings(config.events, base),
        timezone=config.timezone,
        bin_dir=_path(base, config.postgres.bin_dir) if config.postgres.bin_dir else None,
    )
