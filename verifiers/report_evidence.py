"""A report's findings and people, and what makes it evidence: its log, and how to check it.  Pure."""

from __future__ import annotations

from typing import Final

from verifiers.report_blocks import (
    Block,
    Commands,
    Fields,
    Heading,
    Items,
    Line,
    Pairs,
    Paragraph,
    Table,
    Value,
    listed,
)

_BY_HAND: Final = r"""sed 's/.*"payload":"\([^"]*\)".*/\1/' REPORT.json | openssl base64 -d -A > payload.json
sed 's/.*"sig":"\([^"]*\)".*/\1/' REPORT.json | openssl base64 -d -A > sig.bin
{ printf 'DSSEv1 28 application/vnd.in-toto+json %d ' "$(wc -c < payload.json)"; cat payload.json; } > pae.bin
openssl pkeyutl -verify -pubin -inkey verifier.pub.pem -rawin -in pae.bin -sigfile sig.bin
openssl dgst -sha256 payload.json"""
_HOW: Final = (
    "This page says nothing that the signed report does not say: pitr-audit compares them field by field, and"
    " the report with the log. With openssl alone, where REPORT.json is the report and verifier.pub.pem the"
    " verifier's public key, which you had from elsewhere:"
)
_THEN: Final = (
    "The digest is the one above, and the one that the log has for this report. The manifests of the backups"
    " that were verified have these SHA-256 digests:"
)


def evidence(fields: Fields) -> list[Block]:
    """Return the sections: what is to be mended, who stands for it, what it is evidence for, and why."""
    return [
        *_findings(fields),
        *_people(fields),
        *_mapping(fields),
        *_log(),
        *_by_hand(fields),
    ]


def _findings(fields: Fields) -> list[Block]:
    rows: list[list[Line]] = [
        [
            (Value(f"{path}.id", tone="strong"),),
            (Value(f"{path}.severity"), ", ", Value(f"{path}.status")),
            ("Found: ", Value(f"{path}.description"), ". Cause: ", Value(f"{path}.root_cause"), "."),
            (Value(f"{path}.corrective_action"),),
            (Value(f"{path}.owner"), ", due ", Value(f"{path}.due_at", "day")),
            (Value(f"{path}.retest_report_id"),),
        ]
        for path in fields.each("findings")
    ]
    if not rows:
        return [Heading("Findings"), Paragraph(("None.",))]
    columns = ["id", "severity", "finding", "corrective action", "owner", "retest"]
    return [Heading("Findings"), Table("What is to be mended", columns, rows, [3, 4, 9, 6, 4, 4])]


def _people(fields: Fields) -> list[Block]:
    took_part = [
        (Value(f"{path}.name"), ", ", Value(f"{path}.role")) for path in fields.each("people.participants")
    ]
    told = [Value(path) for path in fields.each("people.notified")]
    blocks: list[Block] = [
        Heading("People and certification"),
        Pairs(
            "Who did it",
            [
                (
                    "Carried out by",
                    (
                        Value("people.executed_by.name"),
                        ", key ",
                        Value("people.executed_by.key_id", tone="code"),
                    ),
                ),
                *(("Took part", line) for line in took_part),
                ("Was told", listed(told, "nobody is named")),
            ],
        ),
    ]
    if not fields.each("certifications"):
        return [*blocks, Paragraph(("No person has certified this report yet.",))]
    for path in fields.each("certifications"):
        actions = [Value(one) for one in fields.each(f"{path}.corrective_actions")]
        reviewed: Line = ("nobody else",)
        if fields[f"{path}.reviewed_by"] is not None:
            reviewed = (Value(f"{path}.reviewed_by.name"), ", ", Value(f"{path}.reviewed_by.role"))
        blocks.append(
            Pairs(
                "Certification",
                [
                    ("By", (Value(f"{path}.certified_by.name"), ", ", Value(f"{path}.certified_by.role"))),
                    ("At", (Value(f"{path}.certified_at", "time"),)),
                    ("Statement", (Value(f"{path}.statement"),)),
                    ("Reviewed by", reviewed),
                    ("Corrective actions", listed(actions)),
                    ("Key", (Value(f"{path}.certified_by.key", tone="code"),)),
                ],
            )
        )
    return blocks


def _mapping(fields: Fields) -> list[Block]:
    rows: list[list[Line]] = [
        [
            (Value(f"{path}.framework"),),
            (Value(f"{path}.control"),),
            (Value(f"{path}.status"),),
            listed([Value(one) for one in fields.each(f"{path}.fields")]),
        ]
        for path in fields.each("mapping")
    ]
    if not rows:
        return []
    columns = ["framework", "control", "status", "shown by these fields"]
    return [Heading("Controls"), Table("What this report is evidence for", columns, rows, [4, 3, 3, 8])]


def _log() -> list[Block]:
    return [
        Heading("Policy, log and program"),
        Pairs(
            "What proves that this report is not chosen among others",
            [
                ("Policy", (Value("policy.policy_id"), ", ", Value("policy.sha256", tone="code"))),
                ("Log", (Value("log.log_origin", tone="code"),)),
                (
                    "Announced before it ran",
                    ("entry ", Value("log.leaf_index"), " of the log, in a tree of ", Value("log.tree_size")),
                ),
                ("Root of the tree", (Value("log.root_hash", tone="code"),)),
                ("Report before this one", (Value("identity.previous_report_sha256", tone="code"),)),
                ("Report", (Value("identity.report_id", tone="code"),)),
                ("Digest of what was signed", (Value("payload_sha256", tone="code"),)),
                ("Program", (Value("tool.product_version"),)),
                ("Its configuration", (Value("tool.config_sha256", tone="code"),)),
                ("PostgreSQL's program", (Value("tool.pg_binaries_sha256", tone="code"),)),
            ],
        ),
    ]


def _by_hand(fields: Fields) -> list[Block]:
    manifests = [
        (Value(f"{path}.name"), " ", Value(f"{path}.manifest_sha256", tone="code"))
        for path in fields.each("subject.backups")
    ]
    return [
        Heading("How to check this by hand"),
        Paragraph((_HOW,)),
        Commands(_BY_HAND),
        Paragraph((_THEN,)),
        Items(manifests or [("none: no backup was come to",)]),
    ]
