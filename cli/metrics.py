"""Metrics for Prometheus, made from one snapshot at each scrape, so that they agree with each other.

Loopback only: there is no authentication.  docs/metrics.md lists the names; a test compares them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cli.snapshot import DaemonSnapshot


def _forecast(snapshot: DaemonSnapshot, figure: str) -> float | None:
    found = None if snapshot.forecast is None else snapshot.forecast[figure]
    return float(found) if isinstance(found, (int, float)) else None


# Name, help; the value is the snapshot's figure of the same place.
_GAUGES: tuple[tuple[str, str, Callable[[DaemonSnapshot], float | None]], ...] = (
    ("pitr_rpo_seconds", "Age of the oldest WAL that is not at quorum.", lambda s: s.rpo_s),
    ("pitr_wal_streaming", "1 while WAL is streamed from the server.", lambda s: float(s.is_streaming)),
    (
        "pitr_wal_received_lsn_bytes",
        "End of the WAL that was received, as bytes from 0/0.",
        lambda s: None if s.received_lsn is None else s.received_lsn.offset,
    ),
    (
        "pitr_wal_shipped_lsn_bytes",
        "End of the WAL that is sealed in the spool, as bytes from 0/0.",
        lambda s: None if s.shipped_lsn is None else s.shipped_lsn.offset,
    ),
    (
        "pitr_wal_durable_lsn_bytes",
        "End of the WAL that is at quorum, as bytes from 0/0.",
        lambda s: None if s.durable_lsn is None else s.durable_lsn.offset,
    ),
    ("pitr_wal_lag_bytes", "WAL that the server has and that is not at quorum.", lambda s: s.lag_bytes),
    ("pitr_wal_backlog_bytes", "WAL received and not yet at quorum.", lambda s: s.backlog_bytes),
    ("pitr_spool_bytes", "Bytes in the spool.", lambda s: s.spool_bytes),
    ("pitr_slot_retained_bytes", "WAL that the slot keeps on the server.", lambda s: s.slot_retained_bytes),
    (
        "pitr_wal_disk_free_bytes",
        "Free space on the disk of the server's pg_wal.",
        lambda s: None if s.wal_disk is None else s.wal_disk.free_bytes,
    ),
    (
        "pitr_wal_directory_bytes",
        "Size of the server's pg_wal.",
        lambda s: None if s.wal_disk is None else s.wal_disk.wal_directory_bytes,
    ),
    (
        "pitr_wal_disk_full_seconds",
        "When the disk of pg_wal will be full of WAL that the slot keeps.",
        lambda s: None if s.wal_disk is None else s.wal_disk.full_in_s,
    ),
    (
        "pitr_slot_lost_seconds",
        "When the slot will have reached max_slot_wal_keep_size.",
        lambda s: None if s.wal_disk is None else s.wal_disk.slot_lost_in_s,
    ),
    ("pitr_head_age_seconds", "Age of the last signed end of the archive.", lambda s: s.head_age_s),
    (
        "pitr_synchronous",
        "1 while commits on the server wait for this daemon.",
        lambda s: float(s.protection.is_synchronous),
    ),
    (
        "pitr_protection_level",
        "What acknowledged commits are worth: 0 the quorum, 1 one region, 2 this host's disk, 3 released.",
        lambda s: float(s.protection.level),
    ),
    (
        "pitr_events_waiting",
        "Signed events that wait for the regions.",
        lambda s: float(s.protection.events_waiting),
    ),
    (
        "pitr_puts_cost_per_month",
        "Forecast of what a month of puts costs, by put_price.",
        lambda s: s.protection.puts_cost_per_month,
    ),
    (
        "pitr_catalogue_complete",
        "1 if the catalogue holds everything, 0 while it is made anew.",
        lambda s: float(s.is_catalogue_complete),
    ),
    (
        "pitr_recovery_forecast_seconds",
        "How long recovery to the latest moment is forecast to take.",
        lambda s: _forecast(s, "seconds"),
    ),
    (
        "pitr_recovery_forecast_error_ratio",
        "The relative error of that forecast: the median of forecasts of measured recoveries.",
        lambda s: _forecast(s, "error"),
    ),
    (
        "pitr_backup_last_completed_timestamp_seconds",
        "When the last complete base backup ended.",
        lambda s: None if s.backup.last_completed_at is None else s.backup.last_completed_at.timestamp(),
    ),
    ("pitr_backup_last_duration_seconds", "How long it took.", lambda s: s.backup.last_duration_s),
    (
        "pitr_backup_last_success",
        "1 if the last attempt at a base backup succeeded, else 0.",
        lambda s: None if s.backup.last_result is None else float(s.backup.last_result == "done"),
    ),
    (
        "pitr_backup_bad_pages",
        "Pages that the last full backup found bad, and those that others found since.",
        lambda s: float(s.backup.bad_pages),
    ),
    (
        "pitr_backup_running",
        "1 while a base backup is taken.",
        lambda s: float(s.backup.running_step is not None),
    ),
    (
        "pitr_backup_paused",
        "1 while a base backup reads nothing for the server's sake.",
        lambda s: float(s.backup.running_paused is not None),
    ),
    (
        "pitr_fence_age_seconds",
        "Age of the last fence between Kafka and the database.",
        lambda s: None if s.fences is None else s.fences.age_s,
    ),
    (
        "pitr_fence_known",
        "1 if the last fence knows Kafka's offsets, 0 if it only marks that it does not.",
        lambda s: None if s.fences is None or s.fences.number is None else float(s.fences.unknown is None),
    ),
    (
        "pitr_fence_duration_seconds",
        "How long the last fence took.",
        lambda s: None if s.fences is None else s.fences.took_s,
    ),
    (
        "pitr_fences_waiting",
        "Fences that wait for the regions.",
        lambda s: None if s.fences is None else float(s.fences.waiting),
    ),
    (
        "pitr_fence_clock_skew_seconds",
        "The server's clock against this host's, as the last fence saw them.",
        lambda s: None if s.fences is None else s.fences.skew_s,
    ),
    (
        "pitr_mirror_pairs_age_seconds",
        "Since the mirror's pairs of offsets were last read.",
        lambda s: None if s.fences is None or s.fences.mirror is None else s.fences.mirror.age_s,
    ),
    ("pitr_start_timestamp_seconds", "When the daemon started.", lambda s: s.started_at.timestamp()),
)
_REGION_GAUGES: tuple[tuple[str, str, int], ...] = (
    ("pitr_region_rpo_seconds", "Age of the oldest thing that the region lacks.", 0),
    ("pitr_region_healthy", "1 if the region's last answers were good.", 1),
    ("pitr_region_repairs_pending", "Objects that wait to be copied to the region.", 2),
    ("pitr_region_repairs_stuck", "Objects that cannot be copied until a person acts.", 3),
    ("pitr_region_put_latency_seconds", "How long a put takes there, averaged.", 4),
    ("pitr_region_copies_bad", "Copies there that are known to be damaged or to be other bytes.", 5),
)
_COUNTERS: tuple[tuple[str, str, Callable[[DaemonSnapshot], float]], ...] = (
    ("pitr_wal_received_bytes", "WAL received since the start.", lambda s: s.received_bytes),
    ("pitr_wal_durable_bytes", "WAL brought to quorum since the start.", lambda s: s.durable_bytes),
)


_REDIS_AGE = ("pitr_redis_snapshot_age_seconds", "Age of the newest snapshot of a site of Redis.")


class SnapshotCollector(Collector):
    """Turns a snapshot into metrics."""

    def __init__(self, snapshot: Callable[[], DaemonSnapshot]) -> None:
        self._snapshot = snapshot

    def describe(self) -> list[Metric]:
        """Return nothing: the registry then does not ask for a snapshot while it is built."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics of one snapshot."""
        snapshot = self._snapshot()
        for name, text, figure in _GAUGES:
            value = figure(snapshot)
            gauge = GaugeMetricFamily(name, text)
            if value is not None:
                gauge.add_metric([], value)
            yield gauge
        for name, text, count in _COUNTERS:
            counter = CounterMetricFamily(name, text)
            counter.add_metric([], count(snapshot))
            yield counter
        yield from _region_metrics(snapshot)
        yield from _task_metrics(snapshot)
        redis = GaugeMetricFamily(*_REDIS_AGE, labels=["name"])
        for site in snapshot.redis:
            if site.age_s is not None:
                redis.add_metric([site.name], site.age_s)
        yield redis
        events = CounterMetricFamily(
            "pitr_events",
            "What happened since the start; wal-lost, writers-conflict, commits-released: ever.",
            labels=["kind"],
        )
        for kind, number in sorted(snapshot.events.items()):
            events.add_metric([kind], number)
        yield events


def _region_metrics(snapshot: DaemonSnapshot) -> Iterator[Metric]:
    figures = {
        region.name: (
            region.rpo_s,
            float(region.is_healthy),
            region.pending_repairs,
            region.stuck_repairs,
            region.put_latency_s,
            region.bad_copies,
        )
        for region in snapshot.regions
    }
    for name, text, column in _REGION_GAUGES:
        gauge = GaugeMetricFamily(name, text, labels=["region"])
        for region, values in figures.items():
            value = values[column]
            if value is not None:
                gauge.add_metric([region], value)
        yield gauge


def _task_metrics(snapshot: DaemonSnapshot) -> Iterator[Metric]:
    overdue = GaugeMetricFamily("pitr_task_overdue", "1 if the task is past its deadline.", labels=["task"])
    runs = CounterMetricFamily("pitr_task_runs", "Runs of the task since the start.", labels=["task"])
    failures = CounterMetricFamily("pitr_task_failures", "Failed runs since the start.", labels=["task"])
    for task in snapshot.tasks:
        overdue.add_metric([task.name], float(task.is_overdue))
        runs.add_metric([task.name], task.runs)
        failures.add_metric([task.name], task.failures)
    yield from (overdue, runs, failures)


def metric_names() -> list[tuple[str, str]]:
    """Return the names and help texts as a scrape shows them."""
    names = [(name, text) for name, text, _ in (*_GAUGES, *_REGION_GAUGES)]
    names += [(f"{name}_total", text) for name, text, _ in _COUNTERS]
    names += [
        ("pitr_task_overdue", "1 if the task is past its deadline."),
        ("pitr_task_runs_total", "Runs of the task since the start."),
        ("pitr_task_failures_total", "Failed runs since the start."),
        _REDIS_AGE,
        (
            "pitr_events_total",
            "What happened since the start; wal-lost, writers-conflict, commits-released: ever.",
        ),
    ]
    return names


class MetricsServer:
    """Serves the metrics over HTTP until stopped."""

    def __init__(self, snapshot: Callable[[], DaemonSnapshot], host: str, port: int) -> None:
        registry = CollectorRegistry(auto_describe=False)
        registry.register(SnapshotCollector(snapshot))
        self._server: WSGIServer
        self._thread: threading.Thread
        self._server, self._thread = start_http_server(port, addr=host, registry=registry)

    @property
    def port(self) -> int:
        """Return the port that is listened on."""
        return int(self._server.server_port)

    def stop(self) -> None:
        """Close the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)
