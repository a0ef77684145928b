"""The demo's S3 server: versitygw on loopback, found or built once, with one bucket for each region."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from cli.demo_versitygw import versitygw
from pitr.errors import PitrError

HOST = "127.0.0.1"
START_TIMEOUT_S = 30.0
REGION_NAME = "us-east-1"


def find_program() -> Path:
    """Return the server's program: the one that is named or on the path, else one that is built once."""
    for place in (os.environ.get("PITR_VERSITYGW"), shutil.which("versitygw")):
        if place is not None and Path(place).is_file():
            return Path(place)
    return versitygw()


class DemoS3:
    """One server; its buckets are directories below ``folder``."""

    def __init__(self, folder: Path, buckets: Sequence[str]) -> None:
        self._folder = folder
        self._buckets = tuple(buckets)
        self._access_key, self._secret_key = "pitr-demo", secrets.token_hex(16)
        self._process: subprocess.Popen[bytes] | None = None
        self._port = _free_port()

    @property
    def environment(self) -> Mapping[str, str]:
        """Return the credentials, as the AWS tools read them."""
        return {"AWS_ACCESS_KEY_ID": self._access_key, "AWS_SECRET_ACCESS_KEY": self._secret_key}

    def url(self, bucket: str) -> str:
        """Return the region URL of a bucket."""
        return f"s3://{bucket}?endpoint=http://{HOST}:{self._port}&region={REGION_NAME}&profile=versitygw"

    def start(self) -> None:
        """Start the server; return once it takes connections."""
        root, versions = (self._folder / "root").absolute(), (self._folder / "versions").absolute()
        for path in (versions, *(root / bucket for bucket in self._buckets)):
            path.mkdir(parents=True)
        # Both paths must be absolute, or the server refuses to start.
        command = [str(find_program()), "--port", f"{HOST}:{self._port}", "--region", REGION_NAME, "--quiet"]
        command += ["--keep-alive", "posix", "--versioning-dir", str(versions)]
        if not _has_attributes(root):
            sidecar = self._folder / "sidecar"
            sidecar.mkdir()
            command += ["--sidecar", str(sidecar.absolute())]
        keys = {"ROOT_ACCESS_KEY_ID": self._access_key, "ROOT_SECRET_ACCESS_KEY": self._secret_key}
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, str(root)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **keys},
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline and self._process.poll() is None:
            with socket.socket() as connection:
                if connection.connect_ex((HOST, self._port)) == 0:
                    return
            time.sleep(0.05)
        raise PitrError("the S3 server did not start", detail=(self._folder / "log").read_text()[-500:])

    def destroy(self, bucket: str) -> None:
        """Take a bucket away, with all that is in it."""
        shutil.rmtree(self._folder / "root" / bucket)
        shutil.rmtree(self._folder / "versions" / bucket, ignore_errors=True)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _has_attributes(folder: Path) -> bool:
    """Tell whether the file system keeps extended attributes, where versitygw puts an object's facts."""
    try:
        os.setxattr(folder, "user.pitr", b"1")
        os.removexattr(folder, "user.pitr")
    except OSError:
        return False
    return True
