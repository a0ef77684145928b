"""How a Kafka cluster is asked: clients, deadlines, what errors mean.  A home of confluent_kafka.

* Every wait has a deadline.  What a cluster could not answer in it is BrokerUnavailable.
* librdkafka writes no log of its own: its lines are not ours to redact.  Its errors are kept, the last one.

Reference: librdkafka CONFIGURATION.md.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeVar

from pitr.errors import NotInitialised
from pitr.events.broker import BrokerRefused, BrokerUnavailable
from pitr.events.kafka_errors import is_passing, is_refusal, reason_of

if TYPE_CHECKING:
    from confluent_kafka.admin import AdminClient

CALL_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 30.0
"""How long a read may make no progress."""
_PASSING_PAUSE_S = 0.1
_GRACE_S = 1.0  # librdkafka's own deadline comes first, and says more

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class KafkaSettings:
    """Where a cluster is; ``client`` are librdkafka's settings for security, and may hold secrets."""

    bootstrap: str
    client: Mapping[str, str] = field(default_factory=dict, repr=False)
    call_timeout_s: float = CALL_TIMEOUT_S
    read_timeout_s: float = READ_TIMEOUT_S


class Passing(BrokerUnavailable):
    """It will pass by itself, soon."""


class KafkaLink:
    """Clients of one cluster.  They connect when first asked, and again by themselves after an outage."""

    def __init__(self, settings: KafkaSettings) -> None:
        """Raises NotInitialised where the extra ``kafka`` is missing."""
        self.settings: Final = settings
        self.kafka, self.admin_parts = _libraries()
        self._last_error: str | None = None
        self._admin_client: AdminClient | None = None

    def close(self) -> None:
        """Forget the connection; a later call makes a new one."""
        self._admin_client = None

    def admin(self) -> AdminClient:
        if self._admin_client is None:
            self._admin_client = self.call(lambda: self.admin_parts.AdminClient(self._base()))
        return self._admin_client

    def consumer(self, settings: Mapping[str, object], group: str | None = None) -> Any:
        """Return a consumer that commits nothing and joins no group; without ``group``, one of nobody's."""
        own = {
            **self._base(),
            "group.id": f"pitr-{uuid.uuid4()}" if group is None else group,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "error",
            **settings,
        }
        return self.call(lambda: self.kafka.Consumer(own))

    def again(self, ask: Callable[[], T]) -> T:
        """Ask again, within a call's time, while a leader or coordinator changes places."""
        deadline = time.monotonic() + self.settings.call_timeout_s
        while True:
            try:
                return ask()
            except Passing:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_PASSING_PAUSE_S)

    def wait(
        self, future: Future[T], *, what: str = "", or_none_if: Callable[[Any], bool] | None = None
    ) -> Any:
        """Return an answer.  Raises BrokerUnavailable, BrokerRefused."""
        try:
            return future.result(self.settings.call_timeout_s + _GRACE_S)
        except FutureTimeout:
            raise self.no_answer(what) from None
        except self.kafka.KafkaException as failed:
            if or_none_if is not None and or_none_if(failed.args[0]):
                return None
            raise self.error(failed.args[0], what) from failed

    def call(self, do: Callable[[], T], what: str = "") -> T:
        """Do it, with librdkafka's errors as ours."""
        try:
            return do()
        except self.kafka.KafkaException as failed:
            raise self.error(failed.args[0], what) from failed
        except ValueError as wrong:  # a partition or a setting that librdkafka does not take
            raise BrokerRefused(f"Kafka's client refuses the request: {wrong}") from wrong

    def error(self, error: Any, what: str) -> BrokerRefused | BrokerUnavailable:
        """Return an error of librdkafka's as ours."""
        about = f": {what}" if what else ""
        if is_refusal(error):
            return BrokerRefused(f"Kafka refuses{about}", detail=reason_of(error))
        kind = Passing if is_passing(error) else BrokerUnavailable
        return self.no_answer(what, reason_of(error), kind)

    def note(self, error: Any) -> None:
        """Keep an error, to be told with the next call that fails."""
        self._last_error = reason_of(error)

    def no_answer(
        self, what: str, reason: str | None = None, kind: type[BrokerUnavailable] = BrokerUnavailable
    ) -> BrokerUnavailable:
        """Return the failure to raise, with what is known of its reason."""
        if self._admin_client is not None:
            self._admin_client.poll(0)  # hands over what went wrong below
        about = f": {what}" if what else ""
        known = [one for one in (reason, self._last_error) if one]
        return kind(
            f"no answer from Kafka at {self.settings.bootstrap}{about}",
            detail="; ".join(dict.fromkeys(known)) or None,
            hint="is the cluster up, and are its address and client_file right?",
        )

    def _base(self) -> dict[str, object]:
        timeout_ms = int(self.settings.call_timeout_s * 1000)
        return {
            **self.settings.client,
            "bootstrap.servers": self.settings.bootstrap,
            "log_level": 0,
            "error_cb": self.note,
            "socket.timeout.ms": max(timeout_ms, 1000),
            "socket.connection.setup.timeout.ms": max(timeout_ms, 1000),
            # After an outage it is tried again within a fence's time, not after librdkafka's ten seconds.
            "reconnect.backoff.max.ms": 1000,
        }


def _libraries() -> tuple[Any, Any]:
    try:
        import confluent_kafka
        import confluent_kafka.admin
    except ImportError as missing:
        raise NotInitialised(
            "Kafka's client is not installed", hint="install the extra: pip install 'pitr[kafka]'"
        ) from missing
    return confluent_kafka, confluent_kafka.admin
