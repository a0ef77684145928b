#!/usr/bin/env python3
"""pitr-audit: check a folder of restore verification reports with nothing but the verifier's public key.

Run it as: python3 -I -S pitr_audit.py --key verifier.pub.pem FOLDER (Python 3.11, no network, read-only).
It cannot tell that a verifier lied about what it saw, nor that a whole folder is an older one: give it a
report that you kept (--witness).  Exit code: 0 good, 1 findings, 2 wrong usage.  Reference: docs/audit.md
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
FILES_MAX, FINDINGS_MAX, LIST_MAX, FACT_MAX, TREND_MAX, TOP = 500_000, 1000, 10_000, 4000, 53, 2**63
IN_TOTO, OURS = "application/vnd.in-toto+json", "https://pitr.invalid/attestations/"
STATEMENT, TEST_RESULT = "https://in-toto.io/Statement/v1", "https://in-toto.io/attestation/test-result/v0.1"
VERIFICATION_1, VERIFICATION = OURS + "restore-verification/v1", OURS + "restore-verification/v2"
CERTIFICATION, PERIOD = OURS + "report-certification/v1", OURS + "period-report/v1"
INTENTS = {"verification-intended": "verification-ended", "drill-intended": "drill-ended"}
# A test is late from its frequency and this part of it on; an intent that is younger may still be running.
LATE_PART, RUNNING, TICK, ENDS = 7, timedelta(hours=24), timedelta(microseconds=1), ("-ended", "-missed")
# The shape of a report: the same texts as in verifiers/report_shape.py, which says what they mean.
TYPES_TEXT = r"""text 8000 [^\x00-\x08\x0b-\x1f\x7f]* name 300 [^\x00-\x1f\x7f]+ sha256 64 [0-9a-f]{64}
time 27 [0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z   repository_id 32 [0-9a-f]{32}
uuid 36 [0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}   timeline 8 [0-9A-F]{8}
lsn 17 (?:0|[1-9A-F][0-9A-F]{0,7})/(?:0|[1-9A-F][0-9A-F]{0,7})   key_id 16 [0-9a-f]{16}
check 80 [A-Z][A-Z0-9]{0,3}[0-9]{2,4}(?:\.[a-z0-9_-]{1,64})?   system_identifier 20 [1-9][0-9]{0,19}"""
REPORT_SHAPE = """subject{ backups[]{ name:name manifest_sha256:sha256 } wal[]{ timeline:timeline
  start_lsn,end_lsn:lsn index_sha256?:sha256 } }
identity{ report_id:uuid run_id:name schema_version:=2 series_seq:number previous_report_sha256?:sha256
  report_type:weekly_verification|monthly_drill|quarterly_drill|actual_recovery|scrub
  repository:repository_id created_at:time period_start,period_end?:time }
scope{ org,system_name:text system_identifier:system_identifier pg_version,asset_id,criticality_tier?:text
  databases,data_classes[]:name excluded[]{ item,reason:text } } policy{ policy_id:name sha256:sha256
  required_frequency_ms,rto_ms,rpo_ms,retention_ms?:number plan_document?{ id,version:text sha256:sha256 } }
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
  command_sha256:sha256 evidence_sha256?:sha256 started_at:time ms:count result:PASSED|WARNED|FAILED|SKIPPED }
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
trend[]{ series_seq:number report_type:name created_at:time overall:PASSED|WARNED|FAILED rto_ms,rpo_ms?:number
  recovery_time_ms,wal_replay_done_ms,data_loss_ms,bytes?:count } recoverability[]{ cause?:name
  state:restorable|gap start_lsn,end_lsn:lsn timeline:timeline regions[]:name from_at,to_at?:time }"""
CERTIFICATION_SHAPE = """report_id:uuid report_sha256:sha256 series_seq:number certified_at:time
certified_by{ name,role,key:name } reviewed_by?{ name,role:name } statement:text corrective_actions[]:text"""
TYPES = {kind: (int(most), text) for kind, most, text in zip(*[iter(TYPES_TEXT.split())] * 3, strict=True)}
INTEGERS = {"count": (0, TOP), "number": (1, TOP), "integer": (-TOP, TOP), "=1": (1, 2), "=2": (2, 3)}


class Refused(Exception):
    """Evidence that is not what it must be; the text says what is wrong."""


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
        scalar, total = int.from_bytes(signature[32:], "little"), (0, 1, 1, 0)
        k = int.from_bytes(hashlib.sha512(signature[:32] + self.raw + message).digest(), "little") % ORDER
        for table, number in ((BASE.table, scalar % ORDER), (self.table, k)):
            for at, row in enumerate(table):
                total = point_add(total, row[digit - 1]) if (digit := number >> 4 * at & 15) else total
        x, y, inverse = total[0], total[1], pow(total[2], -1, P)
        found = (y * inverse % P | (x * inverse % P & 1) << 255).to_bytes(32, "little")
        need(len(signature) == 64 and scalar < ORDER and found == signature[:32], "signature is wrong")


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
    for word in itertools.takewhile("}".__ne__, words):
        names, colon, kind = word.removesuffix("{").partition(":")
        suffix = re.search(r"(\[\]|\?)?$", names)[0]
        inner = kind if colon else parse_shape(words)
        shape.update((name, (suffix, inner)) for name in names.removesuffix(suffix).split(","))
    return shape


def fits(value, kind):
    if kind in INTEGERS:
        return type(value) is int and INTEGERS[kind][0] <= value < INTEGERS[kind][1]
    if kind == "bool" or type(value) is not str:
        return kind == type(value).__name__
    most, pattern = TYPES.get(kind, (99, kind))
    return len(value) <= most and re.fullmatch(pattern, value) is not None


def check_shape(value, shape, where=""):
    need(isinstance(value, dict) and set(value) == set(shape), f"{where}: a field is missing or unknown")
    for name, (suffix, kind) in shape.items():
        path, one = f"{where}.{name}".lstrip("."), value[name]
        need(suffix != "[]" or (isinstance(one, list) and len(one) <= LIST_MAX), f"{path}: no list, or long")
        for inner in one if suffix == "[]" else [] if suffix == "?" and one is None else [one]:
            if not (check_shape(inner, kind, path) if isinstance(kind, dict) else fits(inner, kind)):
                raise Refused(f"{path} is not {kind}: {str(inner)[:60]!r}")
    return True


def instant(text):
    need(fits(text, "time"), "a time is not as it must be")
    return datetime.fromisoformat(text)


TRIPS = (Refused, ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError)
BASE = Key((4 * pow(5, -1, P) % P).to_bytes(32, "little"), is_base=True)
LOGGED = """identity.series_seq identity.report_id identity.run_id result.overall scope.system_identifier
people.executed_by.key_id identity.repository identity.previous_report_sha256"""
TREND = """identity.series_seq identity.report_type identity.created_at policy.rto_ms policy.rpo_ms
result.overall data_loss.data_loss_ms timings.recovery_time_ms timings.wal_replay_done.ms timings.bytes"""
INTENDED = """report_type identity.report_type scheduled_at trigger.scheduled_at region source.region
system_identifier scope.system_identifier scenario_sha256 policy.plan_document.sha256"""
STRICT = re.compile("C(0[1-689]|1[02-4789]|2[01])|D(0[1-3]|11)")  # required of every run
SHAPES = {VERIFICATION: REPORT_SHAPE, CERTIFICATION: CERTIFICATION_SHAPE}
SHAPES["entry"] = "log,kind,run_id:name sequence:count at:time facts:dict"
SHAPES[VERIFICATION_1] = REPORT_SHAPE.partition("trend[]")[0].replace(":=2", ":=1")
SHAPES = {name: parse_shape(iter(text.split())) for name, text in SHAPES.items()}
ACTIVE = re.compile(r"</?(script|iframe|object|embed|link|img|form|base)\b|\s(on\w+|src|href|action)\s*=")
SHOWN = re.compile(r'<(\w+) data-f="([\w.]+)"(?: data-u="(\w+)")?[^<>]*>([^<]*)</\1>')
EMBEDDED = re.compile(r'<pre id="([\w-]+)">([^<]*)</pre>')


class Audit:
    """One run over a folder: it goes on after each fault, and collects all findings."""

    def __init__(self, folder, key, options):
        self.folder, self.key, self.options, self.reports, self.certifications = folder, key, options, 0, 0
        # The log's entries, the root of the tree after each, and the size of each checkpoint by its text.
        self.origin, self.entries, self.roots, self.notes = "", [], [b""], {}
        self.findings, self.left_out, self.used, self.series = [], 0, set(), {}

    def find(self, severity, subject, text):
        subject, text = (re.sub(r"[^ -~]", "?", str(one)[:400]) for one in (subject, text))
        self.left_out += severity != "note" and len(self.findings) >= FINDINGS_MAX
        if len(self.findings) < FINDINGS_MAX:
            self.findings.append({"severity": severity, "subject": subject, "message": text})

    def attempt(self, subject, step, *arguments):
        """Run a step on a subject; what it refuses, or trips over in hostile input, is a finding."""
        try:
            step(subject, *arguments)
        except TRIPS as error:
            self.find("error", subject, error if isinstance(error, Refused) else f"cannot be read: {error!r}")

    def take(self, name):
        need(name in self.names, "is missing")
        self.used.add(name)
        return f"{self.folder}/{name}"

    def open_statement(self, path, key, of=None, types=(VERIFICATION, VERIFICATION_1)):
        """Verify a DSSE envelope; return its predicate, the SHA-256 of its payload, and itself."""
        signed = parse_json(envelope := read_file(path, ENVELOPE_MAX))
        payload, sig = decode_base64(signed["payload"]), signed["signatures"][0]["sig"]
        wanted = signed | {"payloadType": IN_TOTO, "signatures": [{"keyid": key.id, "sig": sig}]}
        need(signed == wanted and len(signed) == 3, f"is no statement that key {key.id} signed")
        encoded = f"DSSEv1 {len(IN_TOTO)} {IN_TOTO} {len(payload)} ".encode() + payload
        key.verify(decode_base64(sig), encoded)
        statement = parse_json(payload)
        predicate, kind = statement.pop("predicate"), statement["predicateType"]
        if kind in SHAPES:
            check_shape(predicate, SHAPES[kind])
        subject = [{"name": one, "digest": {"sha256": sha}} for one, sha in of or self.subjects(predicate)]
        expected = {"_type": STATEMENT, "subject": subject, "predicateType": kind}
        is_such = len(payload) <= STATEMENT_MAX and kind in types
        need(is_such and statement == expected, "is a statement of another type or subject")
        return predicate, hashlib.sha256(payload).hexdigest(), envelope

    def value_at(self, value, path):
        for name in path.split("."):
            value = None if value is None else value[int(name) if isinstance(value, list) else name]
        return value

    def subjects(self, report):
        named = [(one["name"], one["manifest_sha256"]) for one in report["subject"]["backups"]]
        return named or [("policy/" + report["policy"]["policy_id"], report["policy"]["sha256"])]

    def run(self):
        self.names = {item.name for item in os.scandir(self.folder)}
        need(len(self.names) <= FILES_MAX, f"has more than {FILES_MAX} files")
        self.attempt("log.jsonl", self.read_log)
        if not self.findings:
            self.attempt("checkpoints.jsonl", self.check_checkpoints)
            self.attempt("log.jsonl", self.check_entries)
            for path in self.options.witness:
                self.attempt(path, self.check_witness)
            for name in sorted(self.names - self.used):
                severity = "error" if re.search(r"\.(json|jsonl|html)$", name) else "note"
                self.find(severity, name, "is in the folder, and the log does not tell of it")

    def read_lines(self, name):
        *lines, rest = read_file(self.take(name), LOG_MAX).split(b"\n")
        need(lines and not rest, "has no line, or its last one is cut off")
        return lines

    def read_log(self, name):
        full = []
        for number, line in enumerate(self.read_lines(name)):
            check_shape(entry := parse_json(line), SHAPES["entry"])
            need(entry["sequence"] == number, f"line {number + 1} is not entry {number}")
            self.origin = self.origin or entry["log"]
            is_ours = re.fullmatch(rf"pitr/[0-9a-f]{{32}}/{self.key.id}", entry["log"])
            need(is_ours and entry["log"] == self.origin, f"entry {number} is of another log or key")
            is_later = instant(entry["at"]) and (not number or self.entries[-1]["at"] <= entry["at"])
            need(is_later, f"entry {number} is older than the one before")
            # Small facts alone: an observation may hold a thousand digests that nobody asks for.
            entry["facts"] = {name: one for name, one in entry["facts"].items() if len(str(one)) <= FACT_MAX}
            entry["leaf"] = root = hashlib.sha256(b"\x00" + line).digest()
            self.entries.append(entry)
            for _ in range((number + 1 & -number - 1).bit_length() - 1):
                root = self.node(full.pop(), root)
            full.append(root)
            self.roots += [*itertools.accumulate(full[::-1], lambda right, left: self.node(left, right))][-1:]

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

    def check_checkpoints(self, name):
        sizes = [self.checkpoint(parse_json(line)) for line in self.read_lines(name)]
        need(sizes == sorted(set(sizes)), "its checkpoints are not in their order")
        need(sizes[-1:] == [len(self.entries)], "no checkpoint covers the newest entry of the log")

    def check_entries(self, name):
        """Every intent has an outcome, and every outcome an intent before it; the host's past stays."""
        runs, told, _ = state = {}, {}, {}
        for entry in self.entries:
            self.attempt(f"log entry {entry['sequence']}", self.check_entry, entry, *state)
        for entry in filter(None, runs.values()):
            age = instant(self.entries[-1]["at"]) - instant(entry["at"])
            severity, subject = "note" if age < RUNNING else "warning", f"log entry {entry['sequence']}"
            self.find(severity, subject, f"run {entry['run_id']} has no outcome")
        for report_id, (entry, *certified) in told.items():
            stem = f"{self.fact(entry, 'series_seq', 'number'):08d}-{report_id}"
            self.attempt(f"{stem}.json", self.check_report, entry, certified)
        self.reports = len(told)
        if not told:
            self.find("warning", name, f"tells of no report since it began: {self.entries[0]['at']}")
        for system, series in self.series.items():
            self.check_cadence(system, [place for place in series if place[4]])

    def check_entry(self, subject, entry, runs, told, seen):
        kind, run, report_id = entry["kind"], entry["run_id"], (facts := entry["facts"]).get("report_id")
        if kind in INTENTS:
            need(run not in runs, f"run {run} was intended twice")
            runs[run] = entry
        elif kind in INTENTS.values():
            intent, runs[run] = runs.get(run), None
            if report_id is None:
                self.find("warning", subject, f"run {run} was abandoned: {facts.get('reason')}")
            else:
                told.setdefault(self.fact(entry, "report_id", "uuid"), [entry])
            need(intent and INTENTS[intent["kind"]] == kind, f"run {run} ended twice, or was never intended")
        elif kind == "report-certified":
            need(report_id in told, f"report {report_id} was certified before it was made")
            told[report_id].append(entry)
        elif kind.endswith("-missed"):
            self.find("warning", subject, f"a run was missed: {facts.get('reason')}")
        elif kind == "period-report":
            self.attempt(f"period-{report_id}.json", self.check_period, entry)
        for name in [name for name in facts if kind == "observed" and name.endswith("_sequence")]:
            now = (facts[name] or 0, facts.get(name.replace("_sequence", "_sha256")))
            last, seen[place] = seen.get(place := (facts.get("archive"), name), now), now
            need(now[0] > last[0] or now == last, f"the host rewrote what {subject} saw: {name}")

    def check_report(self, name, entry, certified):
        stem, number = name.removesuffix(".json"), self.fact(entry, "series_seq", "number")
        facts, digest_told = entry["facts"], self.fact(entry, "report_sha256", "sha256")
        series = self.series.setdefault(self.fact(entry, "system_identifier", "system_identifier"), [])
        before = series[-1] if series else (0, None)
        # It takes its place also when it is bad: one bad report is not a finding for each later one.
        series.append((number, digest_told, None, None, None))
        need(number == before[0] + 1, f"is number {number}, and {before[0] + 1} comes next")
        report, digest, envelope = self.open_statement(self.take(name), self.key)
        overall, said = report["result"]["overall"], [self.value_at(report, one) for one in LOGGED.split()]
        told = [number, facts["report_id"], entry["run_id"], facts["outcome"], facts["system_identifier"]]
        told += [self.key.id, self.origin.split("/")[1], before[1], digest_told]
        need([*said, digest] == told, "is not the report that the log tells of")
        self.check_verdicts(report)
        self.check_anchor(report, entry)
        policy, bad = report["policy"], [one[0] for one in series[:-1] if not one[4]]
        row = {one.partition(".")[2].replace(".", "_"): self.value_at(report, one) for one in TREND.split()}
        series[-1] = (number, digest, instant(report["trigger"]["started_at"]), policy, row)
        known = [place[4] for place in series[-TREND_MAX - 1 : -1] if place[4]]
        told = [one for one in report.get("trend", known) if one["series_seq"] not in bad]
        if told != known:
            need(all(one in known for one in told), "its trend is not what the reports before it say")
            self.find("warning", name, "its trend leaves out reports, or is not in their order")
        if overall != "PASSED":
            self.find("note", name, f"the verification {overall}")
        if report["result"]["rpo_met"] is not None and report["request"]["kind"] != "latest":
            self.find("note", name, "its rpo_met is of a moment in the past, which measures no data loss")
        if not certified:
            severity = "warning" if self.options.require_certification else "note"
            self.find(severity, name, "no person has certified it")
        self.attempt(f"{stem}.test-result.json", self.check_test_result, report, digest, entry)
        shown = [("envelope", None, envelope)]
        for at, one in enumerate(certified):
            name = f"{stem}.certification{f'-{at + 1}' if at else ''}.json"
            self.attempt(name, self.check_certification, one, report, digest, shown)
        self.attempt(f"{stem}.html", self.check_page, report, digest, shown, [entry, *certified][-1])

    def check_period(self, name, entry):
        """A period report is of all that the log told of its time and cluster, up to its checkpoint."""
        report, digest, envelope = self.open_statement(self.take(name), self.key, None, [PERIOD])
        begin, end = report["identity"]["period_start"], report["identity"]["period_end"]
        log, system = report["log"], report["scope"]["system_identifier"]
        told, size = [entry["facts"]["report_sha256"], log["tree_size"]], self.checkpoint(log["checkpoint"])
        is_told = [digest, size] == told and log["root_hash"] == self.roots[size].hex()
        need(is_told and size <= entry["sequence"], "is not the report that the log tells of")
        told = [one for one in self.entries[:size] if begin <= one["at"] < end and one["kind"].endswith(ENDS)]
        told = [one for one in told if one["facts"].get("system_identifier", system) == system]
        told = {one["sequence"]: one["facts"].get("report_sha256") for one in told}
        runs = {one["log_entry"]: one.get("report_sha256") for one in report["reports"] + report["not_run"]}
        need(runs == told, "does not list just the runs that the log tells of")
        self.check_page(f"{name[:-4]}html", report, digest, [("envelope", None, envelope)], entry)

    def check_verdicts(self, report):
        said, checks, policy = report["result"], report["checks"], report["policy"]
        required = {check["result"] for check in checks if check["required"] or STRICT.fullmatch(check["id"])}
        overall = "PASSED" if required == {"PASSED"} else "WARNED"
        overall = "FAILED" if any(check["result"] == "FAILED" for check in checks) else overall
        need(said["overall"] == overall, f"says {said['overall']}, and its checks say {overall}")
        for name, path in (("rto", "timings.recovery_time_ms"), ("rpo", "data_loss.data_loss_ms")):
            measured, objective = self.value_at(report, path), policy[f"{name}_ms"]
            met = None if measured is None or objective is None else measured <= objective
            need(said[f"{name}_met"] is met, f"says {name}_met {said[f'{name}_met']}; its figures say {met}")
        explained = {one["id"] for one in checks if (one["result"] == "PASSED") != bool(one["reason"])}
        need(len(explained) == len(checks), "has a check twice, or without a reason, or with one too many")

    def node(self, left, right):
        return hashlib.sha256(b"\x01" + left + right).digest()

    def proven_root(self, index, size, leaf, proof):
        """Return the root that an inclusion proof leads to: RFC 6962 §2.1.1, from its end."""
        need(bool(proof) == (size > 1), "inclusion proof is too short, or too long")
        if size == 1:
            return leaf
        left = 1 << (size - 1).bit_length() - 1
        if index < left:
            return self.node(self.proven_root(index, left, leaf, proof[:-1]), proof[-1])
        return self.node(proof[-1], self.proven_root(index - left, size - left, leaf, proof[:-1]))

    def check_anchor(self, report, ended):
        """The intent was logged before the run, under a checkpoint that was signed before the outcome."""
        log, trigger, sampling = report["log"], report["trigger"], report["trigger"]["sampling"]
        index, size, note = log["leaf_index"], log["tree_size"], log["prev_checkpoint"]
        is_placed = index == trigger["intent_log_index"] and index < size <= ended["sequence"]
        need(is_placed and log["log_origin"] == self.origin, "its place in the log is wrong")
        intent, root = self.entries[index], self.roots[size]
        need(intent["kind"] in INTENTS and intent["run_id"] == ended["run_id"], "not the intent of its run")
        is_covered = self.checkpoint(log["checkpoint"]) == size and log["root_hash"] == root.hex()
        is_older = index == 0 if note is None else self.checkpoint(note) <= index
        need(is_covered and is_older, "its checkpoint or the one before is not of its place in the log")
        proof = [*map(bytes.fromhex, log["inclusion_proof"])]
        need(self.proven_root(index, size, intent["leaf"], proof) == root, "inclusion proof leads elsewhere")
        facts, target = intent["facts"], report["request"]["value"] or report["request"]["kind"]
        for one, at in zip(*[iter(INTENDED.split())] * 2, strict=True):
            need(one not in facts or facts[one] == self.value_at(report, at), f"its intent has another {one}")
        need({*facts.get("checks", "").split()} <= {one["id"] for one in report["checks"]}, "lacks a check")
        times = [intent["at"], trigger["started_at"], report["identity"]["created_at"], ended["at"]]
        need(times == sorted(times), "its times are not in order: intended, started, made, logged")
        committed, seed = facts.get("seed_sha256"), sampling["seed"]
        found = None if seed is None else hashlib.sha256(bytes.fromhex(seed)).hexdigest()
        is_told = (sampling["method"] == "random") == (seed is not None)
        need(is_told and found == committed == sampling["seed_sha256"], "its seed is not the committed one")
        # Some intents of version 1 do not say what the moment was drawn from.
        draws = seed is not None and ("stretches" in facts or report["identity"]["schema_version"] > 1)
        wanted = self.drawn(seed, facts.get("stretches") or "") if draws else facts.get("target") or "latest"
        need(target == wanted, f"recovered to {target}; {wanted} was intended, or drawn")

    def drawn(self, seed, stretches):
        """Return the moment that a seed draws from stretches of time: docs/verify.md, "A random moment"."""
        spans = [[*map(instant, one.split("/"))] for one in stretches.split(";")]
        number = hashlib.sha256(f"pitr/v1/random-target\0{seed}\0{stretches}".encode()).digest()[:8]
        number = int.from_bytes(number, "big") % sum((end - start) // TICK + 1 for start, end in spans)
        while (at := spans[0][0] + number * TICK) > spans[0][1]:
            number -= (spans[0][1] - spans[0][0]) // TICK + 1
            spans.pop(0)
        return f"{at.replace(tzinfo=None).isoformat()}Z"

    def check_test_result(self, name, report, digest, entry):
        said, _, signed = self.open_statement(self.take(name), self.key, self.subjects(report), [TEST_RESULT])
        is_told = hashlib.sha256(signed).hexdigest() == self.fact(entry, "test_result_sha256", "sha256")
        need(is_told, "is not the test result that was logged")
        policy, checks, report_id = report["policy"], report["checks"], report["identity"]["report_id"]
        of = {"passedTests": ["PASSED"], "warnedTests": ["WARNED", "SKIPPED"], "failedTests": ["FAILED"]}
        expected = {name: [one["id"] for one in checks if one["result"] in of[name]] for name in of}
        named = [("policy/" + policy["policy_id"], policy["sha256"]), ("report/" + report_id, digest)]
        expected["configuration"] = [{"name": one, "digest": {"sha256": sha256}} for one, sha256 in named]
        expected["result"] = report["result"]["overall"]
        need(said == expected, "does not follow from the report")

    def check_certification(self, name, entry, report, digest, shown):
        text, trusted = self.fact(entry, "key", "name"), [key.raw for key in self.options.certifiers]
        key = Key(base64.urlsafe_b64decode(text.removeprefix("ed25519:") + "="))
        need(key.text == text and key.raw != self.key.raw, "is not signed by a person's own key")
        need(not trusted or key.raw in trusted, "is signed by a person who is not trusted here")
        about = [("report/" + report["identity"]["report_id"], digest)]
        words, found, envelope = self.open_statement(self.take(name), key, about, [CERTIFICATION])
        by, of, facts = words["certified_by"], report["identity"], entry["facts"]
        said = [found, words["report_sha256"], words["report_id"], words["series_seq"], *by.values()]
        told = [facts["certification_sha256"], digest, of["report_id"], of["series_seq"], *map(facts.get, by)]
        need(said == told and facts["report_sha256"] == digest, "is another one than was logged")
        times = [of["created_at"], words["certified_at"], entry["at"]]
        need(times == sorted(times), "its times are not in order: made, certified, logged")
        self.certifications += 1
        shown.append((f"certification-{len(shown) - 1}", words, envelope))

    def shown_text(self, value, unit):
        if value is None or type(value) is bool:
            return {None: "–", True: "yes", False: "no"}[value]
        if unit in ("day", "time"):
            return value[:10] if unit == "day" else f"{value[:10]} {value[11:19]} UTC"
        if unit in ("ms", "took"):
            parts = value // 3_600_000, value // 60_000 % 60, value // 1000 % 60, value % 1000
            words = "{}:{:02d}:{:02d}.{:03d}" if unit == "ms" else "{} h {} min {}.{:03d} s"
            return re.sub(r"^0 h (0 min )?| 0\.000 s$|\.000(?= s$)", "", words.format(*parts))
        return f"{value:,}" if unit == "count" else str(value).replace("_", " " if unit == "words" else "_")

    def check_page(self, name, report, digest, embedded, entry):
        page = (content := read_file(self.take(name), HTML_MAX)).decode()
        told = self.fact(entry, "html_sha256", "sha256")
        need(hashlib.sha256(content).hexdigest() == told, "is not the page that was logged")
        tags, shown = "".join(re.findall(r"<[^<>]*>", page)).lower(), SHOWN.findall(page)
        fields = {**report, "payload_sha256": digest, "certifications": [one[1] for one in embedded[1:]]}
        need(not ACTIVE.search(tags), "has something active in it")
        need(len(shown) == tags.count("data-f"), "shows a value in a way that it must not")
        for _, path, unit, text in shown:
            if (said := html.unescape(text)) != (true := self.shown_text(self.value_at(fields, path), unit)):
                raise Refused(f"shows {path} as {said[:80]!r}; the report says {true[:80]!r}")
        need("result.overall" in [path for _, path, _, _ in shown], "does not show the verdict")
        found = [(one, html.unescape(text).encode()) for one, text in EMBEDDED.findall(page)]
        need([(one, body) for one, _, body in embedded] == found, "does not embed what was signed")

    def check_cadence(self, system, series):
        for policy_id in sorted({place[3]["policy_id"] for place in series}):
            subject = f"cluster {system}: {policy_id}"
            mine = [place for place in series if place[3]["policy_id"] == policy_id]
            now = (None, None, self.options.now, None, None)
            for (_, _, since, policy, _), (number, _, started, _, _) in itertools.pairwise([*mine, now]):
                gap, due_ms = (started - since) // timedelta(milliseconds=1), policy["required_frequency_ms"]
                if due_ms is not None and gap > due_ms + due_ms // LATE_PART:
                    text = f"{gap / 864e5:.1f} days from {since:%Y-%m-%d} to report {number or '(none)'}"
                    self.find("warning", subject, f"{text}; allowed: {due_ms / 864e5:.1f}")

    def check_witness(self, path):
        """An earlier report, or a checkpoint, that the auditor kept: this log must go on from it."""
        content = read_file(path, ENVELOPE_MAX)
        if content.startswith(b"{"):
            report, digest, _ = self.open_statement(path, self.key)
            told = [entry["facts"].get("report_sha256") for entry in self.entries]
            need(digest in told, "this report was kept, and the log does not tell of it")
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
        (audit := Audit(path := options.folder, key, options)).run()
    except TRIPS as error:
        sys.stderr.write(f"pitr-audit: {path}: {error}\n")
        return 2
    is_good = not audit.left_out and all(one["severity"] == "note" for one in audit.findings)
    counts = {"reports": audit.reports, "certifications": audit.certifications}
    counts |= {"log_entries": len(audit.entries), "checkpoints": len(audit.notes)}
    lines = [f"{one['severity']}: {one['subject']}: {one['message']}" for one in audit.findings]
    lines += [f"error: {audit.left_out} more findings are not shown"] if audit.left_out else []
    summary = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items())
    lines.append(f"{'good' if is_good else 'NOT good'}: {summary}; key {key.id}")
    result = {"schema": "pitr-audit/1", "ok": is_good, "key_id": key.id, **counts}
    result |= {"findings": audit.findings, "findings_left_out": audit.left_out}
    sys.stdout.write((json.dumps(result) if options.json else "\n".join(lines)) + "\n")
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
