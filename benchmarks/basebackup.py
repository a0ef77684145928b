"""The peer of PostgreSQL 17's own tools: ``pg_basebackup``, curl to and from S3, ``pg_combinebackup``.

One stream, zstd by the client, a CRC32C for each file, no encryption and no checks of pages.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from benchmarks.harness import Usage, run
from benchmarks.s3 import REGION_NAME
from benchmarks.side import Place

_TAR, _MANIFEST = "base.tar.zst", "backup_manifest"
# One layer: fetch, unpack as it comes, and the manifest beside it, where pg_combinebackup looks for it.
_FETCH = (
    'curl -K "$1" "$2/base.tar.zst" | zstd -q -d -c | tar -C "$3" -xf -'
    ' && curl -K "$1" -o "$3/backup_manifest" "$2/backup_manifest"'
)


def missing() -> str | None:
    """Return what to do to have what it needs, or None."""
    absent = [name for name in ("curl", "zstd") if shutil.which(name) is None]
    return f"not installed: apt-get install {' '.join(absent)}" if absent else None


class BaseBackups:
    """A chain of backups in one bucket.  ``back_up`` says what the next one is."""

    def __init__(self, place: Place, name: str, *, level: int = 1) -> None:
        self._place = place
        self._level = level
        self._bucket = place.server.make_bucket(name)
        self._folder = place.work / name
        self._folder.mkdir()
        self._chain: list[Path] = []
        self._taken = 0
        self._curl = place.work / f"{name}.curl"
        server = place.server
        self._curl.touch(mode=0o600)
        self._curl.write_text(
            "silent\nshow-error\nfail\n"
            f'cacert = "{server.certificates.ca_file}"\n'
            f'aws-sigv4 = "aws:amz:{REGION_NAME}:s3"\n'
            f'user = "{server.access_key}:{server.secret_key}"\n'
            'header = "x-amz-content-sha256: UNSIGNED-PAYLOAD"\n'
        )

    def back_up(self, kind: str) -> Usage:
        """Take a backup of type ``full`` or ``incr``, the latter on the last one, and put it to S3."""
        self._taken += 1
        folder = self._folder / str(self._taken)
        cluster = self._place.cluster
        words: list[str | Path] = [
            cluster.installation.tool("pg_basebackup"),
            "-d",
            cluster.dsn,
            "-D",
            folder,
        ]
        words += ["-Ft", "-X", "none", "-c", "fast", f"--compress=client-zstd:level={self._level}"]
        if kind == "incr":
            words += ["--incremental", self._chain[-1] / _MANIFEST]
        put: list[str | Path] = ["curl", "-K", self._curl]
        for name in (_TAR, _MANIFEST):
            put += ["-T", folder / name, self._url(folder, name)]
        usage = self._place.measure(self._bucket, lambda: run(words).then(run(put)))
        self._chain = [folder] if kind == "full" else [*self._chain, folder]
        (folder / _TAR).unlink()
        return usage

    def restore(self, into: Path, scratch: Path) -> Usage:
        """Fetch and unpack the whole chain, and put it together."""
        total = Usage(0.0, 0.0, 0)
        layers = []
        for folder in self._chain:
            layer = scratch / folder.name
            layer.mkdir(parents=True, mode=0o700)
            url = self._url(folder)
            total = total.then(run(["bash", "-o", "pipefail", "-c", _FETCH, "sh", self._curl, url, layer]))
            layers.append(layer)
        combine = self._place.cluster.installation.tool("pg_combinebackup")
        return total.then(run([combine, *layers, "-o", into]))

    def _url(self, folder: Path, *names: str) -> str:
        return "/".join([self._place.server.endpoint, self._bucket, folder.name, *names])
