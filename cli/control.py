"""The control socket: how the CLI talks to a running daemon.  Messages and both ends' framing.

One request and its replies per connection, each a line of JSON on a Unix socket that only
its owner may open.  A request is ``{"verb": …, "options": {…}}``.  Replies are any number of
``{"progress": {…}}`` and one of ``{"result": {…}}`` or ``{"error": {…}}``.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cli.errors import DaemonRefused, ExitCode, Failure
from cli.lock import RunLock
from cli.settings import DaemonSettings
from pitr.errors import MalformedValue, NotInitialised, PitrError

REQUEST_BYTES_MAX = 64 * 1024
# A status with every region and task is some kilobytes; a fence names all partitions, of which it may have
# 100,000.  More is a mistake on the other side.
REPLY_BYTES_MAX = 16 * 1024 * 1024
VERBS = ("status", "backup", "stop", "repair", "limit", "fence")

ProgressHandler = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True, slots=True)
class ControlRequest:
    """What the daemon is asked to do."""

    verb: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def encode(self) -> bytes:
        """Return the line to send."""
        return encode_line({"verb": self.verb, "options": dict(self.options)})

    @classmethod
    def decode(cls, line: bytes) -> ControlRequest:
        """Read a line.  Raises MalformedValue."""
        message = decode_line(line)
        verb, options = message.get("verb"), message.get("options", {})
        if verb not in VERBS or not isinstance(options, dict) or set(message) - {"verb", "options"}:
            raise MalformedValue(
                f"not a control request: {verb!r}", hint="the daemon knows " + ", ".join(VERBS)
            )
        return cls(verb, options)


def encode_line(message: Mapping[str, Any]) -> bytes:
    """Return ``message`` as a line of JSON."""
    return json.dumps(message, separators=(",", ":"), default=str).encode() + b"\n"


def encode_failure(failure: Failure) -> bytes:
    """Return the reply that tells of an error."""
    return encode_line(
        {
            "error": {
                "number": failure.number,
                "exit": int(failure.exit_code),
                "message": failure.message,
                "why": failure.why,
                "next": failure.next,
            }
        }
    )


def decode_line(line: bytes) -> dict[str, Any]:
    """Read a line of JSON that must be an object.  Raises MalformedValue."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise MalformedValue("not a line of the control protocol") from error
    if not isinstance(message, dict):
        raise MalformedValue("not a line of the control protocol")
    return message


def read_line(connection: socket.socket, pending: bytearray, bytes_max: int) -> bytes | None:
    """Return the next line, None at the end; ``pending`` keeps what came after it.  Raises MalformedValue."""
    while True:
        end = pending.find(b"\n")
        if end >= 0:
            line = bytes(pending[:end])
            del pending[: end + 1]
            return line
        if len(pending) > bytes_max:
            raise MalformedValue(f"a control message is longer than {bytes_max} bytes")
        received = connection.recv(65_536)
        if not received:
            return None
        pending += received


def ask_daemon(
    path: Path,
    request: ControlRequest,
    *,
    timeout_s: float,
    on_progress: ProgressHandler | None = None,
) -> Mapping[str, Any]:
    """Send a request and return its result.  ``timeout_s`` bounds each wait, not the whole run.

    Raises NotInitialised if no daemon listens, DaemonRefused if it answers with an error.
    """
    pending = bytearray()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout_s)
        try:
            connection.connect(str(path))
            connection.sendall(request.encode())
            while (line := read_line(connection, pending, REPLY_BYTES_MAX)) is not None:
                message = decode_line(line)
                if "progress" in message:
                    if on_progress is not None:
                        on_progress(message["progress"])
                elif "error" in message:
                    raise _refusal(message["error"])
                elif "result" in message:
                    result: Mapping[str, Any] = message["result"]
                    return result
        except TimeoutError as error:
            raise PitrError(
                f"the daemon gave no answer in {timeout_s:.0f} s",
                detail=f"socket {path}",
                hint="look at its log",
            ) from error
        except OSError as error:
            raise NotInitialised(
                "no daemon is running",
                detail=f"nobody answers at {path}: {error.strerror or error}",
                hint="start it with: pitr daemon",
            ) from error
    raise PitrError("the daemon went away while it worked", detail=f"socket {path}", hint="look at its log")


def ask_own_daemon(
    daemon: DaemonSettings,
    request: ControlRequest,
    *,
    timeout_s: float,
    on_progress: ProgressHandler | None = None,
) -> Mapping[str, Any]:
    """Ask the daemon of a configuration; see ``ask_daemon``.  Tells one that has only begun from none."""
    try:
        return ask_daemon(daemon.control_path, request, timeout_s=timeout_s, on_progress=on_progress)
    except NotInitialised as error:
        holder = RunLock.holder(daemon.lock_path)
        if holder is None:
            raise
        raise NotInitialised(
            "the daemon is not ready yet",
            detail=f"process {holder} has only begun, or is about to end",
            hint="repeat it; if it stays so, look at its log",
        ) from error


def _refusal(error: Mapping[str, Any]) -> DaemonRefused:
    return DaemonRefused(
        str(error.get("message", "the daemon refused")),
        detail=str(error.get("why", "")),
        hint=str(error.get("next", "")),
        number=int(error.get("number", 1010)),
        exit_code=ExitCode(int(error.get("exit", 1))),
    )
