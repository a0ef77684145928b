"""Brokers from the configuration: the client file with its secrets is read here, and nowhere shown."""

from __future__ import annotations

import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from cli.errors import ConfigRefused

if TYPE_CHECKING:
    from pitr.events.kafka import KafkaBroker
    from pitr.events.kafka_link import KafkaSettings

FILE_BYTES_MAX = 64 * 1024
# What says how to reach and trust a cluster.  How it is read is ours to say; nothing here loads a program.
_ALLOWED = re.compile(
    r"security\.protocol|sasl\.[a-z._]+|ssl\.[a-z._]+|enable\.ssl\.certificate\.verification"
    r"|enable\.sasl\.oauthbearer\.unsecure\.jwt|client\.(?:id|rack|dns\.lookup)|broker\.address\.family"
    r"|socket\.(?:keepalive\.enable|nagle\.disable)|https\.ca\.(?:location|pem)"
)
_REFUSED = ("ssl.engine.location", "ssl.providers", "sasl.kerberos.kinit.cmd")


def read_client_file(path: Path | None) -> dict[str, str]:
    """Return librdkafka's settings of a file: ``name=value`` a line, ``#`` begins a comment.

    Raises ConfigRefused, which names settings and lines and never a value.
    """
    if path is None:
        return {}
    try:
        mode = path.stat().st_mode
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise ConfigRefused(
                f"others may read {path}",
                detail="it may hold the password of Kafka's user",
                hint=f"chmod 600 {path}",
            )
        with path.open("r", encoding="utf-8") as file:
            content = file.read(FILE_BYTES_MAX + 1)
    except (OSError, UnicodeDecodeError) as error:
        text = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigRefused(f"{path} cannot be read", detail=text, hint="see [events] client_file") from error
    if len(content) > FILE_BYTES_MAX:
        raise ConfigRefused(f"{path} has more than {FILE_BYTES_MAX} bytes", hint="see [events] client_file")
    found: dict[str, str] = {}
    for number, line in enumerate(content.splitlines(), 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        name, equals, value = text.partition("=")
        name = name.strip()
        if not equals or _ALLOWED.fullmatch(name) is None or name in _REFUSED:
            shown = name if equals and re.fullmatch(r"[a-z._]{1,80}", name) else "what stands there"
            raise ConfigRefused(
                f"line {number} of {path}: {shown} is no setting that may stand there",
                hint="librdkafka's security.protocol, sasl.*, ssl.* and client.* may; see docs/events.md",
            )
        found[name] = value.strip()
    return found


def open_kafka(bootstrap: str, client_file: Path | None) -> KafkaBroker:
    """Return a broker; it connects when it is first asked.  Raises ConfigRefused, NotInitialised."""
    from pitr.events.kafka import KafkaBroker

    return KafkaBroker(kafka_settings(bootstrap, client_file))


def kafka_settings(bootstrap: str, client_file: Path | None) -> KafkaSettings:
    """Return where a cluster is, and how to speak with it.  Raises ConfigRefused."""
    from pitr.events.kafka_link import KafkaSettings

    return KafkaSettings(bootstrap, read_client_file(client_file))
