"""What librdkafka's error codes ask for: repeat, or call a person.  By number: nothing is imported.

Reference: librdkafka ``rd_kafka_resp_err_t``; Apache Kafka, protocol errors.
"""

from __future__ import annotations

from typing import Protocol

INVALID_TIMESTAMP = 32
_OFFSET_OUT_OF_RANGE = 1
_UNKNOWN_TOPIC_OR_PARTITION = 3
_INVALID_TOPIC = 17
_GROUP_NOT_FOUND = 69
_LOCAL_UNKNOWN_PARTITION = -190
_LOCAL_UNKNOWN_TOPIC = -188
_LOCAL_AUTO_OFFSET_RESET = -140

_REFUSALS = frozenset(
    {
        _UNKNOWN_TOPIC_OR_PARTITION,
        _INVALID_TOPIC,
        25,  # UNKNOWN_MEMBER_ID: a group in use, asked to move
        29,  # TOPIC_AUTHORIZATION_FAILED
        30,  # GROUP_AUTHORIZATION_FAILED
        31,  # CLUSTER_AUTHORIZATION_FAILED
        33,  # UNSUPPORTED_SASL_MECHANISM
        34,  # ILLEGAL_SASL_STATE
        35,  # UNSUPPORTED_VERSION
        42,  # INVALID_REQUEST
        53,  # TRANSACTIONAL_ID_AUTHORIZATION_FAILED
        54,  # SECURITY_DISABLED
        58,  # SASL_AUTHENTICATION_FAILED
        68,  # NON_EMPTY_GROUP
        _GROUP_NOT_FOUND,
        _LOCAL_UNKNOWN_PARTITION,
        _LOCAL_UNKNOWN_TOPIC,
        -186,  # invalid argument
        -169,  # authentication failed
    }
)
# Of one record: too large for the topic, a time too far from the broker's, no key where one is needed.
_RECORD_FAULTS = frozenset({10, INVALID_TIMESTAMP, 87})
# While leaders and coordinators change places, some hundred milliseconds, or a topic has just been made.
_PASSING = frozenset({5, 6, 9, 14, 15, 16, 74, 75, 78})
_REASON_MAX = 300


class KafkaErrorLike(Protocol):
    """The parts of confluent_kafka's KafkaError that are asked for."""

    def code(self) -> int: ...
    def name(self) -> str: ...
    def str(self) -> str: ...


def is_refusal(error: KafkaErrorLike) -> bool:
    """Return whether repeating will not help until a person has changed something."""
    return error.code() in _REFUSALS


def is_record_fault(error: KafkaErrorLike) -> bool:
    """Return whether a broker takes this record never, and others well."""
    return error.code() in _RECORD_FAULTS


def is_passing(error: KafkaErrorLike) -> bool:
    """Return whether it will pass by itself, soon: no leader or coordinator just now, or another one."""
    return error.code() in _PASSING


def is_gone(error: KafkaErrorLike) -> bool:
    """Return whether an offset lies outside of the log."""
    return error.code() in {_OFFSET_OUT_OF_RANGE, _LOCAL_AUTO_OFFSET_RESET}


def is_unknown_topic(error: KafkaErrorLike) -> bool:
    """Return whether there is no such topic or partition."""
    known = {_UNKNOWN_TOPIC_OR_PARTITION, _LOCAL_UNKNOWN_TOPIC, _LOCAL_UNKNOWN_PARTITION}
    return error.code() in known


def is_unknown_group(error: KafkaErrorLike) -> bool:
    """Return whether there is no such group: it has committed nothing, and nobody is in it."""
    return error.code() == _GROUP_NOT_FOUND


def reason_of(error: KafkaErrorLike) -> str:
    """Return an error's name and text, shortened, in one line."""
    text = " ".join(error.str().split())
    return f"{error.name()}: {text}"[:_REASON_MAX]
