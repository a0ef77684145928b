"""A real S3 server for the tests: versitygw on the loopback address, with versioning."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fix_ports import HOST, free_port

from cli.demo_versitygw import versitygw

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 15.0
_START_TRIES_MAX = 5


@dataclass(slots=True)
class S3Server:
    """The server's address and keys; it can be stopped, killed and started again on the same port."""

    program: Path
    folder: Path
    port: int
    access_key: str = "pitr-tests"
    secret_key: str = "not-a-secret-of-anybody"
    region_name: str = "us-east-1"
    host: str = HOST
    # Words before the server's own, which must exec it.
    prefix: Sequence[str] = ()
    # With it the server has users besides the root user, whom no policy binds.
    has_users: bool = False
    _process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def client(self) -> Any:
        """Return a boto3 client with the root user's keys."""
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=self.region_name,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=Config(
                connect_timeout=5,
                read_timeout=30,
                retries={"total_max_attempts": 3},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )

    def make_bucket(
        self,
        name: str,
        *,
        versioning: bool = False,
        object_lock: bool = False,
        default_lock_days: int | None = None,
    ) -> str:
        """Make an empty bucket; S3 wants names of at least 3 letters.  Return the name."""
        client = self.client()
        client.create_bucket(Bucket=name, ObjectLockEnabledForBucket=object_lock)
        if versioning:
            client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
        if default_lock_days is not None:
            rule = {"DefaultRetention": {"Mode": "GOVERNANCE", "Days": default_lock_days}}
            client.put_object_lock_configuration(
                Bucket=name, ObjectLockConfiguration={"ObjectLockEnabled": "Enabled", "Rule": rule}
            )
        client.close()
        return name

    def make_user(self, name: str, secret: str) -> None:
        """Add a user whom nothing is allowed until a bucket's policy says so."""
        words = ["admin", "-a", self.access_key, "-s", self.secret_key, "-er", self.endpoint, "create-user"]
        words += ["--access", name, "--secret", secret, "--role", "user"]
        subprocess.run([str(self.program), *words], check=True, capture_output=True, timeout=START_TIMEOUT_S)

    def start(self) -> None:
        """Start it and return once it answers.  Its objects are still there after a stop or a kill."""
        if self.is_running:
            return
        root, versions = self.folder / "root", self.folder / "versions"
        root.mkdir(exist_ok=True)
        versions.mkdir(exist_ok=True)
        # Both paths must be absolute, or the server refuses to start.
        command = [
            *self.prefix,
            str(self.program),
            "--port",
            f"{self.host}:{self.port}",
            "--region",
            self.region_name,
            "--quiet",
        ]
        if self.has_users:
            (self.folder / "users").mkdir(exist_ok=True)
            command += ["--iam-dir", str((self.folder / "users").absolute())]
        command += ["--keep-alive", "posix", "--versioning-dir", str(versions.absolute())]
        if not _has_attributes(root):
            (self.folder / "sidecar").mkdir(exist_ok=True)
            command += ["--sidecar", str((self.folder / "sidecar").absolute())]
        keys = {"ROOT_ACCESS_KEY_ID": self.access_key, "ROOT_SECRET_ACCESS_KEY": self.secret_key}
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, str(root.absolute())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, **keys},
            )
        self._wait()

    def stop(self) -> None:
        """Stop it as a service manager does.  May be repeated."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.kill()

    def kill(self) -> None:
        """End it by SIGKILL.  May be repeated."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(STOP_TIMEOUT_S)

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")[-4000:]

    def _wait(self) -> None:
        from botocore.exceptions import BotoCoreError, ClientError

        client = self.client()
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                client.list_buckets()
                break
            except (BotoCoreError, ClientError) as failure:
                if not self.is_running or time.monotonic() >= deadline:
                    self.kill()
                    raise RuntimeError(f"versitygw did not start: {self.log()}") from failure
                time.sleep(0.1)
        client.close()
        # Somebody else may listen on our port, and have answered in our server's place.
        if not self.is_running:
            raise RuntimeError(f"versitygw did not start: {self.log()}")


@pytest.fixture(scope="session")
def s3_program() -> Path:
    """The server's program; the first run on a machine builds it."""
    return versitygw()


@pytest.fixture(scope="session")
def s3_server(s3_program: Path) -> Iterator[S3Server]:
    """One server for the whole run.  A test that stops it must start it again; buckets keep tests apart."""
    with _Running(s3_program) as server:
        yield server


@pytest.fixture
def s3_server_with_users(s3_program: Path) -> Iterator[S3Server]:
    """A server of its own that has users, and so can deny something."""
    with _Running(s3_program, has_users=True) as server:
        yield server


@pytest.fixture
def own_s3_server(s3_program: Path) -> Iterator[S3Server]:
    """A server for one test alone, which may stop and kill it as it likes."""
    with _Running(s3_program) as server:
        yield server


class _Running:
    """The server of one fixture: found a port, started, and always ended."""

    def __init__(self, program: Path, *, has_users: bool = False) -> None:
        self._program = program
        self._has_users = has_users
        self._folder = Path(tempfile.mkdtemp(prefix="pitr-s3-"))
        self._server: S3Server | None = None

    def __enter__(self) -> S3Server:
        try:
            for attempt in range(1, _START_TRIES_MAX + 1):
                self._server = S3Server(self._program, self._folder, free_port(), has_users=self._has_users)
                try:
                    self._server.start()
                    break
                except RuntimeError:
                    # The port may have been taken meanwhile; anything else would fail again.
                    if attempt == _START_TRIES_MAX or "address already in use" not in self._server.log():
                        raise
        except BaseException:
            self.__exit__()
            raise
        return self._server

    def __exit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.kill()
        shutil.rmtree(self._folder, ignore_errors=True)


def _has_attributes(folder: Path) -> bool:
    """Tell whether files here can have extended attributes, in which the server keeps its metadata."""
    try:
        os.setxattr(folder, b"user.pitr-probe", b"1")
    except OSError:
        return False
    os.removexattr(folder, b"user.pitr-probe")
    return True
