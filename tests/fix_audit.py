"""The auditor's tool, run in this process and as an auditor runs it, and folders that were forged."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import fix_reports as fix

from pitr.pipeline.sign import Signer, encode_payload, encode_time, payload_of, sign_typed
from verifiers import pitr_audit
from verifiers.audit_log import AuditLog
from verifiers.checkpoint import Checkpoint, log_origin, sign_checkpoint
from verifiers.log_entry import LogEntry
from verifiers.merkle import inclusion_proof, root_of
from verifiers.public_key import to_pem
from verifiers.report_html import render_report
from verifiers.statement import PAYLOAD_TYPE, SignedStatement, sign_test_result, subjects

TOOL = Path(pitr_audit.__file__)
Change = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Audited:
    """What the tool said."""

    code: int
    result: dict[str, Any]

    def texts(self, *severities: str) -> str:
        found = self.result["findings"]
        return "\n".join(
            f"{one['subject']}: {one['message']}" for one in found if one["severity"] in severities
        )


def audit(folder: Path, key: Path, *options: str, now: str | None = None) -> Audited:
    """Run the tool in this process."""
    words = ["--json", "--key", str(key), str(folder), "--now", now or encode_time(fix.BEGIN), *options]
    stdout, stderr = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        code = pitr_audit.main(words)
    return Audited(code, json.loads(stdout.getvalue()) if code != 2 else {"error": stderr.getvalue()})


def audit_alone(folder: Path, key: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the tool as an auditor does: Python without its site, this one file."""
    words = [sys.executable, "-I", "-S", str(TOOL), "--key", str(key), *options, str(folder)]
    return subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)


def copied(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    return to


def resigned(envelope: bytes, signer: Signer, change: Change) -> bytes:
    """Return an envelope of the changed statement, by ``signer``."""
    statement = json.loads(payload_of(envelope))
    return sign_typed(encode_payload(change(statement) or statement), PAYLOAD_TYPE, signer)


def unsigned(envelope: bytes, change: Change) -> bytes:
    """Return an envelope of the changed statement with the signature of the unchanged one."""
    statement = json.loads(payload_of(envelope))
    other = sign_typed(encode_payload(change(statement) or statement), PAYLOAD_TYPE, fix.VERIFIER)
    return other[: other.index(b'"sig":"')] + envelope[envelope.index(b'"sig":"') :]


def leaves(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Return the paths of all values that hold no other, and of empty lists and objects."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = [leaf for name, inner in items for leaf in leaves(inner, (*path, name))]
    return found or [path]


def change_at(value: Any, path: tuple[str | int, ...]) -> None:
    """Change one value to another that its kind may have."""
    for name in path[:-1]:
        value = value[name]
    old = value[path[-1]]
    if isinstance(old, bool) or old is None:
        value[path[-1]] = old is not True
    elif isinstance(old, int):
        value[path[-1]] = old + 1
    elif isinstance(old, str):
        value[path[-1]] = old[:-1] + ("1" if old[-1:] != "1" else "2")
    else:
        value[path[-1]] = ["x"]


@dataclass(slots=True)
class Forgery:
    """A verifier that lies with its own key, and logs its lies: one report, all digests as they must be.

    Each change is made where the lie begins; what follows from it is made anew.
    """

    predicate: Change = lambda value: None
    draft: Change = lambda value: None
    test_result: Change = lambda value: None
    html: Callable[[str], str] = lambda text: text
    entries: Callable[[list[dict[str, Any]]], object] = lambda entries: None
    intent: Mapping[str, object] = field(default_factory=dict)
    is_random: bool = False

    def write(self, folder: Path) -> Path:
        """Write the folder; return the path of the verifier's key."""
        folder.mkdir()
        signer, at = fix.VERIFIER, fix.BEGIN + fix.WEEK
        store_log = AuditLog(fix.MemoryStore(), fix.REPOSITORY, signer)
        logged = fix.intend(store_log, 1, at, is_random=self.is_random)
        entries = [json.loads(one.content()) for one in store_log.entries()]
        entries[1]["facts"] |= self.intent
        leaf_hashes = [LogEntry.parse(encode_payload(one)).leaf() for one in entries]
        origin = log_origin(fix.REPOSITORY, signer.public)
        note = sign_checkpoint(Checkpoint(origin, 2, root_of(leaf_hashes), logged.entry.at), signer)
        before = sign_checkpoint(Checkpoint(origin, 1, leaf_hashes[0], logged.entry.at), signer)
        report = fix.draft(1, at, is_random=self.is_random)
        self.draft(report)
        report["identity"] |= {"run_id": "run-1", "schema_version": 2, "series_seq": 1}
        report["identity"] |= {"previous_report_sha256": None, "repository": fix.REPOSITORY}
        report["trigger"]["intent_log_index"] = 1
        report["people"]["executed_by"]["key_id"] = signer.public.key_id
        report["trend"] = []
        is_measured = report["data_loss"]["data_loss_ms"] is not None
        report["result"] |= {"overall": "PASSED", "rto_met": True, "rpo_met": True if is_measured else None}
        proof = [node.hex() for node in inclusion_proof(1, leaf_hashes)]
        report["log"] = {"log_origin": origin, "leaf_index": 1, "tree_size": 2, "inclusion_proof": proof}
        report["log"] |= {
            "root_hash": root_of(leaf_hashes).hex(),
            "checkpoint": note,
            "prev_checkpoint": before,
        }
        report["log"] |= {"rfc3161_token": None, "object_lock_copy": None}
        subject = subjects(report)
        statement = {"_type": "https://in-toto.io/Statement/v1", "subject": subject, "predicate": report}
        statement["predicateType"] = "https://pitr.invalid/attestations/restore-verification/v2"
        self.predicate(report)
        signed = SignedStatement(sign_typed(encode_payload(statement), PAYLOAD_TYPE, signer), report)
        test_result = resigned(sign_test_result(signed, signer), signer, self.test_result)
        html = self.html(render_report(signed, []).decode()).encode()
        facts = {"outcome": report["result"]["overall"], "report_id": report["identity"]["report_id"]}
        facts |= {"report_sha256": signed.payload_sha256, "html_sha256": hashlib.sha256(html).hexdigest()}
        facts |= {"test_result_sha256": hashlib.sha256(test_result).hexdigest(), "series_seq": 1}
        facts["system_identifier"] = str(fix.SYSTEM)
        ended = {**entries[1], "kind": "verification-ended", "facts": facts, "sequence": 2}
        entries.append({**ended, "at": encode_time(at + timedelta(minutes=6))})
        self.entries(entries)
        write_log(folder, entries)
        stem = folder / f"00000001-{facts['report_id']}"
        stem.with_suffix(".json").write_bytes(signed.envelope)
        stem.with_suffix(".html").write_bytes(html)
        stem.with_suffix(".test-result.json").write_bytes(test_result)
        key = folder.parent / f"{folder.name}.pem"
        key.write_text(to_pem(signer.public))
        return key


def write_log(folder: Path, entries: list[dict[str, Any]], signer: Signer = fix.VERIFIER) -> None:
    """Write a log of whatever entries, and a checkpoint after each."""
    lines = [encode_payload(one) for one in entries]
    hashes = [hashlib.sha256(b"\x00" + line).digest() for line in lines]
    notes = []
    for size, entry in enumerate(entries, 1):
        text = f"{entry['log']}\n{size}\n"
        checkpoint = Checkpoint(entry["log"], size, root_of(hashes[:size]), fix.BEGIN)
        assert text in checkpoint.text()
        notes.append(sign_checkpoint(_at(checkpoint, entry["at"]), signer))
    (folder / "log.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))
    (folder / "checkpoints.jsonl").write_text("".join(json.dumps(note) + "\n" for note in notes))


def _at(checkpoint: Checkpoint, at: str) -> Checkpoint:
    from pitr.pipeline.sign import decode_time

    return Checkpoint(checkpoint.origin, checkpoint.size, checkpoint.root, decode_time(at))
