"""The shape of a restore verification report: which fields there are, and what each may hold.  Pure.

One compact text says it; JSON Schema for everyone else is made from it (docs/schema/, by
``python -m cli.schema_page``).  The auditor's tool holds the same text, and a test compares the two.
Every field is always there: what was not measured is null, never left out, so that nothing can be
dropped unseen.  Reference: docs/audit.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Final

from pitr.errors import MalformedValue

STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
# No host has this name, now or later (RFC 6761): the project has no domain that it could promise to keep.
VERIFICATION_TYPE: Final = "https://pitr.invalid/attestations/restore-verification/v2"
# Read and checked as ever, and written no more.
VERIFICATION_TYPE_1: Final = "https://pitr.invalid/attestations/restore-verification/v1"
CERTIFICATION_TYPE: Final = "https://pitr.invalid/attestations/report-certification/v1"
TEST_RESULT_TYPE: Final = "https://in-toto.io/attestation/test-result/v0.1"
SCHEMA_VERSION: Final = 2
LIST_MAX: Final = 10_000
# Runs before this one: a year of weekly ones.
TREND_MAX: Final = 53

# What a text may be: its kind, its greatest length, and a pattern that the whole of it must match.
TYPES_TEXT: Final = r"""text 8000 [^\x00-\x08\x0b-\x1f\x7f]* name 300 [^\x00-\x1f\x7f]+ sha256 64 [0-9a-f]{64}
time 27 [0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z   repository_id 32 [0-9a-f]{32}
uuid 36 [0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}   timeline 8 [0-9A-F]{8}
lsn 17 (?:0|[1-9A-F][0-9A-F]{0,7})/(?:0|[1-9A-F][0-9A-F]{0,7})   key_id 16 [0-9a-f]{16}
check 80 [A-Z][A-Z0-9]{0,3}[0-9]{2,4}(?:\.[a-z0-9_-]{1,64})?   system_identifier 20 [1-9][0-9]{0,19}"""

# `name,name:type`; `name?` may be null; `name[]` is a list; `{ … }` an object; `a|b` one of them; `=2` is 2.
# `count` is an integer from 0, `number` from 1, `integer` any of 64 bits.  Version 1 ends before `trend`.
REPORT_SHAPE: Final = """subject{ backups[]{ name:name manifest_sha256:sha256 } wal[]{ timeline:timeline
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

CERTIFICATION_SHAPE: Final = """report_id:uuid report_sha256:sha256 series_seq:number certified_at:time
certified_by{ name,role,key:name } reviewed_by?{ name,role:name } statement:text corrective_actions[]:text"""

_WORDS: Final = TYPES_TEXT.split()
TYPES: Final = {
    kind: (pattern, int(chars_max))
    for kind, chars_max, pattern in zip(_WORDS[::3], _WORDS[1::3], _WORDS[2::3], strict=True)
}

Shape = dict[str, "tuple[str, object]"]
"""Field name to its suffix (``?``, ``[]`` or nothing) and its type's text or, for an object, its shape."""


def parse_shape(text: str) -> Shape:
    """Read a shape's text."""
    words = iter(text.split())
    shape = _fields(words)
    assert next(words, None) is None, "a brace too many"
    return shape


def _fields(words: Iterator[str]) -> Shape:
    shape: Shape = {}
    kind: object
    for word in words:
        if word == "}":
            break
        if word.endswith("{"):
            names, kind = word[:-1], _fields(words)
        else:
            names, _, kind = word.partition(":")
        suffix = next((end for end in ("[]", "?") if names.endswith(end)), "")
        shape.update((name, (suffix, kind)) for name in names.removesuffix(suffix).split(","))
    return shape


REPORT: Final = parse_shape(REPORT_SHAPE)
REPORT_1: Final = parse_shape(REPORT_SHAPE.partition("trend[]")[0].replace(":=2", ":=1"))
REPORTS: Final = {VERIFICATION_TYPE: REPORT, VERIFICATION_TYPE_1: REPORT_1}
CERTIFICATION: Final = parse_shape(CERTIFICATION_SHAPE)


def check_shape(value: object, shape: Shape, where: str = "") -> None:
    """Raise MalformedValue, naming the field, unless ``value`` has exactly the fields of ``shape``."""
    if not isinstance(value, Mapping):
        raise MalformedValue(f"report: {where or 'it'} must be an object")
    if set(value) != set(shape):
        odd = sorted(map(str, set(value) ^ set(shape)))[0]
        raise MalformedValue(f"report: {where}{odd[:80]} is " + ("missing" if odd in shape else "unknown"))
    for name, (suffix, kind) in shape.items():
        _check_field(value[name], suffix, kind, f"{where}{name}")


def _check_field(value: object, suffix: str, kind: object, where: str) -> None:
    if suffix == "?" and value is None:
        return
    if suffix == "[]":
        if not isinstance(value, (list, tuple)) or len(value) > LIST_MAX:
            raise MalformedValue(f"report: {where} must be a list of at most {LIST_MAX}")
        for at, one in enumerate(value):
            _check_field(one, "", kind, f"{where}.{at}")
    elif isinstance(kind, dict):
        check_shape(value, kind, f"{where}.")
    elif not _fits(value, str(kind)):
        raise MalformedValue(f"report: {where} must be {kind}: {str(value)[:80]!r}")


def _fits(value: object, kind: str) -> bool:
    if kind == "bool":
        return isinstance(value, bool)
    if kind in ("count", "number", "integer") or kind.startswith("="):
        least = {"count": 0, "number": 1}.get(kind, -(1 << 63))
        is_integer = isinstance(value, int) and not isinstance(value, bool) and least <= value < 1 << 63
        return is_integer and (not kind.startswith("=") or value == int(kind[1:]))
    if not isinstance(value, str):
        return False
    if kind not in TYPES:
        return value in kind.split("|")
    pattern, chars_max = TYPES[kind]
    return len(value) <= chars_max and re.fullmatch(pattern, value) is not None


def statement_schema(predicate_type: str, shape: Shape, title: str) -> dict[str, object]:
    """Return the JSON Schema (2020-12) of a statement whose predicate has ``shape``."""
    statement = {
        "_type": {"const": STATEMENT_TYPE},
        "subject": {
            "type": "array",
            "minItems": 1,
            "maxItems": LIST_MAX,
            "items": _object({"name": _typed("name"), "digest": _object({"sha256": _typed("sha256")})}),
        },
        "predicateType": {"const": predicate_type},
        "predicate": _schema_of(shape),
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": predicate_type,
        "title": title,
        **_object(statement),
    }


def _object(properties: dict[str, object]) -> dict[str, object]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _schema_of(shape: Shape) -> dict[str, object]:
    properties: dict[str, object] = {}
    for name, (suffix, kind) in shape.items():
        one = _schema_of(kind) if isinstance(kind, dict) else _typed(str(kind))
        if suffix == "[]":
            one = {"type": "array", "maxItems": LIST_MAX, "items": one}
        elif suffix == "?":
            one = {"anyOf": [one, {"type": "null"}]}
        properties[name] = one
    return _object(properties)


def _typed(kind: str) -> dict[str, object]:
    if kind == "bool":
        return {"type": "boolean"}
    if kind.startswith("="):
        return {"const": int(kind[1:])}
    if kind in ("count", "number", "integer"):
        least = {"count": 0, "number": 1}.get(kind, -(1 << 63))
        return {"type": "integer", "minimum": least, "maximum": (1 << 63) - 1}
    if kind not in TYPES:
        return {"enum": kind.split("|")}
    pattern, chars_max = TYPES[kind]
    return {"type": "string", "maxLength": chars_max, "pattern": f"^(?:{pattern})$"}


def render_schema(report_type: str = VERIFICATION_TYPE) -> str:
    """Return the published schema's text of a run's report of this type."""
    title = "Restore verification report: an in-toto Statement v1, the payload of a DSSE envelope"
    return render_statement_schema(report_type, REPORTS[report_type], title)


def render_statement_schema(predicate_type: str, shape: Shape, title: str) -> str:
    """Return a schema as it is published."""
    return json.dumps(statement_schema(predicate_type, shape, title), indent=1, sort_keys=False) + "\n"
