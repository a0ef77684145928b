"""Connections to Redis servers, one at a time.  The only home of ``redis``; its errors end here.

Each node is spoken to by itself: SCAN, BGSAVE and the like are a node's matter, and a client that follows
redirections would hide that a slot has moved meanwhile.  It needs the extra ``redis``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from pitr.derived.access import RedisAccess
from pitr.derived.topology import Master, Topology, parse_nodes, single_server
from pitr.errors import DerivedRefused, DerivedUnavailable, MalformedValue, NotInitialised

# What SCAN is asked for, and the most commands in one pipeline: memory on both sides stays small.
BATCH_KEYS: Final = 1000
_EPOCH_TRIES_MAX: Final = 20
_REPLICA: Final = re.compile(r"slave[0-9]+")
_DATABASES_MAX: Final = 10_000


class Node:
    """One server, and one of its numbered databases at a time.  Not thread-safe.  Use as a context."""

    def __init__(self, access: RedisAccess, host: str, port: int) -> None:
        self._access: Final = access
        self._host: Final = host
        self._port: Final = port
        self._library: Final = _library()
        self.address: Final = Master("", host, port).address
        # Its own types are half there and change; what comes out of here is typed by us.
        self._clients: dict[int, Any] = {}

    def __enter__(self) -> Node:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        for client in self._clients.values():
            client.close()
        self._clients.clear()

    def info(self, section: str) -> dict[str, str]:
        """Return a section of INFO as texts."""
        raw = self._ask("INFO", section)
        lines = raw.decode("utf-8", "replace").splitlines() if isinstance(raw, bytes) else []
        pairs = (line.partition(":") for line in lines if not line.startswith("#"))
        return {name: text for name, colon, text in pairs if colon}

    def topology(self) -> Topology:
        """Return the masters as this node sees them.  Raises DerivedRefused if it is no master, and alone."""
        if self.info("cluster").get("cluster_enabled") == "1":
            raw = self._ask("CLUSTER", "NODES")
            try:
                return parse_nodes(_text(raw), asked_host=self._host)
            except MalformedValue as error:
                raise self._refused(error.message) from error
        if self.info("replication").get("role") != "master":
            raise DerivedRefused(
                f"{self.address} is a replica", hint="name its master under addresses of [[redis]]"
            )
        return single_server(self._host, self._port)

    def node_id(self) -> str:
        """Return a cluster node's own id."""
        return _text(self._ask("CLUSTER", "MYID"))

    def now(self) -> datetime:
        """Return the server's clock."""
        answer = self._ask("TIME")
        try:
            seconds, micros = (int(part) for part in answer)
            return datetime.fromtimestamp(seconds, UTC) + timedelta(microseconds=micros)
        except (TypeError, ValueError, OverflowError, OSError) as error:
            raise self._refused("TIME answers no time") from error

    def databases(self) -> list[int]:
        """Return the numbered databases that hold keys; a cluster has only 0."""
        found = self.info("keyspace")
        numbers = sorted(int(name[2:]) for name in found if name[:2] == "db" and name[2:].isdigit())
        return numbers[:_DATABASES_MAX]

    def setting(self, name: str) -> str | None:
        """Return a setting; None where there is none of the name.  Raises DerivedRefused."""
        answer = self._ask("CONFIG", "GET", name)
        return _text(answer[1]) if isinstance(answer, list) and len(answer) == 2 else None

    def scan(self, database: int) -> Iterator[list[bytes]]:
        """Yield all keys of a database in batches; some may come twice.

        What is there from beginning to end comes; what comes or goes meanwhile may be left out.
        """
        cursor = 0
        while True:
            answer = self._ask("SCAN", cursor, "COUNT", BATCH_KEYS, database=database)
            try:
                cursor, keys = int(answer[0]), list(answer[1])
            except (TypeError, ValueError, IndexError, KeyError) as error:
                raise self._refused("SCAN answers no keys") from error
            # A server may give more than it was asked for, never so much that it matters; cut all the same.
            for at in range(0, len(keys), BATCH_KEYS):
                yield keys[at : at + BATCH_KEYS]
            if cursor == 0:
                return

    def unlink(self, database: int, keys: Sequence[bytes]) -> int:
        """Remove keys, at most BATCH_KEYS at a time; return how many there were.  May be repeated.

        Raises DerivedRefused if any was refused, as one in a slot that moved; others may be gone then.
        """
        assert len(keys) <= BATCH_KEYS, "whoever calls this cuts"
        with self._errors():
            # One command for each key: the keys of a batch lie in many slots.
            pipeline = self._client(database).pipeline(transaction=False)
            for key in keys:
                pipeline.execute_command("UNLINK", key)
            answers = pipeline.execute(raise_on_error=False)
        for answer in answers:
            if isinstance(answer, Exception):
                raise self._refused(self._access.redact(str(answer))) from None
        return sum(int(answer) for answer in answers)

    def raise_epoch(self, counter: str, run_key: str, run: str, now_s: int) -> int:
        """Set a counter above all that it was, once for each ``run``; return what it is.  May be repeated."""
        from pitr.derived.policy import next_epoch

        with self._errors():
            client = self._client(0)
            for _ in range(_EPOCH_TRIES_MAX):
                with client.pipeline(transaction=True) as pipeline:
                    try:
                        pipeline.watch(counter, run_key)
                        current, by = pipeline.get(counter), pipeline.get(run_key)
                        held = _number(current)
                        if current is not None and held is None:
                            raise self._refused(f"{counter} holds no number")
                        if held is not None and by is not None and _text(by) == run:
                            return held
                        new = next_epoch(held, now_s)
                        pipeline.multi()
                        pipeline.set(counter, new)
                        pipeline.set(run_key, run)
                        pipeline.execute()
                        return new
                    except self._library.WatchError:
                        continue
        raise self._refused(f"{counter} is changed by others all the time")

    def replication_offset(self) -> int:
        """Return how far the server's stream to its replicas is."""
        return int(self.info("replication").get("master_repl_offset", "0"))

    def replicas_behind(self, offset: int) -> int:
        """Return how many replicas have not acknowledged the stream up to ``offset``; they do each second."""
        lines = [text for name, text in self.info("replication").items() if _REPLICA.fullmatch(name)]
        fields = [dict(pair.partition("=")[::2] for pair in line.split(",")) for line in lines]
        done = [
            one for one in fields if one.get("state") == "online" and int(one.get("offset", "0")) >= offset
        ]
        return len(fields) - len(done)

    def save_in_background(self) -> bool:
        """Begin a BGSAVE; False if the server is at one, or at rewriting its AOF, already."""
        if self.info("persistence").get("rdb_bgsave_in_progress") == "1":
            return False
        try:
            self._ask("BGSAVE")
        except DerivedRefused as refused:
            if "in progress" in (refused.detail or ""):
                return False
            raise
        return True

    def _client(self, database: int) -> Any:
        client = self._clients.get(database)
        if client is None:
            client = self._clients[database] = self._library.Redis(
                host=self._host,
                port=self._port,
                db=database,
                **_tls_options(self._access),
                username=self._access.username,
                password=self._access.password,
                socket_timeout=self._access.timeout_s,
                socket_connect_timeout=self._access.timeout_s,
                # Whoever asks decides what is asked again: an answer that was lost is told.
                retry=_no_retry(),
                protocol=2,
            )
        return client

    def _ask(self, *words: Any, database: int = 0) -> Any:
        with self._errors():
            pool = self._client(database).connection_pool
            connection = pool.get_connection()
            try:
                connection.send_command(*words)
                # The plain answer: the library's own forms change between its versions.
                return connection.read_response()
            finally:
                pool.release(connection)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        library = self._library
        try:
            yield
        except (library.AuthenticationError, library.exceptions.AuthorizationError) as error:
            raise self._refused(self._access.redact(str(error))) from None
        except library.ResponseError as error:
            raise self._refused(self._access.redact(str(error))) from None
        except (library.RedisError, OSError) as error:
            raise DerivedUnavailable(
                f"Redis at {self.address} does not answer",
                detail=self._access.redact(str(error)) or type(error).__name__,
                hint="see that it runs and can be reached; then repeat the command",
            ) from None

    def _refused(self, detail: str) -> DerivedRefused:
        return DerivedRefused(
            f"Redis at {self.address} refuses",
            detail=detail,
            hint="docs/redis.md lists the commands that the user must be allowed",
        )


def key_slot(key: str) -> int:
    """Return the slot of a key in a cluster."""
    _library()
    from redis.crc import key_slot as slot_of

    return int(slot_of(key.encode()))


def _library() -> Any:
    try:
        import redis
    except ImportError as error:
        raise NotInitialised(
            "the client of Redis is not installed",
            detail="pitr speaks to Redis with redis-py, which not everybody needs",
            hint="python -m pip install 'pitr[redis]'",
        ) from error
    return redis


def _no_retry() -> Any:
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    return Retry(NoBackoff(), 0)


def _tls_options(access: RedisAccess) -> dict[str, Any]:
    if access.tls is None:
        return {}
    # Its files are read here first, for the words in which they are refused.
    access.tls.context()

    def path(file: Any) -> str | None:
        return None if file is None else str(file)

    return {
        "ssl": True,
        "ssl_ca_certs": path(access.tls.ca_file),
        "ssl_certfile": path(access.tls.certificate_file),
        "ssl_keyfile": path(access.tls.key_file),
        "ssl_check_hostname": access.tls.checks_names,
    }


def _text(raw: object) -> str:
    if isinstance(raw, bytes):
        return raw.decode("utf-8", "replace")
    return str(raw)


def _number(raw: object) -> int | None:
    text = _text(raw)
    return int(text) if raw is not None and text.isascii() and text.isdigit() and len(text) < 19 else None
