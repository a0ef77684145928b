"""``pitr verifier``: the key of whoever verifies, which is nobody's who writes backups."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from cli.context import common_options, current
from cli.errors import UsageRefused

if TYPE_CHECKING:
    from pitr.pipeline.sign import Verifier

# Of a longer file no more is read: it is none.
_PUBLIC_KEY_BYTES_MAX: Final = 10_000


@click.group("verifier")
def verifier() -> None:
    """The verifier's own key."""


@verifier.command("init")
@click.option(
    "--key",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The key file (default: [verify] key_file).",
)
@click.option(
    "--public",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where the public key goes (default: verifier.pub.pem beside the key).",
)
@common_options
def init_verifier(key: Path | None, public: Path | None) -> None:
    """Make the key that signs reports, and its public half for auditors.

    Make it on the machine that verifies, and give the public key to whoever reads the reports, by a way of
    its own. May be repeated: a key that is there stays, and its public half is written again. A file that
    holds anything else than this key's public half is not written over.
    """
    from cli.key_files import read_signing_key, write_secret
    from cli.verify_settings import PUBLIC_KEY_NAME
    from pitr.pipeline.sign import Signer
    from storage.synced_file import replace_synced
    from verifiers.public_key import to_pem

    app = current()
    if key is None:
        settings = app.settings()
        config = settings.verify_or_default
        key = config.key_file
    public = public or key.with_name(PUBLIC_KEY_NAME)
    is_new = not key.exists()
    _refuse_another(public, None if is_new else read_signing_key(key).public)
    if is_new:
        key.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_secret(key, Signer.generate(os.urandom).text() + "\n")
    signer = read_signing_key(key)
    public.parent.mkdir(parents=True, exist_ok=True)
    replace_synced(public, to_pem(signer.public).encode("ascii"))
    public.chmod(0o644)
    app.output.line(f"{'made' if is_new else 'found'} {key}, key id {signer.public.key_id}")
    app.output.line(f"public key {public}: give it to whoever reads the reports")
    app.output.finish(
        {
            "key": str(key),
            "public_key_file": str(public),
            "public_key": str(signer.public),
            "key_id": signer.public.key_id,
            "is_new": is_new,
        }
    )


def _refuse_another(path: Path, ours: Verifier | None) -> None:
    """Raise UsageRefused if the file holds something else: auditors compare what they were given with it."""
    from pitr.errors import MalformedValue
    from verifiers.public_key import from_pem

    if not path.exists():
        return
    with path.open("rb") as stream:
        held = stream.read(_PUBLIC_KEY_BYTES_MAX)
    try:
        is_ours = ours is not None and from_pem(held.decode("ascii", "replace")).public_key == ours.public_key
    except MalformedValue:
        is_ours = False
    if not is_ours:
        raise UsageRefused(
            f"{path} is not this key's public half",
            detail="another key's reports are checked with it",
            hint="--public FILE, or move it away if its key is not used any more",
        )
