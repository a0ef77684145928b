"""Records that no well-behaved client writes, by librdkafka itself: Python's client takes only texts."""

from __future__ import annotations

import ctypes
from typing import Any

import confluent_kafka.cimpl

_PRODUCER = 0
# rd_kafka_vtype_t; the list ends with 0.
_TOPIC, _VALUE, _FLAGS, _HEADERS = 1, 4, 7, 10
_COPY = 2
_FLUSH_MS = 30_000


def produce_with_header(bootstrap: str, topic: str, name: bytes, value: bytes = b"{}") -> None:
    """Produce one record with one header, whose name may be any bytes."""
    # The module is linked with librdkafka, whose names are found through it.
    library = ctypes.CDLL(confluent_kafka.cimpl.__file__)
    for function in ("rd_kafka_conf_new", "rd_kafka_new", "rd_kafka_headers_new"):
        getattr(library, function).restype = ctypes.c_void_p
    pointer, text, number, size = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_ssize_t
    problem = ctypes.create_string_buffer(512)
    config = pointer(library.rd_kafka_conf_new())
    words: list[Any] = [config, b"bootstrap.servers", bootstrap.encode(), problem, ctypes.c_size_t(512)]
    assert library.rd_kafka_conf_set(*words) == 0, problem.value
    client = pointer(library.rd_kafka_new(number(_PRODUCER), config, problem, ctypes.c_size_t(512)))
    assert client, problem.value
    headers = pointer(library.rd_kafka_headers_new(ctypes.c_size_t(1)))
    assert library.rd_kafka_header_add(headers, name, size(len(name)), b"v", size(1)) == 0
    parts = [number(_TOPIC), text(topic.encode())]
    parts += [number(_VALUE), text(value), ctypes.c_size_t(len(value)), number(_FLAGS), number(_COPY)]
    parts += [number(_HEADERS), headers, number(0)]
    assert library.rd_kafka_producev(client, *parts) == 0
    assert library.rd_kafka_flush(client, number(_FLUSH_MS)) == 0
    library.rd_kafka_destroy(client)
