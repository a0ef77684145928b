"""What clients saw: the window without service, latencies, errors by class, and the load's threads."""

from __future__ import annotations

import threading
import time

from verifiers.client_load import NO_SERVICE, ClientLoad
from verifiers.load_figures import CLASSES_MAX, READ_ONLY, WRITTEN, Histogram, LoadTally, Stretch
from verifiers.report_shape import REPORT, check_shape


def test_percentiles_are_right_to_five_percent() -> None:
    histogram = Histogram()
    for latency_us in range(1, 10_001):
        histogram.add(latency_us)
    for share, exact in ((0.5, 5000), (0.95, 9500), (0.99, 9900)):
        assert exact * 0.95 <= histogram.percentile(share) <= exact * 1.06
    assert len(histogram.counts) < 250
    assert Histogram().fields() is None


def test_the_window_ends_with_the_first_durable_write() -> None:
    tally = LoadTally(1)
    for begun, outcome in ((0.0, NO_SERVICE), (1.0, NO_SERVICE), (2.0, READ_ONLY), (3.0, WRITTEN)):
        tally.add(outcome, begun, begun + 0.25)
    tally.add(WRITTEN, 4.0, 4.001)
    tally.add("SQLSTATE 57014", 5.0, 10.0)
    found = tally.fields()
    service = found["service_degradation"]
    assert (service["window_ms"], service["read_only_ms"]) == (3250, 1000)
    # Of the four requests up to the first write a read was answered, and the write itself.
    assert service["throughput_permille"] == 500
    assert service["latency_us_before"] is None
    assert service["latency_us_after"]["p99"] < 1100
    assert service["latency_us_during"]["p50"] > 230_000
    assert found["error_rate"] == {
        "requests": 6,
        "clients": 1,
        "errors": [
            {"class": "SQLSTATE 57014", "count": 1},
            {"class": NO_SERVICE, "count": 2},
            {"class": READ_ONLY, "count": 1},
        ],
    }
    _, shape = REPORT["degradation"]
    check_shape(found, shape)  # type: ignore[arg-type]


def test_a_service_that_never_came_is_a_window_to_the_end() -> None:
    tally = LoadTally(1)
    tally.add(NO_SERVICE, 0.0, 0.5)
    tally.add(NO_SERVICE, 8.0, 9.0)
    service = tally.fields()["service_degradation"]
    assert (service["window_ms"], service["throughput_permille"]) == (9000, 0)
    assert (service["read_only_ms"], service["latency_us_after"]) == (None, None)


def test_classes_of_errors_are_bounded() -> None:
    tally = LoadTally(1)
    for number in range(200):
        tally.add(f"class {number}", 0.0, 0.1)
    assert len(tally.errors) <= CLASSES_MAX + 1
    assert tally.errors["other"] == 200 - CLASSES_MAX


def test_no_request_at_all_is_no_service() -> None:
    assert Stretch(0, 0).errors_permille == 1000
    assert Stretch(200, 1).errors_permille == 5


class _Client:
    """Writes where it is told to, and refuses elsewhere."""

    closed = 0

    def request(self, dsn: str) -> str | None:
        return None if dsn == "here" else "no connection"

    def close(self) -> None:
        _Client.closed += 1


def test_clients_try_before_there_is_a_service_and_all_of_them_end() -> None:
    load = ClientLoad(3, _Client, pace_s=0.001)
    _Client.closed = 0
    ticks = threading.Event()
    load.start(time.monotonic())
    missing = load.run_for(0.2, ticks.wait)
    load.serve_at("here")
    served = load.run_for(0.2, ticks.wait)
    load.stop()
    load.stop()
    assert missing.errors == missing.requests > 0
    assert served.requests > 0
    # One that was under way when the service came may still count as failed.
    assert served.errors <= 3
    assert _Client.closed == 3
    found = load.fields()
    assert found["error_rate"]["errors"][0]["class"] == NO_SERVICE
    assert found["service_degradation"]["window_ms"] >= 150
