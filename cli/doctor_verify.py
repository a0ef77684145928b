"""``pitr doctor`` for verifications: are restores verified by themselves, and could they be."""

from __future__ import annotations

from typing import Final

from cli.key_files import read_identity
from cli.verify_log import verifier_key
from cli.verify_settings import VerifySettings
from pitr.errors import KeyMissing
from verifiers.base import Finding, Severity

# docs/drills.md, "When".
_USUAL: Final = {"components": "1d", "failover": "30d", "full": "30d", "disaster": "91d"}


def examine_verify(config: VerifySettings | None) -> Finding:
    """Return the finding: what a verification would trip over fails here."""
    check, subject = "verify.configured", "[verify]"
    if config is None or config.every_s is None:
        text = "no restore is verified by itself"
        hint = "add [verify] where the verifier runs, or run pitr verify on a timer; docs/verify.md"
        return Finding(check, Severity.WARN, subject, text, hint)
    try:
        verifier_key(config)
        if config.identity_file is None:
            raise KeyMissing("no identity is configured", hint="[verify] identity_file")
        read_identity(config.identity_file)
    except KeyMissing as wrong:
        return Finding(check, Severity.FAIL, subject, wrong.in_one_line, wrong.hint)
    text = f"a restore is verified every {config.every_s:.0f} s"
    unplanned = [kind for kind, every_s in config.drills.every_s.items() if every_s is None]
    if not unplanned:
        return Finding(check, Severity.OK, subject, f"{text}, and every kind of drill is held")
    usual = ", ".join(f'{kind} = "{_USUAL[kind]}"' for kind in unplanned)
    text = f"{text}; drills that are held only when somebody starts one: {', '.join(unplanned)}"
    return Finding(check, Severity.OK, subject, text, f"usual: [verify.drills] {usual}")
