"""What the replication protocol's commands are refused for, each with its own way out."""

from __future__ import annotations

from psycopg import pq

from pitr.errors import PitrError, ServerRefused, ServerUnavailable

# Connection, resources, in use, operator intervention, system: what may be otherwise in a minute.
_UNAVAILABLE_CLASSES = ("08", "40", "53", "55006", "57", "58")
_REFUSED_TEXTS = ("authentication", "pg_hba.conf", "does not exist", "no password", "not permitted")


class WalRemoved(ServerRefused):
    """The server no longer has the WAL that was asked for."""


class HistoryMissing(ServerRefused):
    """The server does not have that timeline's history file."""


class SlotLost(ServerRefused):
    """The replication slot does not exist, or the server has invalidated it."""


class SlotExists(ServerRefused):
    """There is a replication slot of this name already."""


_FILE_MISSING = "58P01"
# What the commands of this protocol can be refused for, each with its own way out.
_LEAVES: dict[str, type[ServerRefused]] = {
    "42704": SlotLost,
    "55000": SlotLost,
    "42710": SlotExists,
}


def server_error(result: pq.abc.PGresult, missing: type[ServerRefused] = ServerRefused) -> PitrError:
    """Make an error of the server's; ``missing`` is what a file that is not there means to this command."""
    state = (result.error_field(pq.DiagnosticField.SQLSTATE) or b"").decode()
    text, detail, hint = (
        (result.error_field(field) or b"").decode("utf-8", "replace")
        for field in (
            pq.DiagnosticField.MESSAGE_PRIMARY,
            pq.DiagnosticField.MESSAGE_DETAIL,
            pq.DiagnosticField.MESSAGE_HINT,
        )
    )
    if not state:
        return connection_error(text or result.error_message.decode("utf-8", "replace"))
    error: type[PitrError] = ServerUnavailable if state.startswith(_UNAVAILABLE_CLASSES) else ServerRefused
    error = missing if state == _FILE_MISSING else _LEAVES.get(state, error)
    return error(text, detail=detail or None, hint=hint or None)


def connection_error(text: str) -> PitrError:
    """Make an error of libpq's words: only they say why a connection failed."""
    is_refused = any(part in text for part in _REFUSED_TEXTS)
    lines = text.strip().splitlines() or ["connection lost"]
    error = ServerRefused if is_refused else ServerUnavailable
    return error(lines[0], detail="\n".join(lines[1:]) or None)
