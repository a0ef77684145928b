"""The verifier's log and reports, opened by a command: to read with a public key, to add to with the key."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cli.config import find_config_or_none, may_be_there
from cli.context import App
from cli.errors import UsageRefused
from cli.key_files import read_signing_key
from pitr.errors import KeyMissing, MalformedValue, NotInitialised

if TYPE_CHECKING:
    from cli.wiring import Reader
    from pitr.pipeline.sign import Verifier
    from verifiers.audit_log import AuditLog
    from verifiers.report_series import LoggedReport

_PEM_BYTES_MAX: Final = 10_000
_CLOSE_S: Final = 10.0


def find_verifier(app: App, reader: Reader, path: Path | None) -> Verifier:
    """Return whose log to read: of the file that is given, else beside the configuration, else the only one.

    The last is only as good as the store, which is said.  Raises UsageRefused, KeyMissing, NotInitialised.
    """
    from verifiers.log_reader import log_key_ids, logged_key

    path = path or _configured(app)
    if path is not None:
        return read_public(path)
    key_ids = log_key_ids(reader.store)
    if not key_ids:
        raise NotInitialised("no restore was ever verified here", hint="pitr verify makes the first report")
    if len(key_ids) > 1:
        raise UsageRefused(
            f"several verifiers keep logs here: {', '.join(key_ids)}",
            hint="name the public key of one: --verifier FILE",
        )
    verifier = logged_key(reader.store, key_ids[0])
    app.output.warn(
        f"the verifier's key {verifier.key_id} is taken from its own log;"
        " compare it with one that you have from elsewhere: --verifier FILE"
    )
    return verifier


def read_public(path: Path) -> Verifier:
    """Return the public key in a file.  Raises KeyMissing."""
    from verifiers.public_key import from_pem

    try:
        with path.open("r", encoding="ascii") as file:
            return from_pem(file.read(_PEM_BYTES_MAX))
    except OSError as error:
        raise KeyMissing(
            f"the public key {path} cannot be read",
            detail=error.strerror,
            hint="check the path and its owner, or name another file: --verifier FILE",
        ) from error
    except (UnicodeDecodeError, MalformedValue) as error:
        raise KeyMissing(
            f"{path} is not the public key of a verifier",
            detail=error.message if isinstance(error, MalformedValue) else "it is not text",
            hint="it is the file that openssl reads: -----BEGIN PUBLIC KEY-----",
        ) from error


@contextmanager
def open_log(app: App, key_file: Path | None) -> Iterator[AuditLog]:
    """Open the log for writing, at the regions' quorum.  Raises KeyMissing, StoreError, PitrError."""
    from cli.regions import open_regions, open_writing
    from storage.repair import RepairQueue
    from verifiers.audit_log import AuditLog

    settings = app.settings()
    path = key_file or settings.verify_or_default.key_file
    if not may_be_there(path):
        raise KeyMissing(
            f"there is no verifier's key {path}",
            detail="the log that a certification goes into is signed with it",
            hint="run this where restores are verified, or name the key: --verifier-key FILE",
        )
    signer = read_signing_key(path)
    settings.daemon.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    queue = RepairQueue(settings.daemon.state_dir / "report-repair.sqlite")
    store = open_writing(open_regions(settings.regions), settings.repository.quorum, queue)
    try:
        yield AuditLog(store, settings.repository.repository, signer)
    finally:
        store.close(_CLOSE_S)
        queue.close()


def choose_report(reports: list[LoggedReport], wanted: str) -> LoggedReport:
    """Return the report of a number, an id or the beginning of one, or ``newest``.  Raises UsageRefused."""
    found = [
        report
        for report in reports
        if str(report.number) == wanted or (len(wanted) >= 8 and report.report_id.startswith(wanted))
    ]
    if wanted == "newest" and reports:
        found = reports[-1:]
    if len(found) == 1:
        return found[0]
    if len(found) > 1:
        raise UsageRefused(
            f"several reports are {wanted!r}",
            detail=", ".join(report.report_id for report in found),
            hint="name one by its whole id",
        )
    raise UsageRefused(f"there is no report {wanted!r}", hint="pitr report list")


def _configured(app: App) -> Path | None:
    if app.config_path is None and find_config_or_none(None) is None:
        return None
    path = app.settings().verify_or_default.public_key_file
    return path if may_be_there(path) else None
