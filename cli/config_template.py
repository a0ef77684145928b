"""The configuration that ``pitr init`` writes: every setting, with what it means."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class NewRegion:
    """A region as it is given to ``pitr init``."""

    name: str
    url: str
    credentials_file: Path | None = None


@dataclass(frozen=True, slots=True)
class NewConfig:
    """What differs from one new configuration to the next."""

    cluster: str
    dsn: str
    slot: str
    repository: str
    root: str
    recipients: tuple[str, ...]
    quorum: int
    regions: tuple[NewRegion, ...]
    signing_key_file: Path
    state_dir: Path
    metrics_listen: str = "127.0.0.1:9187"
    timezone: str | None = None
    wal_source: str = "stream"


# What is the same in every new configuration.
_RETENTION = """\
[retention]
# What "pitr expire" keeps: whatever leads to a moment in this window, and so many full backups at least.
pitr_window = "35d"
minimum_backups = 2
"""

_EVENTS = """\
# Kafka beside the database: fences say which offsets belong to which commits (docs/events.md).
# [events]
# bootstrap = "kafka1:9092,kafka2:9092"
# client_file = "kafka.properties"   # mode 600: security.protocol, sasl.*, ssl.*
#
# [[events.topic]]
# name = "orders"
# flow = "db-first"    # or "sink-cursor", "sink-group", "event-first"

"""

# When backups begin by themselves.
_FULL_EVERY = 'full_every = "24h"'
_INCR_EVERY = 'incr_every = "1h"'

_BACKUP = f"""\
[backup]
workers = 2
{_FULL_EVERY}     # or "never"
{_INCR_EVERY}      # only what changed since the last one; or "never"
deadline = "12h"
source = "files"       # "protocol": over a replication connection, where the server's files are elsewhere
# Kindness to the server: how fast to read ("200 MiB/s", or "none"), and the copying threads' priority.
rate_limit = "none"    # changed while a backup runs by: pitr backup limit
nice = 10
io_class = "best-effort"   # or "idle": only when nobody else wants the disk
# Pause while a standby is so far behind ("64 MiB", "10s") or a commit takes so long ("200ms").
pause_lag = "off"
pause_latency = "off"
"""

_SOURCE = 'source = "stream"'
_WAL = f"""\
[wal]
# WAL is sent when it is this old, or when there is this much of it (with what else waits by then).
piece_age_s = 1.0
piece_bytes = {4 << 20}
puts_in_flight = 4
# On a database that is idle for so long, commit an empty message, so that a moment then has a time.
heartbeat = "off"      # or "1s"
# "archive": nothing is streamed, WAL comes from PostgreSQL's archive_command (see: pitr wal gate).
{_SOURCE}
# Where synchronous_standby_names names "pitr", commits wait until their WAL is in the quorum of regions:
# so many puts are then on their way at a time, and begin so far apart (docs/synchronous.md).
sync_puts_in_flight = 8
sync_spacing = "5ms"
# When the quorum is lost: "data" lets commits wait for it, "primary" lets them go on with less, step by step,
# each after so long; and the watchdog releases them when the daemon is dead for so long.
protect = "data"
lower_after = "30s"
release_after = "120s"
# While no region takes WAL, the slot keeps it on the server's disk: "keep" lets that fill, "drop" gives the
# slot up (a gap, and a new full backup) when it would be full so soon, or has no more than this left.
when_disk_fills = "keep"
drop_before = "30min"
drop_below = "1 GiB"
# What 1,000 puts into one region cost, for the forecast in `pitr status`.
put_price = 0.005
"""


def render_config(new: NewConfig) -> str:
    """Return the text of a configuration file."""
    regions = "\n".join(_region(region) for region in new.regions)
    recipients = "".join(f"    {_quote(recipient)},\n" for recipient in new.recipients)
    zone = f"timezone = {_quote(new.timezone)}" if new.timezone else '# timezone = "Europe/Berlin"'
    return f"""\
# pitr: what to back up, and where to.  Checked with: pitr doctor
# No secret stands in this file; keys and credentials are in files of their own.

# The zone of times that name none, as in --to "2026-11-23 14:05".  Without it such times are refused.
{zone}

[cluster]
name = {_quote(new.cluster)}
# libpq's connection string or URI, without a password (~/.pgpass or passfile= holds it).
dsn = {_quote(new.dsn)}
# Patroni: the REST addresses of all members; host and port above are then the leader's.
# patroni = ["http://pg1:8008", "http://pg2:8008"]
# The physical replication slot that keeps WAL while we are away.
slot = {_quote(new.slot)}

[repository]
id = {_quote(new.repository)}
# In how many regions an object must be before it counts as kept; the others follow in the background.
quorum = {new.quorum}

{regions}
[keys]
# This host's own key: says who wrote an object, and opens none.
signing_key_file = {_quote(str(new.signing_key_file))}
# The repository's root key (public): says which hosts may write.
root = {_quote(new.root)}
# Who can read the backups (public keys).  The matching identities belong on no database host.
recipients = [
{recipients}]

{_WAL.replace(_SOURCE, f"source = {_quote(new.wal_source)}")}
{_BACKUP}
{_RETENTION}
[daemon]
# Spool, catalogue, repair queue and control socket.  All of it can be lost without losing a backup.
state_dir = {_quote(str(new.state_dir))}
# Prometheus metrics, on loopback only; "off" for none.
metrics_listen = {_quote(new.metrics_listen)}
# How long a stop may take to send what has arrived.
drain = "25s"
# How much sealed WAL may wait on disk; beyond it the slot keeps the rest on the server.
spool_bytes_max = {1 << 30}

# Restores that are verified each week, best on a machine of the verifier's own (docs/verify.md).
# [verify]
# identity_file = "/vault/identity.toml"
# every = "7d"

{_EVENTS}[postgres]
# Where the programs of PostgreSQL are; without it they are looked for in the usual places.
# bin_dir = "/usr/lib/postgresql/17/bin"
"""


def without_schedule(text: str) -> str:
    """Return a configuration that was rendered here so that no backup begins by itself."""
    for line in (_FULL_EVERY, _INCR_EVERY):
        assert line in text, f"the configuration lacks {line}"
        text = text.replace(line, f'{line.partition("=")[0]}= "never"')
    return text


def _region(region: NewRegion) -> str:
    credentials = (
        f"credentials_file = {_quote(str(region.credentials_file))}\n"
        if region.credentials_file is not None
        else '# credentials_file = "/etc/pitr/credentials"     # an AWS credentials file\n'
    )
    return f"[[region]]\nname = {_quote(region.name)}\nurl = {_quote(region.url)}\n{credentials}"


def _quote(text: str) -> str:
    """Return a TOML basic string; JSON's form is one, but for DEL, which it leaves as it is."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
