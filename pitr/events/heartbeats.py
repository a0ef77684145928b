"""Heartbeats of MirrorMaker 2: how old what a mirror brought last is.  Pure.

The source's heartbeats are mirrored like all else, so the newest copy says when the mirror last did anything.
Reference: Apache Kafka, ``Heartbeat``: key STRING source, STRING target; value INT16 version 0, INT64 ms.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from pitr.errors import MalformedValue

_LENGTH: Final = struct.Struct(">h")
_VALUE: Final = struct.Struct(">hq")
_ALIAS_BYTES_MAX: Final = 249


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Written for the flow from ``source`` to ``target``, by MirrorMaker's clock."""

    source: str
    target: str
    timestamp_ms: int


def decode_heartbeat(key: bytes | None, value: bytes | None) -> Heartbeat:
    """Decode a record of a heartbeats topic.  Raises MalformedValue for anything else."""
    if key is None or value is None or len(value) != _VALUE.size:
        raise MalformedValue("not a heartbeat")
    source, rest = _text(key)
    target, rest = _text(rest)
    version, timestamp_ms = _VALUE.unpack(value)
    if rest or version != 0 or timestamp_ms < 0:
        raise MalformedValue(f"not a heartbeat: version {version}, {len(rest)} bytes too many")
    return Heartbeat(source, target, timestamp_ms)


def _text(content: bytes) -> tuple[str, bytes]:
    length = _LENGTH.unpack_from(content)[0] if len(content) >= _LENGTH.size else -1
    end = _LENGTH.size + length
    if not 0 < length <= _ALIAS_BYTES_MAX or len(content) < end or not content[_LENGTH.size : end].isascii():
        raise MalformedValue("not a heartbeat: it names no cluster")
    return content[_LENGTH.size : end].decode("ascii"), content[end:]
