"""A report's source and target, and what was lost meanwhile.  Pure."""

from __future__ import annotations

from verifiers.report_blocks import (
    Block,
    Fields,
    Heading,
    Line,
    Pairs,
    Paragraph,
    Table,
    Value,
    listed,
)


def places(fields: Fields) -> list[Block]:
    """Return the sections: from where, to where, data loss, service, and what else was compared."""
    return [
        *_source(fields),
        *_target(),
        *_data_loss(),
        *_degradation(fields),
        *_kafka(fields),
        *_ransomware(fields),
    ]


def _source(fields: Fields) -> list[Block]:
    encryption: list[tuple[str, Line]] = [("Encryption", ("not looked at",))]
    if fields["source.encryption"] is not None:
        keys = [Value(path, tone="code") for path in fields.each("source.encryption.key_ids")]
        encryption = [
            ("Encryption", (Value("source.encryption.suite"),)),
            ("Sealed with keys", listed(keys)),
            ("Each object opened with its key", (Value("source.encryption.commitment_ok"),)),
        ]
    signature: Line = ("not looked at",)
    if fields["source.manifest_signature"] is not None:
        signature = (
            "by ",
            Value("source.manifest_signature.key_id", tone="code"),
            ", valid: ",
            Value("source.manifest_signature.is_valid"),
        )
    regions: list[list[Line]] = [
        [
            (Value(f"{path}.name"),),
            (Value(f"{path}.is_used"),),
            (Value(f"{path}.object_lock_mode"),),
            (Value(f"{path}.min_lock_until", "time"),),
        ]
        for path in fields.each("source.regions")
    ]
    chain = [Value(path) for path in fields.each("source.chain")]
    return [
        Heading("Source and encryption"),
        Pairs(
            "What was restored",
            [
                ("Backup", (Value("source.backup_id"), " (", Value("source.kind"), ")")),
                ("Built on", listed(chain, "no other backup")),
                ("Taken", (Value("source.taken_at", "time"), " by ", Value("source.taken_by"))),
                ("Read from region", (Value("source.region"),)),
                ("Checksum in the store", (Value("source.store_checksum"),)),
                ("Manifest signed", signature),
                *encryption,
            ],
        ),
        Table("Regions", ["region", "read", "lock", "locked until"], regions, [4, 2, 4, 5]),
    ]


def _target() -> list[Block]:
    apart: list[list[Line]] = [
        [
            (name,),
            (Value(f"target.segregation.{name}.is_distinct"),),
            (Value(f"target.segregation.{name}.shown_by"),),
        ]
        for name in ("account", "network", "credentials")
    ]
    return [
        Heading("Where it was restored, and kept apart"),
        Pairs(
            "The scratch place",
            [
                ("Place", (Value("target.environment_id"), " on host ", Value("target.host"))),
                ("PostgreSQL there", (Value("target.pg_binary_version"),)),
                ("Wiped afterwards", (Value("target.wiped_after"), ": ", Value("target.wiped_proof"))),
            ],
        ),
        Table(
            "Distinct from the source (– is: not known)", ["what", "distinct", "shown by"], apart, [3, 2, 10]
        ),
    ]


def _commit(path: str) -> Line:
    return (
        Value(f"{path}.time", "time"),
        ", LSN ",
        Value(f"{path}.lsn"),
        ", transaction ",
        Value(f"{path}.xid"),
        ", mark ",
        Value(f"{path}.marker"),
    )


def _data_loss() -> list[Block]:
    return [
        Heading("Data loss"),
        Pairs(
            "What was committed, and what is there",
            [
                ("Last commit of the source", _commit("data_loss.last_source_commit")),
                ("Last commit recovered", _commit("data_loss.last_recovered")),
                ("Lost", (Value("data_loss.data_loss_ms", "took"), " in time")),
                ("Transactions lost", (Value("data_loss.data_loss_tx", "count"),)),
                ("Bytes of WAL missing", (Value("data_loss.lsn_gap_bytes", "count"),)),
                ("Clocks differ by", (Value("data_loss.clock_skew_ms"), " ms")),
                ("How it was measured", (Value("data_loss.method"),)),
            ],
        ),
    ]


def _degradation(fields: Fields) -> list[Block]:
    if fields["degradation"] is None:
        return [
            Heading("Service during recovery"),
            Paragraph(("Not measured in this run: no clients ran against it.",)),
        ]
    service, errors = "degradation.service_degradation", "degradation.error_rate"
    latency: list[list[Line]] = [
        [
            (words,),
            *((Value(f"{service}.latency_us_{name}.{part}", "count"),) for part in ("p50", "p95", "p99")),
        ]
        for name, words in (("before", "before"), ("during", "during"), ("after", "after"))
    ]
    kinds: list[list[Line]] = [
        [(Value(f"{path}.class"),), (Value(f"{path}.count", "count"),)]
        for path in fields.each(f"{errors}.errors")
    ]
    return [
        Heading("Service during recovery"),
        Pairs(
            "What clients saw",
            [
                ("Measured over", (Value(f"{service}.window_ms", "took"),)),
                ("Read-only for", (Value(f"{service}.read_only_ms", "took"),)),
                ("Throughput kept", (Value(f"{service}.throughput_permille"), " of 1000")),
                (
                    "Requests",
                    (Value(f"{errors}.requests", "count"), " of ", Value(f"{errors}.clients"), " clients"),
                ),
            ],
            abreast=2,
        ),
        Table("Latency in microseconds", ["", "median", "95 %", "99 %"], latency, [4, 3, 3, 3]),
        *([Table("Errors", ["kind", "count"], kinds, [8, 3])] if kinds else []),
    ]


def _kafka(fields: Fields) -> list[Block]:
    if fields["kafka"] is None:
        return []
    names = ("topic", "partition", "offset_at_target", "high_watermark", "duplicates", "missing", "result")
    rows: list[list[Line]] = [
        [(Value(f"{path}.{name}"),) for name in names] for path in fields.each("kafka.partitions")
    ]
    columns = [name.replace("_", " ") for name in names]
    return [
        Heading("Kafka"),
        Table("Offsets of each partition at the target", columns, rows, [4, 2, 3, 3, 2, 2, 4]),
    ]


def _ransomware(fields: Fields) -> list[Block]:
    if fields["ransomware"] is None:
        return []
    names = ("name", "value", "baseline", "threshold")
    rows: list[list[Line]] = [
        [(Value(f"{path}.{name}"),) for name in names] for path in fields.each("ransomware.indicators")
    ]
    return [
        Heading("Signs of ransomware"),
        Table("What was looked for", names, rows, [4, 3, 3, 3]),
        Paragraph(("Last point without any: ", Value("ransomware.last_clean_point"), ".")),
    ]
