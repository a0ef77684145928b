#!/usr/bin/env python3
"""pitr-audit: check a folder of restore verification reports with nothing but the verifier's public key.

Run it as: python3 -I -S pitr_audit.py --key verifier.pub.pem FOLDER (Python 3.11, no network, read-only).
It checks every signature, that the log is the one that all checkpoints are of, that each report and page is
the one that was logged, that none is missing, that verdicts follow from figures.  It cannot tell that a
verifier lied about what it saw, nor that a whole folder is an older one: give it a report that you kept
(--witness).  Exit code: 0 good, 1 findings, 2 wrong usage.  Reference: docs/audit.md
"""

import argparse
import base64
import hashlib
import html
import itertools
import json
import os
import re
import stat
import sys
from datetime import UTC, datetime, timedelta

STATEMENT_MAX, ENVELOPE_MAX, HTML_MAX, LOG_MAX = 4 << 20, 6 << 20, 32 << 20, 256 << 20  # bytes
FILES_MAX, FINDINGS_MAX, LIST_MAX = 500_000, 1000, 10_000
STATEMENT = "https://in-toto.io/Statement/v1"
VERIFICATION = "https://pitr.invalid/attestations/restore-verification/v1"
CERTIFICATION = "https://pitr.invalid/attestations/report-certification/v1"
TEST_RESULT = "https://in-toto.io/attestation/test-result/v0.1"
INTENTS = {"verification-intended": "verification-ended", "drill-intended": "drill-ended"}
LATE_PART = 7  # a test is late, and not only delayed, from its frequency and this part of it on
RUNNING = timedelta(hours=24)  # an intent that is not older may belong to a run that still goes on
# The shape of a report: the same texts as in verifiers/report_shape.py, which says what they mean.
TYPES_TEXT = r"""
text 8000 [^\x00-\x08\x0b-\x1f\x7f]*   name 300 [^\x00-\x1f\x7f]+   timeline 8 [0-9A-F]{8}
time 27 [0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z   repository_id 32 [0-9a-f]{32}
sha256 64 [0-9a-f]{64}   key_id 16 [0-9a-f]{16}   system_identifier 20 [1-9][0-9]{0,19}
uuid 36 [0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}
lsn 17 (?:0|[1-9A-F][0-9A-F]{0,7})/(?:0|[1-9A-F][0-9A-F]{0,7})
check 80 [A-Z][A-Z0-9]{0,3}[0-9]{2,4}(?:\.[a-z0-9_-]{1,64})?
"""
REPORT_SHAPE = """
subject{ backups[]{ name:name manifest_sha256:sha256 } wal[]{ timeline:timeline start_lsn,end_lsn:lsn
  index_sha256?:sha256 } }
identity{ report_id:uuid run_id:name schema_version:=1 series_seq:number previous_report_sha256?:sha256
  report_type:weekly_verification|monthly_drill|quarterly_drill|actual_recovery|scrub
  repository:repository_id created_at:time period_start,period_end?:time }
scope{ org,system_name:text system_identifier:system_identifier pg_version,asset_id,criticality_tier?:text
  databases,data_classes[]:name excluded[]{ item,reason:text } }
policy{ policy_id:name sha256:sha256 required_frequency_ms,rto_ms,rpo_ms,retention_ms?:number
  plan_document?{ id,version:text sha256:sha256 } }
trigger{ scheduled_at?:time started_at:time started_by,reason:text intent_log_index:count sampling{
  method:latest|given|random seed,seed_sha256?:sha256 } }
source{ backup_id?:name kind?:full|incr chain[]:name taken_at?:time taken_by,region,store_checksum?:text
  regions[]{ name:name is_used:bool object_lock_mode?:text min_lock_until?:time } encryption?{ suite:text
  key_ids[]:name commitment_ok?:bool } manifest_signature?{ key_id:name is_valid:bool } }
target{ environment_id,host:text region,pg_binary_version,wiped_proof?:text wiped_after?:bool segregation{
  account,network,credentials{ is_distinct?:bool shown_by:text } } }
request{ kind:latest|time|lsn|name|xid|immediate value,timeline?:text timezone:text inclusive:bool }
timings{ detect,decide,provision,fetch_first_byte,base_done,wal_replay_done?{ at:time ms:count }
  consistent,accept_reads,accept_writes,checks_done?{ at:time ms:count }
  recovery_time_ms,bytes,wal_bytes,throughput_bytes_s?:count }
data_loss{ last_source_commit,last_recovered?{ lsn?:lsn time?:time xid?:count marker?:text } method:text
  data_loss_ms,data_loss_tx,lsn_gap_bytes?:count clock_skew_ms?:integer }
degradation?{ service_degradation{ window_ms:count throughput_permille,read_only_ms?:count
  latency_us_before,latency_us_during,latency_us_after?{ p50,p95,p99:count } } error_rate{
  requests,clients:count errors[]{ class:name count:count } } }
checks[]{ id:check category,tool:name title,tool_version,expected,observed:text reason?:text required:bool
  command_sha256:sha256 evidence_sha256?:sha256 started_at:time ms:count result:PASSED|WARNED|FAILED|SKIPPED
  }
kafka?{ partitions[]{ topic:name partition,duplicates,missing:count offset_at_target,high_watermark:integer
  replayed_from,replayed_to?:integer result:text } }
ransomware?{ indicators[]{ name:name value,baseline,threshold:text } last_clean_point?:text }
result{ overall:PASSED|WARNED|FAILED rto_met,rpo_met?:bool limits[]:text }
findings[]{ id:name severity:low|medium|high|critical status:open|closed|accepted description:text
  root_cause,owner,corrective_action?:text due_at?:time retest_report_id?:uuid }
people{ executed_by{ key_id:key_id name:text } participants[]{ name,role:text } notified[]:text }
tool{ product_version:text wheel_sha256,sbom_sha256,pg_binaries_sha256?:sha256 config_sha256:sha256 }
log{ log_origin:name leaf_index:count tree_size:number root_hash:sha256 inclusion_proof[]:sha256
  checkpoint:text prev_checkpoint,rfc3161_token?:text object_lock_copy?{ uri:text version?:text } }
mapping[]{ framework,control:name status:satisfied|partial|not-tested fields[]:name }
"""
CERTIFICATION_SHAPE = """
report_id:uuid report_sha256:sha256 series_seq:number certified_at:time certified_by{ name,role,key:name }
reviewed_by?{ name,role:name } statement:text corrective_actions[]:text
"""
KINDS = TYPES_TEXT.split()
TYPES = {kind: (int(most), text) for kind, most, text in zip(*(KINDS[at::3] for at in range(3)), strict=True)}
INTEGERS = {"count": (0, 2**63 - 1), "number": (1, 2**63 - 1), "integer": (-(2**63), 2**63 - 1), "=1": (1, 1)}


class Refused(Exception):
    """Evidence that is not what it must be; the text says what is wrong."""


TRIPS = (Refused, ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError)


def need(holds, text):
    if not holds:
        raise Refused(text)


# Ed25519 as RFC 8032 has it; multiples of a point are kept, for one key signed thousands of times.
P, ORDER = 2**255 - 19, 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, P) % P


def point_add(one, two):
    (x1, y1, z1, t1), (x2, y2, z2, t2) = one, two
    a, b = (y1 - x1) * (y2 - x2) % P, (y1 + x1) * (y2 + x2) % P
    c, d = 2 * t1 * D * t2 % P, 2 * z1 * z2 % P
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % P, g * h % P, f * g % P, e * h % P


class Key:
    """An Ed25519 public key, or the base point."""

    def __init__(self, raw, *, is_base=False):
        y, sign = int.from_bytes(raw, "little") & (1 << 255) - 1, raw[-1] >> 7
        square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
        x = pow(square, (P + 3) // 8, P)
        x = x if x * x % P == square else x * pow(2, (P - 1) // 4, P) % P
        need(len(raw) == 32 and y < P and x * x % P == square and (x or not sign), "not a point of the curve")
        x = x if (x & 1 == sign) == is_base else P - x  # of a key, its negative is what verify needs
        self.raw, self.id = raw, hashlib.sha256(raw).hexdigest()[:16]
        self.text = "ed25519:" + base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
        point, self.table = (x, y, 1, x * y % P), []
        for _ in range(64):
            self.table.append([*itertools.accumulate([point] * 16, point_add)])
            point = self.table[-1][15]

    @staticmethod
    def read(path):
        text = read_file(path, 10_000).decode("ascii", "replace")
        match = re.fullmatch(r"\s*-----BEGIN PUBLIC KEY-----([\w+/=\s]+)-----END PUBLIC KEY-----\s*", text)
        content = decode_base64("".join(match[1].split())) if match else b""
        need(content[:12].hex() == "302a300506032b6570032100", "not the PEM text of an Ed25519 public key")
        return Key(content[12:])

    def verify(self, signature, message):
        scalar = int.from_bytes(signature[32:], "little")
        digest = hashlib.sha512(signature[:32] + self.raw + message).digest()
        factor = int.from_bytes(digest, "little") % ORDER
        total = (0, 1, 1, 0)
        for table, number in ((BASE.table, scalar % ORDER), (self.table, factor)):
            for at, row in enumerate(table):
                digit = number >> 4 * at & 15
                total = point_add(total, row[digit - 1]) if digit else total
        x, y, inverse = total[0], total[1], pow(total[2], -1, P)
        found = (y * inverse % P | (x * inverse % P & 1) << 255).to_bytes(32, "little")
        need(len(signature) == 64 and scalar < ORDER and found == signature[:32], "signature is wrong")


BASE = Key((4 * pow(5, -1, P) % P).to_bytes(32, "little"), is_base=True)


def read_file(path, bytes_max):
    """Return what a plain file holds: no link is followed, no pipe or device is waited for."""
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
        need(stat.S_ISREG(os.fstat(file.fileno()).st_mode), "is not a plain file")
        content = file.read(bytes_max + 1)
    need(len(content) <= bytes_max, f"has more than {bytes_max} bytes")
    return content


def decode_base64(text):
    content = base64.b64decode(text, validate=True)
    need(base64.b64encode(content).decode() == text, "base64 is not in its one spelling")
    return content


def parse_json(content):
    """Read JSON that must be in its one spelling: so no key is there twice, and no number is a float."""
    value = json.loads(content.decode("ascii"))
    again = json.dumps(value, allow_nan=False, sort_keys=True, separators=(",", ":"))
    need(again.encode() == content, "JSON is not in its one spelling")
    return value


def parse_shape(words):
    shape = {}
    for word in words:
        if word == "}":
            break
        names, colon, kind = word.removesuffix("{").partition(":")
        suffix = re.search(r"(\[\]|\?)?$", names)[0]
        inner = kind if colon else parse_shape(words)
        shape.update((name, (suffix, inner)) for name in names.removesuffix(suffix).split(","))
    return shape


def fits(value, kind):
    if kind in INTEGERS:
        return type(value) is int and INTEGERS[kind][0] <= value <= INTEGERS[kind][1]
    if kind == "bool" or type(value) is not str:
        return kind == type(value).__name__
    most, pattern = TYPES.get(kind, (99, kind))
    return len(value) <= most and re.fullmatch(pattern, value) is not None


def check_shape(value, kind, suffix="", where=""):
    if suffix == "?" and value is None:
        return
    if suffix == "[]":
        need(isinstance(value, list) and len(value) <= LIST_MAX, f"{where} is no list, or too long")
        for at, one in enumerate(value):
            check_shape(one, kind, "", f"{where}.{at}")
    elif isinstance(kind, dict):
        need(isinstance(value, dict) and set(value) == set(kind), f"{where}: a field is missing or unknown")
        for name, (inner_suffix, inner) in kind.items():
            check_shape(value[name], inner, inner_suffix, f"{where}.{name}")
    else:
        need(fits(value, kind), f"{where[1:]} is not {kind}: {str(value)[:60]!r}")


SHAPES = {VERIFICATION: parse_shape(iter(REPORT_SHAPE.split()))}
SHAPES[CERTIFICATION] = parse_shape(iter(CERTIFICATION_SHAPE.split()))
ENVELOPE = re.compile(
    rb'\{"payload":"([A-Za-z0-9+/]*={0,2})","payloadType":"(application/vnd\.in-toto\+json)",'
    rb'"signatures":\[\{"keyid":"([0-9a-f]{16})","sig":"([A-Za-z0-9+/]{86}==)"\}\]\}'
)


def open_statement(envelope, key, predicate_type, subject_of):
    """Verify a DSSE envelope; return the predicate in it and the SHA-256 of its payload."""
    match = ENVELOPE.fullmatch(envelope)
    need(match, "is no signed statement")
    need(match[3].decode() == key.id, f"is signed by another key: {match[3].decode()}")
    payload = decode_base64(match[1].decode())
    encoded = b"DSSEv1 %d %b %d %b" % (len(match[2]), match[2], len(payload), payload)
    key.verify(decode_base64(match[4].decode()), encoded)
    statement = parse_json(payload)
    predicate = statement.pop("predicate")
    if predicate_type in SHAPES:
        check_shape(predicate, SHAPES[predicate_type])
    subject = [{"name": name, "digest": {"sha256": one}} for name, one in subject_of(predicate)]
    expected = {"_type": STATEMENT, "subject": subject, "predicateType": predicate_type}
    need(len(payload) <= STATEMENT_MAX and statement == expected, "is a statement of another type or subject")
    return predicate, hashlib.sha256(payload).hexdigest()


def instant(text):
    need(fits(text, "time"), "a time is not as it must be")
    return datetime.fromisoformat(text)


def subjects(report):
    named = [(one["name"], one["manifest_sha256"]) for one in report["subject"]["backups"]]
    return named or [("policy/" + report["policy"]["policy_id"], report["policy"]["sha256"])]


ACTIVE = re.compile(r"</?(script|iframe|object|embed|link|img|form|base)\b|\s(on\w+|src|href|action)\s*=")
SHOWN = re.compile(r'<(\w+) data-f="([\w.]+)"(?: data-u="(\w+)")?[^<>]*>([^<]*)</\1>')
EMBEDDED = re.compile(r'<pre id="([\w-]+)">([^<]*)</pre>')


class Audit:
    """One run over a folder: it goes on after each fault, and collects all findings."""

    def __init__(self, folder, key, options):
        self.folder, self.key, self.options = folder, key, options
        # The log's entries, the root of the tree after each, and the size of each checkpoint by its text.
        self.origin, self.entries, self.roots, self.notes = "", [], [b""], {}
        self.findings, self.left_out, self.used, self.series = [], 0, set(), {}
        self.reports, self.certifications = 0, 0

    def find(self, severity, subject, text):
        subject, text = (re.sub(r"[^ -~]", "?", str(one)[:400]) for one in (subject, text))
        self.left_out += severity != "note" and len(self.findings) >= FINDINGS_MAX
        if len(self.findings) < FINDINGS_MAX:
            self.findings.append({"severity": severity, "subject": subject, "message": text})

    def attempt(self, subject, step, *arguments):
        """Run a step; what it refuses, or trips over in hostile input, is a finding."""
        try:
            step(*arguments)
            return True
        except TRIPS as error:
            self.find("error", subject, error if isinstance(error, Refused) else f"cannot be read: {error!r}")
            return False

    def take(self, name):
        need(name in self.names, "is missing")
        self.used.add(name)
        return f"{self.folder}/{name}"

    def run(self):
        self.names = {item.name for item in os.scandir(self.folder)}
        need(len(self.names) <= FILES_MAX, f"has more than {FILES_MAX} files")
        if self.attempt("log.jsonl", self.read_log):
            self.attempt("checkpoints.jsonl", self.check_checkpoints)
            self.attempt("log.jsonl", self.check_entries)
            for path in self.options.witness:
                self.attempt(path, self.check_witness, path)
            for name in sorted(self.names - self.used):
                severity = "error" if re.search(r"\.(json|jsonl|html)$", name) else "note"
                self.find(severity, name, "is in the folder, and the log does not tell of it")

    def read_lines(self, name):
        *lines, rest = read_file(self.take(name), LOG_MAX).split(b"\n")
        need(lines and not rest, "has no line, or its last one is cut off")
        return lines

    def read_log(self):
        full, names = [], {"log", "sequence", "at", "kind", "run_id", "facts"}
        for number, line in enumerate(self.read_lines("log.jsonl")):
            entry = parse_json(line)
            is_entry = isinstance(entry, dict) and set(entry) == names and isinstance(entry["facts"], dict)
            is_entry = is_entry and all(fits(entry[name], "name") for name in ("log", "kind", "run_id"))
            need(is_entry and entry["sequence"] == number, f"line {number + 1} is not entry {number}")
            self.origin = self.origin or entry["log"]
            is_ours = re.fullmatch(rf"pitr/[0-9a-f]{{32}}/{self.key.id}", entry["log"])
            need(is_ours and entry["log"] == self.origin, f"entry {number} is of another log or key")
            is_later = instant(entry["at"]) and (not number or self.entries[-1]["at"] <= entry["at"])
            need(is_later, f"entry {number} is older than the one before")
            # Small facts alone: an observation may hold a thousand digests that nobody asks for.
            entry["facts"] = {name: one for name, one in entry["facts"].items() if len(str(one)) <= 400}
            entry["leaf"] = root = hashlib.sha256(b"\x00" + line).digest()
            self.entries.append(entry)
            for _ in range((number + 1 & -number - 1).bit_length() - 1):
                root = self.node(full.pop(), root)
            full.append(root)
            for left in reversed(full[:-1]):
                root = self.node(left, root)
            self.roots.append(root)

    def fact(self, entry, name, kind):
        value = entry["facts"].get(name)
        need(fits(value, kind), f"log entry {entry['sequence']} has no good {name}")
        return value

    def checkpoint(self, note):
        """Verify a signed note; return its size.  Its root is computed anew: no proof could say more."""
        if note in self.notes:
            return self.notes[note]
        pattern = r"((.{1,100})\n(\d{1,18})\n(\S{44})\n(.{27})\n)\n— (.{1,100}) (\S{92})\n"
        match = re.fullmatch(pattern, note) if len(note) <= 2000 else None
        need(match and match[2] == self.origin == match[6], "not a checkpoint of this log")
        signature, root, size = decode_base64(match[7]), decode_base64(match[4]), int(match[3])
        name = hashlib.sha256(self.origin.encode() + b"\n\x01" + self.key.raw).digest()[:4]
        need(signature[:4] == name and str(size) == match[3], "checkpoint is by another signer")
        self.key.verify(signature[4:], match[1].encode())
        need(0 < size < len(self.roots), f"checkpoint over {size} entries; there are {len(self.entries)}")
        is_same = root == self.roots[size] and match[5] == self.entries[size - 1]["at"]
        need(is_same, f"the log is not the one that the checkpoint over {size} is of")
        return self.notes.setdefault(note, size)

    def check_checkpoints(self):
        sizes = [self.checkpoint(parse_json(line)) for line in self.read_lines("checkpoints.jsonl")]
        need(sizes == sorted(set(sizes)), "its checkpoints are not in their order")
        need(sizes[-1:] == [len(self.entries)], "no checkpoint covers the newest entry of the log")

    def check_entries(self):
        """Every intent has an outcome, and every outcome an intent before it; the host's past stays."""
        intents, ended, told, seen = {}, set(), {}, {}
        for entry in self.entries:
            subject, run, facts = f"log entry {entry['sequence']}", entry["run_id"], entry["facts"]
            kind, report_id = entry["kind"], facts.get("report_id")
            if kind in INTENTS:
                need(run not in intents, f"run {run} was intended twice")
                intents[run] = entry
            elif kind in INTENTS.values():
                is_intended = run in intents and INTENTS[intents[run]["kind"]] == kind
                need(is_intended and run not in ended, f"run {run} ended twice, or was never intended")
                ended.add(run)
                if report_id is None:
                    self.find("warning", subject, f"run {run} was abandoned: {facts.get('reason')}")
                else:
                    told[self.fact(entry, "report_id", "uuid")] = [entry]
            elif kind == "report-certified":
                need(report_id in told, f"report {report_id} was certified before it was made")
                told[report_id].append(entry)
            elif kind.endswith("-missed"):
                self.find("warning", subject, f"a run was missed: {facts.get('reason')}")
            for name in [name for name in facts if kind == "observed" and name.endswith("_sequence")]:
                now = (facts[name] or 0, facts.get(name.replace("_sequence", "_sha256")))
                last = seen.setdefault((facts.get("archive"), name), now)
                need(now[0] > last[0] or now == last, f"the host rewrote what {subject} saw: {name}")
                seen[(facts.get("archive"), name)] = now
        for run in sorted(intents.keys() - ended):
            age = instant(self.entries[-1]["at"]) - instant(intents[run]["at"])
            subject = f"log entry {intents[run]['sequence']}"
            self.find("note" if age < RUNNING else "warning", subject, f"run {run} has no outcome")
        for report_id, (entry, *certified) in told.items():
            stem = f"{self.fact(entry, 'series_seq', 'number'):08d}-{report_id}"
            self.attempt(f"{stem}.json", self.check_report, stem, entry, certified)
        self.reports = len(told)
        for system, series in self.series.items():
            self.check_cadence(system, [place for place in series if len(place) > 2])

    def check_report(self, stem, entry, certified):
        number = self.fact(entry, "series_seq", "number")
        digest_told = self.fact(entry, "report_sha256", "sha256")
        series = self.series.setdefault(self.fact(entry, "system_identifier", "system_identifier"), [])
        before = series[-1] if series else (0, None)
        # It takes its place also when it is bad: one bad report is not a finding for each later one.
        series.append((number, digest_told))
        need(number == before[0] + 1, f"is number {number}, and {before[0] + 1} comes next")
        envelope, facts = read_file(self.take(f"{stem}.json"), ENVELOPE_MAX), entry["facts"]
        report, digest = open_statement(envelope, self.key, VERIFICATION, subjects)
        identity, overall = report["identity"], report["result"]["overall"]
        said = [digest, identity["series_seq"], identity["report_id"], identity["run_id"], overall]
        told = [digest_told, number, facts["report_id"], entry["run_id"], facts["outcome"]]
        said += [report["scope"]["system_identifier"], report["people"]["executed_by"]["key_id"]]
        said += [identity["repository"], identity["previous_report_sha256"]]
        told += [facts["system_identifier"], self.key.id, self.origin.split("/")[1], before[1]]
        need(said == told, "is not the report that the log tells of")
        self.check_verdicts(report)
        self.check_anchor(report, entry)
        started, due_ms = instant(report["trigger"]["started_at"]), report["policy"]["required_frequency_ms"]
        series[-1] = (number, digest, identity["report_type"], started, due_ms)
        if overall != "PASSED":
            self.find("note", f"{stem}.json", f"the verification {overall}")
        name, shown = f"{stem}.test-result.json", []
        self.attempt(name, self.check_test_result, name, report, digest, entry)
        for at, one in enumerate(certified):
            name = f"{stem}.certification{f'-{at + 1}' if at else ''}.json"
            self.attempt(name, self.check_certification, name, one, report, digest, shown)
        if not certified:
            severity = "warning" if self.options.require_certification else "note"
            self.find(severity, f"{stem}.json", "no person has certified it")
        page_told = self.fact([entry, *certified][-1], "html_sha256", "sha256")
        self.attempt(f"{stem}.html", self.check_page, f"{stem}.html", report, envelope, shown, page_told)

    def check_verdicts(self, report):
        said, checks, policy = report["result"], report["checks"], report["policy"]
        required = {check["result"] for check in checks if check["required"]}
        overall = "PASSED" if required == {"PASSED"} else "WARNED"
        overall = "FAILED" if any(check["result"] == "FAILED" for check in checks) else overall
        need(said["overall"] == overall, f"says {said['overall']}, and its checks say {overall}")
        timings, loss = report["timings"], report["data_loss"]
        for name, measured in (("rto", timings["recovery_time_ms"]), ("rpo", loss["data_loss_ms"])):
            objective = policy[f"{name}_ms"]
            met = None if measured is None or objective is None else measured <= objective
            need(said[f"{name}_met"] is met, f"says {name}_met {said[f'{name}_met']}; its figures say {met}")
        is_explained = all((check["result"] == "PASSED") != bool(check["reason"]) for check in checks)
        is_once = len({check["id"] for check in checks}) == len(checks)
        need(is_explained and is_once, "has a check twice, or without a reason, or with one too many")

    def node(self, left, right):
        return hashlib.sha256(b"\x01" + left + right).digest()

    def check_inclusion(self, index, size, leaf, proof, root):
        """RFC 9162 §2.1.3.2."""
        at, last, found = index, size - 1, leaf
        for one in proof:
            need(last > 0, "inclusion proof is too long")
            found = self.node(one, found) if at % 2 or at == last else self.node(found, one)
            while at == last and at % 2 == 0 and at:
                at, last = at >> 1, last >> 1
            at, last = at >> 1, last >> 1
        need(last == 0 and found == root, "inclusion proof does not lead to the root")

    def check_anchor(self, report, ended):
        """The intent was logged before the run, under a checkpoint that was signed before the outcome."""
        log, trigger, sampling = report["log"], report["trigger"], report["trigger"]["sampling"]
        index, size, note = log["leaf_index"], log["tree_size"], log["prev_checkpoint"]
        is_placed = index == trigger["intent_log_index"] and index < size <= ended["sequence"]
        need(is_placed and log["log_origin"] == self.origin, "its place in the log is wrong")
        intent, root = self.entries[index], self.roots[size]
        is_intent = intent["kind"] in INTENTS and intent["run_id"] == ended["run_id"]
        need(is_intent, f"entry {index} of the log is not the intent of its run")
        is_covered = self.checkpoint(log["checkpoint"]) == size and log["root_hash"] == root.hex()
        is_older = index == 0 if note is None else self.checkpoint(note) <= index
        need(is_covered and is_older, "its checkpoint or the one before is not of its place in the log")
        self.check_inclusion(index, size, intent["leaf"], [*map(bytes.fromhex, log["inclusion_proof"])], root)
        groups = {"report_type": "identity", "system_identifier": "scope", "scheduled_at": "trigger"}
        for name in groups.keys() & intent["facts"].keys():
            need(intent["facts"][name] == report[groups[name]][name], f"its intent has another {name}")
        times = [intent["at"], trigger["started_at"], report["identity"]["created_at"], ended["at"]]
        need(times == sorted(times), "its times are not in order: intended, started, made, logged")
        committed, seed = intent["facts"].get("seed_sha256"), sampling["seed"]
        found = None if seed is None else hashlib.sha256(bytes.fromhex(seed)).hexdigest()
        is_random = (sampling["method"] == "random") == (seed is not None)
        need(is_random and found == committed == sampling["seed_sha256"], "its seed is not the committed one")

    def check_test_result(self, name, report, digest, entry):
        envelope = read_file(self.take(name), ENVELOPE_MAX)
        told = self.fact(entry, "test_result_sha256", "sha256")
        need(hashlib.sha256(envelope).hexdigest() == told, "is not the test result that was logged")
        predicate, _ = open_statement(envelope, self.key, TEST_RESULT, lambda _: subjects(report))
        names, policy = {"PASSED": [], "WARNED": [], "FAILED": []}, report["policy"]
        for check in report["checks"]:
            names[check["result"].replace("SKIPPED", "WARNED")].append(check["id"])
        named = [("policy/" + policy["policy_id"], policy["sha256"])]
        named.append(("report/" + report["identity"]["report_id"], digest))
        expected = {f"{result.lower()}Tests": ids for result, ids in names.items()}
        expected["configuration"] = [{"name": one, "digest": {"sha256": sha256}} for one, sha256 in named]
        expected["result"] = report["result"]["overall"]
        need(predicate == expected, "does not follow from the report")

    def check_certification(self, name, entry, report, digest, shown):
        text, trusted = self.fact(entry, "key", "name"), [key.raw for key in self.options.certifiers]
        key = Key(base64.urlsafe_b64decode(text.removeprefix("ed25519:") + "="))
        need(key.text == text and key.raw != self.key.raw, "is not signed by a person's own key")
        need(not trusted or key.raw in trusted, "is signed by a person who is not trusted here")
        envelope = read_file(self.take(name), ENVELOPE_MAX)
        about = [("report/" + report["identity"]["report_id"], digest)]
        words, found = open_statement(envelope, key, CERTIFICATION, lambda _: about)
        by, identity, facts = words["certified_by"], report["identity"], entry["facts"]
        said = [found, words["report_sha256"], words["report_id"], words["series_seq"], *by.values()]
        told = [facts["certification_sha256"], facts["report_sha256"], identity["report_id"]]
        told += [identity["series_seq"], *(facts[name] for name in by)]
        need(said == told and facts["report_sha256"] == digest, "is another one than was logged")
        times = [identity["created_at"], words["certified_at"], entry["at"]]
        need(times == sorted(times), "its times are not in order: made, certified, logged")
        self.certifications += 1
        shown.append((words, envelope))

    def shown_text(self, value, unit):
        if value is None or type(value) is bool:
            return "–" if value is None else "yes" if value else "no"
        if unit == "time":
            return f"{value[:10]} {value[11:19]} UTC"
        if unit == "ms":
            seconds = value // 1000
            return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}.{value % 1000:03d}"
        return str(value)

    def check_page(self, name, report, envelope, certifications, digest_told):
        content = read_file(self.take(name), HTML_MAX)
        need(hashlib.sha256(content).hexdigest() == digest_told, "is not the page that was logged")
        page = content.decode()
        tags, fields = re.findall(r"<[^<>]*>", page), dict(report)
        fields["certifications"] = [words for words, _ in certifications]
        need(not any(ACTIVE.search(tag.lower()) for tag in tags), "has something active in it")
        shown = SHOWN.findall(page)
        need(len(shown) == sum("data-f" in tag for tag in tags), "shows a value in a way that it must not")
        for _, path, unit, text in shown:
            value = fields
            for name in path.split("."):
                value = value[int(name)] if isinstance(value, list) else value[name]
            said, expected = html.unescape(text), self.shown_text(value, unit)
            need(said == expected, f"shows {path} as {said[:80]!r}; the report says {expected[:80]!r}")
        need("result.overall" in [path for _, path, _, _ in shown], "does not show the verdict")
        embedded = [("envelope", envelope)]
        embedded += [(f"certification-{at}", one) for at, (_, one) in enumerate(certifications)]
        found = [(name, html.unescape(text).encode()) for name, text in EMBEDDED.findall(page)]
        need(found == embedded, "does not embed the signed report and its certifications")

    def check_cadence(self, system, series):
        newest = {}
        now = [(None, None, kind, self.options.now, None) for kind in {place[2] for place in series}]
        for number, _, kind, started, frequency_ms in [*series, *now]:
            since, due_ms = newest.get(kind, (started, None))
            gap_ms = (started - since) // timedelta(milliseconds=1)
            if due_ms is not None and gap_ms > due_ms + due_ms // LATE_PART:
                text = f"{gap_ms / 864e5:.1f} days from {since:%Y-%m-%d} to report {number or '(none)'}"
                self.find("warning", f"cluster {system}: {kind}", f"{text}; allowed: {due_ms / 864e5:.1f}")
            newest[kind] = (started, frequency_ms)

    def check_witness(self, path):
        """An earlier report, or a checkpoint, that the auditor kept: this log must go on from it."""
        content = read_file(path, ENVELOPE_MAX)
        if content.startswith(b"{"):
            report, digest = open_statement(content, self.key, VERIFICATION, subjects)
            is_told = any(digest == entry["facts"].get("report_sha256") for entry in self.entries)
            need(is_told, "this report was kept, and the log does not tell of it")
            content = report["log"]["checkpoint"].encode()
        self.checkpoint(content.decode())


def main(words=None):
    """Check what the command line names; return the exit code."""
    parser = argparse.ArgumentParser("pitr-audit", description="Check a folder of verification reports.")
    parser.add_argument("folder", metavar="FOLDER", help="what `pitr report export` wrote")
    parser.add_argument("--key", required=True, metavar="PEM", help="the verifier's public key")
    parser.add_argument("--certifier", action="append", default=[], metavar="PEM", help="who may certify")
    parser.add_argument("--witness", action="append", default=[], metavar="FILE", help="a report you kept")
    parser.add_argument("--require-certification", action="store_true", help="a report without is a finding")
    parser.add_argument("--now", help="judge lateness as of 2026-11-30T00:00:00.000000Z")
    parser.add_argument("--json", action="store_true", help="one JSON object as result")
    options = parser.parse_args(words)
    try:
        key = Key.read(path := options.key)
        options.certifiers = [Key.read(path := one) for one in options.certifier]
        options.now = instant(options.now) if options.now else datetime.now(UTC)
        audit = Audit(path := options.folder, key, options)
        audit.run()
    except TRIPS as error:
        sys.stderr.write(f"pitr-audit: {path}: {error}\n")
        return 2
    is_good = not audit.left_out and all(one["severity"] == "note" for one in audit.findings)
    counts = {"reports": audit.reports, "certifications": audit.certifications}
    counts |= {"log_entries": len(audit.entries), "checkpoints": len(audit.notes)}
    if options.json:
        result = {"schema": "pitr-audit/1", "ok": is_good, "key_id": key.id, **counts}
        lines = [json.dumps({**result, "findings": audit.findings, "findings_left_out": audit.left_out})]
    else:
        lines = [f"{one['severity']}: {one['subject']}: {one['message']}" for one in audit.findings]
        lines += [f"error: {audit.left_out} more findings are not shown"] if audit.left_out else []
        summary = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items())
        lines.append(f"{'good' if is_good else 'NOT good'}: {summary}; key {key.id}")
    sys.stdout.write("\n".join(lines) + "\n")
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
