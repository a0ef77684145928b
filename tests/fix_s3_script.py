"""A server on the loopback address that answers S3 requests as a test dictates."""

from __future__ import annotations

import ssl
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from fix_tls import make_certificate


@dataclass(frozen=True)
class Answer:
    """One answer.  ``cut_after`` closes the connection after so many bytes of the body."""

    status: int = 200
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    cut_after: int | None = None
    # Held until the event is set: a server that accepts and then says nothing.
    until: threading.Event | None = None


def error(status: int, code: str, message: str = "as the test says") -> Answer:
    """An error answer in S3's form."""
    text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>"
    return Answer(status, text.encode(), (("Content-Type", "application/xml"),))


@dataclass
class ScriptedS3:
    """``answers`` are given in turn, then the last one for ever; ``requests`` are what was asked."""

    answers: deque[Answer] = field(default_factory=deque)
    requests: list[tuple[str, str]] = field(default_factory=list)
    # How many asked for leave before they sent their body.
    asked_first: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    endpoint: str = ""

    def script(self, *answers: Answer) -> None:
        with self.lock:
            self.answers = deque(answers)
            self.requests.clear()

    def next_answer(self, method: str, path: str) -> Answer:
        with self.lock:
            self.requests.append((method, path))
            return self.answers.popleft() if len(self.answers) > 1 else self.answers[0]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    scripted: ScriptedS3

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        answer = self.scripted.next_answer(self.command, self.path)
        if answer.until is not None:
            answer.until.wait(60)
        if any(name == "Date" for name, _ in answer.headers):
            self.send_response_only(answer.status)
        else:
            self.send_response(answer.status)
        for name, value in answer.headers:
            self.send_header(name, value)
        if not any(name == "Content-Length" for name, _ in answer.headers):
            self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body[: answer.cut_after])
        if answer.cut_after is not None:
            self.close_connection = True

    def handle_expect_100(self) -> bool:
        self.scripted.asked_first += 1
        return super().handle_expect_100()

    do_GET = do_PUT = do_HEAD = do_DELETE = _answer

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def scripted_s3() -> Iterator[ScriptedS3]:
    with _serving(None) as scripted:
        yield scripted


@pytest.fixture
def scripted_tls_s3(tmp_path: Path) -> Iterator[ScriptedS3]:
    """One that speaks TLS; its certificate is ``tls.pem`` in ``tmp_path``."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*make_certificate(tmp_path))
    with _serving(context) as scripted:
        yield scripted


@contextmanager
def _serving(context: ssl.SSLContext | None) -> Iterator[ScriptedS3]:
    scripted = ScriptedS3()
    handler = type("Handler", (_Handler,), {"scripted": scripted})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        scheme = "http" if context is None else "https"
        scripted.endpoint = f"{scheme}://127.0.0.1:{server.server_port}"
        yield scripted
        server.shutdown()
        thread.join(10)
