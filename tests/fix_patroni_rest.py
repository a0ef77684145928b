"""A stand-in for the REST interface of Patroni's members: real HTTP, and answers that a test chooses."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

IDENTIFIER = 7_000_000_000_000_000_001


@dataclass
class Member:
    """One member: what it answers to each path; ``write`` writes an answer of its own making instead."""

    answers: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    write: Callable[[Any], None] | None = None
    asked: list[str] = field(default_factory=list)
    url: str = ""

    def lead(
        self,
        name: str,
        host: str,
        port: int,
        *,
        timeline: int | None = 1,
        identifier: int = IDENTIFIER,
        members: object = None,
        is_standby: bool = False,
    ) -> None:
        """Say from now on that this member holds the lock, perhaps a standby cluster's, and where."""
        role = "standby_leader" if is_standby else "primary"
        primary: dict[str, object] = {
            "state": "running",
            "role": role,
            "database_system_identifier": str(identifier),
            "patroni": {"name": name, "scope": "test"},
        }
        if timeline is not None:
            primary["timeline"] = timeline
        if members is None:
            members = [{"name": name, "host": host, "port": port, "role": "leader"}]
        body = json.dumps(primary).encode()
        self.answers["/primary"] = (503 if is_standby else 200, body)
        self.answers["/standby-leader"] = (200 if is_standby else 503, body)
        self.answers["/cluster"] = (200, json.dumps({"members": members}).encode())

    def follow(self) -> None:
        """Say from now on that this member is a replica."""
        self.answers["/primary"] = self.answers["/standby-leader"] = (503, b'{"role": "replica"}')


@contextmanager
def rest_member() -> Iterator[Member]:
    """A member that listens on a port of its own until the end."""
    member = Member()
    member.follow()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            member.asked.append(self.path)
            if member.write is not None:
                member.write(self)
                return
            status, body = member.answers.get(self.path, (404, b"{}"))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            return

        def handle(self) -> None:
            try:
                super().handle()
            except OSError:
                return  # the asker has gone: that is what some tests are about

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    member.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield member
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
