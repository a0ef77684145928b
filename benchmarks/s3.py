"""A real S3 server with TLS for one run: versitygw on loopback, one bucket for each tool.

Its CPU is nobody's: the same server stores for all.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from benchmarks.certificates import HOST, Certificates, make_certificates
from benchmarks.harness import RunFailed
from cli.demo_versitygw import versitygw
from pitr.errors import NotInitialised
from storage.s3 import S3Credentials, S3Store, S3Timeouts
from storage.s3_dialects import PROFILES
from storage.store import StoreError

REGION_NAME = "us-east-1"
_START_TIMEOUT_S = 30.0


class S3Server:
    """A running server; made by ``s3_server``."""

    def __init__(self, folder: Path, port: int, certificates: Certificates, secret_key: str) -> None:
        self._root = folder / "root"
        self.port = port
        self.certificates = certificates
        self.access_key, self.secret_key = "bench", secret_key

    @property
    def endpoint(self) -> str:
        return f"https://{HOST}:{self.port}"

    @property
    def environment(self) -> Mapping[str, str]:
        """Return the credentials and the authority, as the AWS tools read them."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": REGION_NAME,
            "AWS_CA_BUNDLE": str(self.certificates.ca_file),
        }

    def url(self, bucket: str, prefix: str = "") -> str:
        """Return our region URL of a bucket."""
        path = f"/{prefix}" if prefix else ""
        options = f"endpoint={self.endpoint}&region={REGION_NAME}&profile=versitygw"
        return f"s3://{bucket}{path}?{options}&ca={self.certificates.ca_file}"

    def make_bucket(self, name: str) -> str:
        (self._root / name).mkdir()
        return name

    def drop_buckets(self) -> None:
        """Delete all buckets, behind the server's back."""
        for bucket in self._root.iterdir():
            shutil.rmtree(bucket)

    def folder_of(self, bucket: str) -> Path:
        """Return where a bucket's objects are: the server keeps each as a file."""
        return self._root / bucket

    def stored_bytes(self, bucket: str) -> int:
        """Return the bytes of all objects in a bucket, whoever put them."""
        return sum(path.stat().st_size for path in self.folder_of(bucket).rglob("*") if path.is_file())

    def store(self, bucket: str, ca_file: Path | None) -> S3Store:
        """Return our own store on a bucket, trusting ``ca_file``, or what the machine trusts."""
        return S3Store(
            bucket,
            endpoint_url=self.endpoint,
            region_name=REGION_NAME,
            credentials=S3Credentials(self.access_key, self.secret_key),
            profile=PROFILES["versitygw"],
            ca_bundle=None if ca_file is None else str(ca_file),
            timeouts=S3Timeouts(attempts=1),
        )


@contextmanager
def s3_server(work: Path) -> Iterator[S3Server]:
    """Start a server below ``work`` and end it; raises RunFailed if TLS is not verified on our side."""
    folder = work / "s3"
    folder.mkdir()
    root = (folder / "root").absolute()
    root.mkdir()
    certificates = make_certificates(folder / "tls")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    secret_key = secrets.token_hex(16)
    command = [
        str(_program()), "--port", f"127.0.0.1:{port}", "--region", REGION_NAME, "--quiet", "--keep-alive",
        "--cert", str(certificates.server_file), "--key", str(certificates.key_file), "posix",
    ]  # fmt: skip
    if not _has_attributes(root):
        (folder / "sidecar").mkdir()
        command += ["--sidecar", str((folder / "sidecar").absolute())]
    keys = {"ROOT_ACCESS_KEY_ID": "bench", "ROOT_SECRET_ACCESS_KEY": secret_key}
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            [*command, str(root)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **keys},
            start_new_session=True,
        )  # fmt: skip
    try:
        _wait(process, port, folder / "log")
        server = S3Server(folder, port, certificates, secret_key)
        _check_tls(server)
        yield server
    finally:
        process.kill()
        process.wait(30)


def _check_tls(server: S3Server) -> None:
    """Show that our client takes this server with its authority only."""
    bucket = server.make_bucket("tls-check")
    _list_once(server.store(bucket, server.certificates.ca_file))
    for trusted in (server.certificates.stranger_file, None):
        try:
            _list_once(server.store(bucket, trusted))
        except StoreError as refusal:
            if "certificate" not in f"{refusal} {refusal.__cause__}".lower():
                raise RunFailed(f"refused for another reason than its certificate: {refusal}") from refusal
        else:
            raise RunFailed(f"our S3 client took a certificate that {trusted or 'the machine'} did not sign")


def _list_once(store: S3Store) -> None:
    try:
        next(iter(store.list_objects("")), None)
    finally:
        store.close()


def _program() -> Path:
    try:
        return versitygw()
    except NotInitialised as failure:
        raise RunFailed(f"{failure.message}: {failure.detail}") from failure


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as connection:
            if connection.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise RunFailed(f"the S3 server did not start: {log.read_text(errors='replace')[-800:]}")


def _has_attributes(folder: Path) -> bool:
    """Tell whether files here can have extended attributes, where the server keeps an object's facts."""
    try:
        os.setxattr(folder, b"user.pitr-probe", b"1")
    except OSError:
        return False
    os.removexattr(folder, b"user.pitr-probe")
    return True
