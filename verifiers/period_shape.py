"""The shape of a period report: which fields there are, in the language of ``report_shape``.  Pure.

Reference: docs/audit.md, "A period"; docs/schema/period-report-v1.schema.json.
"""

from __future__ import annotations

from typing import Final

from verifiers.report_shape import parse_shape, render_statement_schema

PERIOD_TYPE: Final = "https://pitr.invalid/attestations/period-report/v1"
PERIOD_SCHEMA_VERSION: Final = 1

PERIOD_SHAPE: Final = """
subject{ backups[]{ name:name manifest_sha256:sha256 } }
identity{ report_id:uuid schema_version:=1 repository:repository_id created_at,period_start,period_end:time }
scope{ org,system_name:text system_identifier:system_identifier }
policy{ policy_id:name sha256:sha256 required_frequency_ms,rto_ms,rpo_ms?:number source:text }
result{ overall:PASSED|WARNED|FAILED open_findings:count limits[]:text }
runs{ planned,reported,passed,warned,failed,missed,abandoned,unfinished:count expected,pass_permille?:count }
recovery_time,data_loss{ measured,objective_missed:count min_ms,median_ms,p95_ms,max_ms?:count
  worst_report_id?:uuid }
reports[]{ series_seq:number report_id:uuid run_id,report_type:name scheduled_at?:time
  started_at,logged_at:time outcome:PASSED|WARNED|FAILED recovery_time_ms,data_loss_ms?:count
  rto_met,rpo_met?:bool report_sha256:sha256 certified_by[]:name log_entry:count }
not_run[]{ state:missed|abandoned run_id:name at:time scheduled_at?:time reason?:text log_entry:count }
unfinished[]{ run_id:name at:time scheduled_at?:time log_entry:count }
gaps[]{ report_type:name since,until:time allowed_ms:number }
findings[]{ report_id:uuid id:name severity:low|medium|high|critical status:open|closed|accepted
  description:text root_cause,owner,corrective_action?:text due_at?:time retest_report_id?:uuid }
backups{ full,incr,refused,bytes:count newest_stopped_at?:time listed[]{ backup:name kind:full|incr
  stopped_at:time size_bytes:count } }
deletions[]{ archive:name sequence:number at:time record_sha256:sha256 approved_by:key_id window_s:count
  backups[]:name wal_ranges,envelopes:count }
key_events[]{ at:time event:name detail:text }
host_events[]{ archive:name sequence:number at:time event:name message:text }
mapping[]{ framework,control,title,rule:name status:satisfied|partial|not-tested
  complete,partial,not_tested:count missing[]:name }
sample{ seed:sha256 rule:text picked[]{ series_seq:number report_id:uuid } }
people{ executed_by{ key_id:key_id name:text } }
tool{ product_version:text }
log{ log_origin:name tree_size:number root_hash:sha256 checkpoint:text }
"""
PERIOD: Final = parse_shape(PERIOD_SHAPE)


def render_period_schema() -> str:
    """Return the published schema's text."""
    return render_statement_schema(
        PERIOD_TYPE, PERIOD, "Period report: an in-toto Statement v1, the payload of a DSSE envelope"
    )
