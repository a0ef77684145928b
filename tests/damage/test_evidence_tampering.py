"""Evidence that somebody changed: whatever field, entry, file or order it is, the auditor's tool refuses it.

Three attackers: one without any key; one with the verifier's key who changes a report and cannot change the
log that the auditor has seen; one with the key who rewrites all, and whose lies contradict themselves.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fix_audit as audits
import fix_reports as fix
import pytest
from fix_audit import Audited, Forgery, audit, change_at, leaves, resigned, unsigned

from pitr.pipeline.sign import encode_payload, encode_time, payload_of
from verifiers.public_key import to_pem

REPORTS = [f"{number:08d}-0198c0de-0000-7000-8000-{number:012d}" for number in (1, 2, 3)]
FIRST = REPORTS[0]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> fix.ReportHouse:
    return fix.ReportHouse(tmp_path_factory.mktemp("evidence") / "reports", weeks=3, certified=(1, 3))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> fix.ReportHouse:
    """One certified report: each of its fields is tried, and each trial audits all."""
    return fix.ReportHouse(tmp_path_factory.mktemp("small") / "reports", weeks=1, certified=(1,))


@pytest.fixture
def small_folder(small: fix.ReportHouse, tmp_path: Path) -> Path:
    return audits.copied(small.folder, tmp_path / "small")


@pytest.fixture
def folder(house: fix.ReportHouse, tmp_path: Path) -> Path:
    return audits.copied(house.folder, tmp_path / "reports")


def judge(house: fix.ReportHouse, folder: Path, *options: str) -> Audited:
    return audit(folder, house.key, *options, now=encode_time(house.now))


def refused(house: fix.ReportHouse, folder: Path, *options: str) -> Audited:
    found = judge(house, folder, *options)
    assert found.code == 1
    assert found.texts("error")
    return found


def rewrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    before = path.read_bytes()
    after = change(before)
    assert after != before
    path.write_bytes(after)


def test_the_untouched_folder_is_good(house: fix.ReportHouse, folder: Path) -> None:
    found = judge(house, folder)
    assert (found.code, found.texts("error", "warning")) == (0, "")
    assert found.result["reports"] == 3
    assert found.result["certifications"] == 2


# --- every field of every signed statement ---


@pytest.mark.parametrize("by", ["nobody", "the verifier", "a stranger"])
@pytest.mark.parametrize("name", ["json", "test-result.json", "certification.json"])
def test_each_field_of_each_statement(small: fix.ReportHouse, small_folder: Path, by: str, name: str) -> None:
    """Some 200 fields, changed one at a time: not signed anew, or by the verifier, or by a stranger."""
    path = small_folder / f"{FIRST}.{name}"
    original = path.read_bytes()
    fields = leaves(json.loads(payload_of(original)))
    assert len(fields) > (150 if name == "json" else 10)
    owner = fix.MANAGER if name == "certification.json" else fix.VERIFIER
    # With a stranger's key it is refused before any field is read: some of them will do.
    for leaf in fields[:: 10 if by == "a stranger" else 1]:

        def change(statement: Any, leaf: tuple[str | int, ...] = leaf) -> None:
            change_at(statement, leaf)

        signer = fix.STRANGER if by == "a stranger" else owner
        path.write_bytes(unsigned(original, change) if by == "nobody" else resigned(original, signer, change))
        found = judge(small, small_folder)
        assert found.code == 1, leaf
        assert path.name in found.texts("error"), leaf
    path.write_bytes(original)
    assert judge(small, small_folder).code == 0


def test_each_fact_and_field_of_each_entry_of_the_log(small: fix.ReportHouse, small_folder: Path) -> None:
    path = small_folder / "log.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    count = 0
    for at, line in enumerate(lines):
        for leaf in leaves(json.loads(line)):
            entry = json.loads(line)
            change_at(entry, leaf)
            path.write_bytes(b"".join([*lines[:at], encode_payload(entry) + b"\n", *lines[at + 1 :]]))
            refused(small, small_folder)
            count += 1
    assert count > 40


# --- the log as a whole ---


@pytest.mark.parametrize("at", range(13))
@pytest.mark.parametrize("how", ["removed", "twice", "swapped", "cut off after"])
def test_each_entry_of_the_log(house: fix.ReportHouse, folder: Path, at: int, how: str) -> None:
    path = folder / "log.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) == 13 - 1
    if at >= len(lines) - (how in ("swapped", "cut off after")):
        at = 0
    if how == "removed":
        lines = [*lines[:at], *lines[at + 1 :]]
    elif how == "twice":
        lines = [*lines[: at + 1], *lines[at:]]
    elif how == "swapped":
        lines[at], lines[at + 1] = lines[at + 1], lines[at]
    else:
        lines = lines[: at + 1]
    path.write_bytes(b"".join(lines))
    refused(house, folder)


def renumbered(lines: list[bytes]) -> list[dict[str, Any]]:
    return [{**json.loads(line), "sequence": number} for number, line in enumerate(lines)]


@pytest.mark.parametrize("at", range(12))
def test_a_log_forked_at_each_entry_by_its_own_key(house: fix.ReportHouse, folder: Path, at: int) -> None:
    """The verifier leaves an entry out and signs all anew: the reports that anchor the log give it away."""
    lines = (folder / "log.jsonl").read_bytes().splitlines()
    kept = json.loads(lines[at])
    audits.write_log(folder, renumbered([*lines[:at], *lines[at + 1 :]]))
    found = judge(house, folder, "--witness", str(house.folder / f"{REPORTS[2]}.json"))
    if kept["kind"] == "observed" and at == 10:
        # No report was made after it: who kept no later checkpoint cannot know of it.
        assert found.code == 0
        notes = [json.loads(line) for line in (house.folder / "checkpoints.jsonl").read_text().splitlines()]
        (folder.parent / "note").write_text(notes[-1])
        found = judge(house, folder, "--witness", str(folder.parent / "note"))
    assert found.code == 1
    assert found.texts("error")


def cut(folder: Path, house: fix.ReportHouse, reports: int) -> None:
    """Make the folder what it was after some reports, with all that was signed then."""
    lines = (folder / "log.jsonl").read_bytes().splitlines(keepends=True)
    ends = [at for at, line in enumerate(lines) if b'"kind":"verification-ended"' in line]
    size = ends[reports] - 1
    (folder / "log.jsonl").write_bytes(b"".join(lines[:size]))
    notes = (folder / "checkpoints.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "checkpoints.jsonl").write_bytes(b"".join(notes[:size]))
    for stem in REPORTS[reports:]:
        for path in folder.glob(f"{stem}.*"):
            path.unlink()


@pytest.mark.parametrize("reports", [1, 2])
def test_a_whole_folder_of_an_earlier_day(house: fix.ReportHouse, folder: Path, reports: int) -> None:
    """It is what it says, only old: the clock tells once a test is overdue, and any kept report at once."""
    cut(folder, house, reports)
    then = encode_time(fix.BEGIN + fix.WEEK * (reports + 1))
    assert audit(folder, house.key, now=then).code == 0
    late = judge(house, folder)
    if reports == 1:
        assert "9.0 days" not in late.texts("error")
        assert "days from" in late.texts("warning")
        assert late.code == 1
    for witness in (f"{REPORTS[2]}.json",):
        found = audit(folder, house.key, "--witness", str(house.folder / witness), now=then)
        assert found.code == 1
        assert "does not tell of it" in found.texts("error")


# --- checkpoints ---


@pytest.mark.parametrize("at", range(12))
@pytest.mark.parametrize("how", ["size", "root", "time", "origin", "signature", "stranger"])
def test_each_part_of_each_checkpoint(house: fix.ReportHouse, folder: Path, at: int, how: str) -> None:
    path = folder / "checkpoints.jsonl"
    notes = [json.loads(line) for line in path.read_text().splitlines()]
    lines = notes[at].split("\n")
    place = {"origin": 0, "size": 1, "root": 2, "time": 3, "signature": 5}.get(how)
    if place is None:
        text = "\n".join(lines[:4]) + "\n"
        signature = base64.b64decode(lines[5].split(" ")[2])[:4] + fix.STRANGER.sign(text.encode())
        lines[5] = " ".join([*lines[5].split(" ")[:2], base64.b64encode(signature).decode()])
    else:
        middle = len(lines[place]) // 2 if place else 10
        lines[place] = (
            lines[place][:middle]
            + ("1" if lines[place][middle : middle + 1] != "1" else "2")
            + lines[place][middle + 1 :]
        )
    notes[at] = "\n".join(lines)
    path.write_text("".join(json.dumps(note) + "\n" for note in notes))
    refused(house, folder)


def test_checkpoints_out_of_their_order_and_without_the_newest(house: fix.ReportHouse, folder: Path) -> None:
    path = folder / "checkpoints.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    for wrong in (
        [*lines[1:], lines[0]],
        lines[:-1],
        [*lines, lines[-1]],
        [],
        [*lines, b"{}\n"],
        [lines[0][:-1]],
    ):
        path.write_bytes(b"".join(wrong))
        refused(house, folder)


# --- files ---


@pytest.mark.parametrize("name", ["json", "html", "test-result.json", "certification.json"])
@pytest.mark.parametrize(
    "how", ["missing", "empty", "cut", "another's", "a link", "a pipe", "a folder", "a digit"]
)
@pytest.mark.parametrize("number", [1, 3])
def test_each_file_of_a_report(
    house: fix.ReportHouse, folder: Path, name: str, how: str, number: int
) -> None:
    path, other = folder / f"{REPORTS[number - 1]}.{name}", folder / f"{REPORTS[3 - number]}.{name}"
    body = path.read_bytes()
    path.unlink()
    match how:
        case "empty":
            path.write_bytes(b"")
        case "cut":
            path.write_bytes(body[: len(body) // 2])
        case "another's":
            shutil.copy(other, path)
        case "a link":
            (folder.parent / "elsewhere").write_bytes(body)
            path.symlink_to(folder.parent / "elsewhere")
        case "a pipe":
            os.mkfifo(path)
        case "a folder":
            path.mkdir()
        case "a digit":
            at = len(body) // 3
            path.write_bytes(body[:at] + (b"1" if body[at : at + 1] != b"1" else b"2") + body[at + 1 :])
    refused(house, folder)


@pytest.mark.parametrize("name", ["log.jsonl", "checkpoints.jsonl"])
@pytest.mark.parametrize(
    "how", ["missing", "empty", "a link", "a pipe", "no line end", "blank line", "white space"]
)
def test_the_files_of_the_log(house: fix.ReportHouse, folder: Path, name: str, how: str) -> None:
    path = folder / name
    body = path.read_bytes()
    path.unlink()
    match how:
        case "empty":
            path.write_bytes(b"")
        case "a link":
            path.symlink_to(house.folder / name)
        case "a pipe":
            os.mkfifo(path)
        case "no line end":
            path.write_bytes(body[:-1])
        case "blank line":
            path.write_bytes(body + b"\n")
        case "white space":
            path.write_bytes(body.replace(b"\n", b" \n", 1))
    refused(house, folder)


def test_files_that_the_log_does_not_tell_of(house: fix.ReportHouse, folder: Path) -> None:
    for name in (f"00000004-{FIRST[9:]}.json", f"{FIRST}.certification-2.json", "other.html", "more.jsonl"):
        shutil.copy(folder / f"{FIRST}.json", folder / name)
        assert "does not tell of it" in refused(house, folder).texts("error")
        (folder / name).unlink()


def test_reports_that_changed_their_places(house: fix.ReportHouse, folder: Path) -> None:
    one, two = folder / f"{REPORTS[0]}.json", folder / f"{REPORTS[1]}.json"
    body = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(body)
    refused(house, folder)


# --- spellings ---


def raw(payload: bytes) -> bytes:
    """Sign whatever bytes as a statement."""
    return audits.sign_typed(payload, audits.PAYLOAD_TYPE, fix.VERIFIER)


@pytest.mark.parametrize(
    "change",
    [
        lambda payload: payload.replace(b'"overall":"PASSED"', b'"overall":"FAILED","overall":"PASSED"'),
        lambda payload: b'{"_type":"x",' + payload[1:],
        lambda payload: payload.replace(b":", b": ", 1),
        lambda payload: payload.replace(b'"ms":1234', b'"ms":1234.0', 1),
        lambda payload: payload.replace(b'"ms":1234', b'"ms":1.234e3', 1),
        lambda payload: payload.replace(b"patients", b"\\u0070atients", 1),
        lambda payload: payload.replace(b"patients", "pätients".encode(), 1),
        lambda payload: payload.replace(b'"ms":1234', b'"ms":NaN', 1),
        lambda payload: payload + b"\n",
        lambda payload: b"[" * 200_000,
        lambda payload: b'{"predicate":' * 50_000,
        lambda payload: b'{"a":' + b"9" * 5000 + b"}",
        lambda payload: b"",
        lambda payload: b"null",
        lambda payload: b"[]",
        lambda payload: b"\xff\xfe",
    ],
)
def test_a_statement_in_another_spelling(house: fix.ReportHouse, folder: Path, change: Any) -> None:
    rewrite(folder / f"{FIRST}.json", lambda body: raw(change(payload_of(body))))
    found = refused(house, folder)
    assert "Traceback" not in found.texts("error")


@pytest.mark.parametrize(
    "change",
    [
        lambda body: body + b"\n",
        lambda body: b" " + body,
        lambda body: body.replace(b'"payload"', b'"payload":"","payload"', 1),
        lambda body: body.replace(b"]}", b',{"keyid":"0123456789abcdef","sig":""}]}'),
        lambda body: body.replace(b"application/vnd.in-toto+json", b"application/vnd.pitr.head.v1+json"),
        lambda body: body.replace(b'","payloadType', b'=","payloadType'),
        lambda body: body[:-6] + b"A" + body[-5:],
    ],
)
def test_an_envelope_in_another_spelling(house: fix.ReportHouse, folder: Path, change: Any) -> None:
    rewrite(folder / f"{FIRST}.json", change)
    refused(house, folder)


def test_files_too_large_to_be_read(house: fix.ReportHouse, folder: Path) -> None:
    for name, size in ((f"{FIRST}.json", 1 << 40), (f"{FIRST}.html", 1 << 40), ("log.jsonl", 1 << 40)):
        path = folder / name
        body = path.read_bytes()
        os.truncate(path, size)
        assert "has more than" in refused(house, folder).texts("error")
        path.write_bytes(body)


# --- keys ---


def test_evidence_of_another_key(house: fix.ReportHouse, folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.pem"
    other.write_text(to_pem(fix.STRANGER.public))
    assert audit(folder, other, now=encode_time(house.now)).code == 1


def test_all_evidence_made_anew_with_another_key(
    house: fix.ReportHouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fix, "VERIFIER", fix.STRANGER)
    forged = fix.ReportHouse(tmp_path / "forged", weeks=2)
    assert audit(forged.folder, forged.key, now=encode_time(forged.now)).code == 0
    refused(house, forged.folder)


def test_a_certification_by_whom_the_auditor_does_not_trust(house: fix.ReportHouse, folder: Path) -> None:
    trusted = folder.parent / "manager.pem"
    trusted.write_text(to_pem(fix.MANAGER.public))
    assert judge(house, folder, "--certifier", str(trusted)).code == 0
    trusted.write_text(to_pem(fix.SECOND.public))
    assert "not trusted here" in refused(house, folder, "--certifier", str(trusted)).texts("error")


# --- a verifier that lies, and logs it ---


def put(*path: str | int, value: object) -> Callable[[Any], None]:
    def change(target: Any) -> None:
        for name in path[:-1]:
            target = target[name]
        target[path[-1]] = value

    return change


def drop(*path: str | int) -> Callable[[Any], None]:
    def change(target: Any) -> None:
        for name in path[:-1]:
            target = target[name]
        del target[path[-1]]

    return change


def test_what_the_forger_makes_is_good_where_it_does_not_lie(tmp_path: Path) -> None:
    for number, forgery in enumerate((Forgery(), Forgery(is_random=True))):
        folder = tmp_path / f"folder-{number}"
        key = forgery.write(folder)
        found = audit(folder, key)
        assert (found.code, found.texts("error", "warning")) == (0, "")


def certified_too_soon(entries: list[dict[str, Any]]) -> None:
    ended = entries.pop()
    entries.append({**ended, "kind": "report-certified"})
    entries.append({**ended, "sequence": 3})


DAY = "2026-01-10"
SKIPPED = {"result": "SKIPPED", "reason": "no time", "required": True}


def page_digest(page: str) -> str:
    """Return the digest of the payload that a page shows."""
    found = re.search(r'data-f="payload_sha256"[^>]*>([0-9a-f]{64})<', page)
    assert found is not None
    return found[1]


LIES: dict[str, tuple[Forgery, str]] = {
    "a failed check, and passed": (
        Forgery(predicate=lambda one: one["checks"][0].update(result="FAILED", reason="torn")),
        "its checks say FAILED",
    ),
    "a required check skipped, and passed": (
        Forgery(predicate=lambda one: one["checks"][0].update(SKIPPED)),
        "its checks say WARNED",
    ),
    "no check at all, and passed": (Forgery(predicate=put("checks", value=[])), "its checks say WARNED"),
    "a required check skipped, and said not to be required": (
        Forgery(predicate=lambda one: one["checks"][0].update({**SKIPPED, "required": False})),
        "its checks say WARNED",
    ),
    "a check left out that was intended": (Forgery(intent={"checks": "C04 C08"}), "lacks a check"),
    "another region than was intended": (Forgery(intent={"region": "south"}), "another region"),
    "another scenario than was intended": (
        Forgery(intent={"scenario_sha256": "0" * 64}),
        "another scenario_sha256",
    ),
    "overall": (Forgery(predicate=put("result", "overall", value="WARNED")), "its checks say PASSED"),
    "rto_met": (Forgery(predicate=put("result", "rto_met", value=False)), "rto_met"),
    "rpo_met": (Forgery(predicate=put("result", "rpo_met", value=None)), "rpo_met"),
    "too slow": (Forgery(predicate=put("timings", "recovery_time_ms", value=300_001)), "rto_met"),
    "too much lost": (Forgery(predicate=put("data_loss", "data_loss_ms", value=60_001)), "rpo_met"),
    "objective moved": (Forgery(predicate=put("policy", "rto_ms", value=1)), "rto_met"),
    "a reason of what passed": (Forgery(predicate=put("checks", 0, "reason", value="why")), "reason"),
    "no reason of what was skipped": (Forgery(predicate=put("checks", 1, "reason", value=None)), "reason"),
    "an empty reason": (Forgery(predicate=put("checks", 1, "reason", value="")), "reason"),
    "a check twice": (Forgery(predicate=lambda one: one["checks"].append(one["checks"][0])), "twice"),
    "a field missing": (Forgery(predicate=drop("policy", "retention_ms")), "missing or unknown"),
    "a group missing": (Forgery(predicate=drop("recoverability")), "missing or unknown"),
    "a field unknown": (Forgery(predicate=put("scope", "verdict", value="fine")), "missing or unknown"),
    "a number as text": (Forgery(predicate=put("timings", "bytes", value="1")), "timings.bytes is not count"),
    "true as a number": (
        Forgery(predicate=put("timings", "bytes", value=True)),
        "timings.bytes is not count",
    ),
    "a digest too short": (Forgery(predicate=put("policy", "sha256", value="ab")), "policy.sha256 is not"),
    "a time without a zone": (
        Forgery(predicate=put("trigger", "scheduled_at", value="2026-01-11T03:00:00")),
        "trigger.scheduled_at is not time",
    ),
    "a 30th of February": (
        Forgery(predicate=put("trigger", "started_at", value="2026-02-30T03:00:00.000000Z")),
        "times are not in order",
    ),
    "another number": (Forgery(predicate=put("identity", "series_seq", value=2)), "that the log tells of"),
    "another cluster": (
        Forgery(predicate=put("scope", "system_identifier", value="7")),
        "that the log tells of",
    ),
    "another run": (Forgery(predicate=put("identity", "run_id", value="run-2")), "that the log tells of"),
    "another repository": (Forgery(predicate=put("identity", "repository", value="0" * 32)), "that the log"),
    "another verifier": (
        Forgery(predicate=put("people", "executed_by", "key_id", value="0" * 16)),
        "that the log",
    ),
    "a report before the first": (
        Forgery(predicate=put("identity", "previous_report_sha256", value="0" * 64)),
        "that the log tells of",
    ),
    "about another backup": (
        Forgery(predicate=put("subject", "backups", 0, "manifest_sha256", value="0" * 64)),
        "another type or subject",
    ),
    "another place in the log": (
        Forgery(predicate=put("log", "leaf_index", value=0)),
        "its place in the log",
    ),
    "another intent": (
        Forgery(
            predicate=lambda one: (
                put("log", "leaf_index", value=0)(one),
                put("trigger", "intent_log_index", value=0)(one),
            )
        ),
        "not the intent of its run",
    ),
    "a larger tree": (Forgery(predicate=put("log", "tree_size", value=3)), "its place in the log"),
    "another root": (Forgery(predicate=put("log", "root_hash", value="0" * 64)), "its checkpoint"),
    "a proof of nothing": (Forgery(predicate=put("log", "inclusion_proof", value=[])), "inclusion proof"),
    "a proof too long": (
        Forgery(predicate=lambda one: one["log"]["inclusion_proof"].append("0" * 64)),
        "inclusion proof",
    ),
    "another proof": (Forgery(predicate=put("log", "inclusion_proof", 0, value="0" * 64)), "inclusion proof"),
    "no earlier checkpoint": (Forgery(predicate=put("log", "prev_checkpoint", value=None)), "its checkpoint"),
    "not older checkpoint": (
        Forgery(predicate=lambda one: one["log"].update(prev_checkpoint=one["log"]["checkpoint"])),
        "its checkpoint",
    ),
    "no checkpoint": (Forgery(predicate=put("log", "checkpoint", value="trust me")), "not a checkpoint"),
    "began before it was intended": (
        Forgery(predicate=put("trigger", "started_at", value="2026-01-11T02:59:58.000000Z")),
        "times are not in order",
    ),
    "made before it began": (
        Forgery(predicate=put("identity", "created_at", value="2026-01-11T02:59:59.500000Z")),
        "times are not in order",
    ),
    "planned for another time": (
        Forgery(predicate=put("trigger", "scheduled_at", value=None)),
        "its intent has another scheduled_at",
    ),
    "another kind than intended": (
        Forgery(predicate=put("identity", "report_type", value="monthly_drill")),
        "its intent has another report_type",
    ),
    "random without a commitment": (
        Forgery(predicate=put("trigger", "sampling", "method", value="random")),
        "seed",
    ),
    "another seed": (
        Forgery(predicate=put("trigger", "sampling", "seed", value="0" * 64), is_random=True),
        "seed",
    ),
    "another seed and its digest": (
        Forgery(
            predicate=put(
                "trigger",
                "sampling",
                value={
                    "method": "random",
                    "seed": "00" * 32,
                    "seed_sha256": fix.hashlib.sha256(bytes(32)).hexdigest(),
                },
            ),
            is_random=True,
        ),
        "seed",
    ),
    "a seed that is not told": (
        Forgery(predicate=put("trigger", "sampling", "seed", value=None), is_random=True),
        "seed",
    ),
    "random intended, latest taken": (
        Forgery(
            predicate=put(
                "trigger", "sampling", value={"method": "latest", "seed": None, "seed_sha256": None}
            ),
            is_random=True,
        ),
        "seed",
    ),
    "another moment than was drawn": (
        Forgery(predicate=put("request", "value", value="2026-01-10T12:00:00Z"), is_random=True),
        "recovered to 2026-01-10T12:00:00Z",
    ),
    "the latest moment, and a random one was to be drawn": (
        Forgery(predicate=lambda one: one["request"].update(kind="latest", value=None), is_random=True),
        "recovered to latest",
    ),
    "a moment drawn from other stretches of time": (
        Forgery(intent={"stretches": f"{DAY}T00:00:00.000000Z/{DAY}T01:00:00.000000Z"}, is_random=True),
        "was intended, or drawn",
    ),
    "a moment drawn from what nobody knows": (
        Forgery(intent={"stretches": None}, is_random=True),
        "a time is not as it must be",
    ),
    "a moment drawn from no time": (
        Forgery(intent={"stretches": f"{DAY}T00:00:00.000001Z/{DAY}T00:00:00.000000Z"}, is_random=True),
        "cannot be read",
    ),
    "another target than was intended": (
        Forgery(predicate=lambda one: one["request"].update(kind="lsn", value="lsn:0/3000148")),
        "recovered to lsn:0/3000148; latest was intended",
    ),
    "a target, and another one was intended": (
        Forgery(intent={"target": "2026-01-10T12:00:00Z"}),
        "recovered to latest; 2026-01-10T12:00:00Z was intended",
    ),
    "a better test result": (
        Forgery(test_result=put("predicate", "passedTests", value=["C04", "C15.orders", "C16"])),
        "does not follow from the report",
    ),
    "a test result of another report": (
        Forgery(test_result=put("predicate", "configuration", 1, "digest", "sha256", value="0" * 64)),
        "does not follow from the report",
    ),
    "a test result about something else": (
        Forgery(test_result=put("subject", 0, "name", value="other")),
        "another type or subject",
    ),
    "a page with another value": (
        Forgery(html=lambda text: text.replace(">4 min 5.001 s</span>", ">5.001 s</span>")),
        "shows timings.recovery_time_ms",
    ),
    "a page with another verdict": (
        Forgery(html=lambda text: text.replace(">PASSED</span>", ">FAILED</span>", 1)),
        "shows result.overall",
    ),
    "a chart with another value": (
        Forgery(html=lambda text: text.replace(">2 min</text>", ">1 min</text>")),
        "shows timings.",
    ),
    "a page with another digest": (
        Forgery(html=lambda text: text.replace(f">{page_digest(text)}<", f">{'0' * 64}<")),
        "shows payload_sha256",
    ),
    "a run before the first": (
        Forgery(
            predicate=lambda one: one["trend"].append(
                {
                    "series_seq": 1,
                    "report_type": "weekly_verification",
                    "created_at": one["identity"]["created_at"],
                    "overall": "PASSED",
                    **dict.fromkeys(("rto_ms", "rpo_ms", "recovery_time_ms"), 1),
                    **dict.fromkeys(("wal_replay_done_ms", "data_loss_ms", "bytes"), 1),
                }
            )
        ),
        "its trend is not what the reports before it say",
    ),
    "a version that does not exist": (
        Forgery(predicate=put("identity", "schema_version", value=3)),
        "schema_version is not =2",
    ),
    "a page without a verdict": (
        Forgery(html=lambda text: text.replace(' data-f="result.overall"', "")),
        "does not show the verdict",
    ),
    "a page that shows what is not there": (
        Forgery(html=lambda text: text.replace('data-f="scope.org"', 'data-f="scope.nothing"')),
        "cannot be read",
    ),
    "a page that shows a value in parts": (
        Forgery(html=lambda text: text.replace(">Example Hospital<", "><b>Example</b> Hospital<")),
        "in a way that it must not",
    ),
    "a page with script": (
        Forgery(html=lambda text: text.replace("</body>", "<SCRIPT>1</SCRIPT></body>")),
        "active",
    ),
    "a page that asks the network": (
        Forgery(html=lambda text: text.replace("</body>", '<p style="" src="//x"></p></body>')),
        "active",
    ),
    "a page that does something": (
        Forgery(html=lambda text: text.replace("<body>", '<body onload="x()">')),
        "active",
    ),
    "a page that embeds another report": (
        Forgery(html=lambda text: text.replace('<pre id="envelope">{', '<pre id="envelope">{ ')),
        "does not embed",
    ),
    "a page that embeds none": (
        Forgery(html=lambda text: text.replace('<pre id="envelope">', "<pre>")),
        "does not embed",
    ),
    "the outcome in the log": (
        Forgery(entries=put(2, "facts", "outcome", value="FAILED")),
        "that the log tells of",
    ),
    "a gap in the series": (Forgery(entries=put(2, "facts", "series_seq", value=2)), "and 1 comes next"),
    "an outcome twice": (
        Forgery(entries=lambda all_of: all_of.append({**all_of[2], "sequence": 3})),
        "ended twice",
    ),
    "an outcome of nothing": (Forgery(entries=put(2, "run_id", value="run-9")), "never intended"),
    "an outcome of another kind": (Forgery(entries=put(2, "kind", value="drill-ended")), "never intended"),
    "an intent twice": (
        Forgery(entries=lambda all_of: all_of.append({**all_of[1], "sequence": 3, "at": all_of[2]["at"]})),
        "intended twice",
    ),
    "entries whose times go back": (
        Forgery(entries=put(2, "at", value="2026-01-01T00:00:00.000000Z")),
        "older than the one before",
    ),
    "a log of another repository": (
        Forgery(entries=put(2, "log", value=f"pitr/{'f' * 32}/{fix.VERIFIER.public.key_id}")),
        "of another log",
    ),
    "no report id": (Forgery(entries=put(2, "facts", "report_id", value="x")), "has no good report_id"),
    "certified by the verifier itself": (
        Forgery(
            entries=lambda all_of: all_of.append(
                {
                    **all_of[2],
                    "sequence": 3,
                    "kind": "report-certified",
                    "facts": {
                        **all_of[2]["facts"],
                        "key": str(fix.VERIFIER.public),
                        "certification_sha256": "0" * 64,
                    },
                }
            )
        ),
        "a person's own key",
    ),
    "certified before it was made": (
        Forgery(entries=lambda all_of: certified_too_soon(all_of)),
        "was certified before it was made",
    ),
}


@pytest.mark.parametrize("name", LIES)
def test_a_verifier_whose_lies_contradict_themselves(name: str, tmp_path: Path) -> None:
    forgery, told = LIES[name]
    folder = tmp_path / "folder"
    try:
        key = forgery.write(folder)
    except KeyError:
        # Not even a page can be made of it: then what was signed is all that there is.
        pytest.fail("the forger could not write it")
    found = audit(folder, key)
    assert found.code == 1
    assert told in found.texts("error")
