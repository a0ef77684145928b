"""``pitr status``: what is safe, and how fresh it is; a probe for monitoring with ``--check-rpo``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from cli.backup_limit import describe_limits
from cli.context import App, common_options, current
from cli.errors import ConfigRefused, ThresholdBroken, UsageRefused
from cli.output import Output, format_bytes, format_seconds
from cli.units import read_duration_option

TIMEOUT_S = 10.0


@click.command()
@click.option(
    "--check-rpo", metavar="DURATION", help="Exit code 5 if the RPO is worse than this, such as 60s."
)
@common_options
def status(check_rpo: str | None) -> None:
    """Tell what is safe, and how fresh it is.

    The running daemon is asked, also one that waits for its server or the regions to begin. With
    --check-rpo it is a probe: exit code 5 if more would be lost now than allowed, or if nobody knows, as
    where no daemon runs, or where it does not answer.
    """
    from cli.control import ControlRequest, ask_own_daemon
    from pitr.errors import PitrError

    app = current()
    limit_s = None if check_rpo is None else read_duration_option("--check-rpo", check_rpo)
    try:
        seen = ask_own_daemon(app.settings().daemon, ControlRequest("status"), timeout_s=TIMEOUT_S)
    except PitrError as error:
        if limit_s is None or isinstance(error, ConfigRefused | UsageRefused):
            raise
        raise ThresholdBroken(
            f"the RPO is not kept: {error.message}", detail=error.detail, hint=error.hint
        ) from error
    if seen["state"] != "running":
        _show_beginning(app, seen)
        if limit_s is not None:
            app.partial_result = dict(seen)
            raise ThresholdBroken(
                f"the RPO is not known: the daemon has not begun, it is {seen['state']}",
                detail=_reason(seen),
                hint="pitr doctor",
            )
        app.output.finish(seen)
        return
    _show(app, seen)
    if limit_s is not None and float(seen["rpo_s"]) > limit_s:
        app.partial_result = dict(seen)
        raise ThresholdBroken(
            f"the RPO is {format_seconds(float(seen['rpo_s']))}, more than {check_rpo}",
            detail=_reason(seen),
            hint="pitr doctor",
        )
    app.output.finish(seen)


def _reason(seen: Mapping[str, Any]) -> str:
    if seen["last_error"]:
        return str(seen["last_error"])
    if not seen["is_streaming"]:
        return "no WAL is streamed from the server"
    sick = [region["name"] for region in seen["regions"] if not region["is_healthy"]]
    return f"regions that fail: {', '.join(sick)}" if sick else "WAL is on its way"


def _show_beginning(app: App, seen: Mapping[str, Any]) -> None:
    """Say what a daemon waits for that does not archive yet."""
    output = app.output
    output.line(
        f"{seen['cluster']}: NOT streaming, {seen['state']}; the daemon began at {seen['started_at']}"
    )
    if seen["last_error"]:
        output.warn(str(seen["last_error"]))
    output.table(
        ["region", "state", "last error"],
        [
            [region["name"], "healthy" if region["is_healthy"] else "FAILING", region["last_error"] or ""]
            for region in seen["regions"]
        ],
        empty="",
    )


def _show(app: App, seen: Mapping[str, Any]) -> None:
    output = app.output
    regions = list(seen["regions"])
    healthy = sum(1 for region in regions if region["is_healthy"])
    streaming = "streaming" if seen["is_streaming"] else "NOT streaming"
    output.line(
        f"{seen['cluster']}: {streaming}, RPO {format_seconds(float(seen['rpo_s']))},"
        f" {healthy} of {len(regions)} regions healthy, quorum {seen['quorum']}"
    )
    lag = "unknown" if seen["lag_bytes"] is None else format_bytes(int(seen["lag_bytes"]))
    output.line(
        f"WAL      durable up to {seen['durable_lsn'] or '-'}, timeline {seen['timeline'] or '-'}, lag {lag}"
    )
    if seen["slot_retained_bytes"] is not None:
        output.line(f"slot     keeps {format_bytes(int(seen['slot_retained_bytes']))} on the server")
    _show_protection(output, seen["protection"])
    if seen["wal_disk"] is not None:
        _show_disk(output, seen["wal_disk"])
    backup = seen["backup"]
    if backup["last_backup"] is None:
        output.line("backup   none yet")
    else:
        output.line(f"backup   {backup['last_backup']}, complete {backup['last_completed_at']}")
    if backup["running_step"] is not None:
        amount = format_bytes(int(backup["running_bytes"]))
        output.line(f"         one is being taken: {backup['running_step']}, {amount}")
        output.line(f"         {describe_limits(backup['rate_limit'], backup['workers'])}")
        if backup["running_paused"] is not None:
            output.line(f"         paused: {backup['running_paused']}")
    elif backup["last_result"] == "failed":
        failed = next((task["last_error"] for task in seen["tasks"] if task["name"] == "backup"), None)
        output.line(f"         the last attempt failed: {failed}")
    if backup["next_at"] is not None and backup["running_step"] is None:
        output.line(f"         the next one is due at {backup['next_at']}")
    _show_bad_pages(output, backup)
    _show_fences(output, seen.get("fences"))
    _show_redis(output, seen)
    _show_losses(output, seen)
    _show_verification(output, seen["tasks"])
    _show_forecast(output, seen.get("forecast"))
    if seen["last_error"]:
        output.warn(str(seen["last_error"]))
    output.table(
        ["region", "state", "rpo", "waiting", "last error"],
        [
            [
                region["name"],
                "healthy" if region["is_healthy"] else "FAILING",
                format_seconds(float(region["rpo_s"])),
                str(region["pending_repairs"])
                + (f" ({region['stuck_repairs']} stuck)" if region["stuck_repairs"] else ""),
                region["last_error"] or "",
            ]
            for region in regions
        ],
        empty="",
    )
    for region in regions:
        _show_bad_copies(output, region)


def _show_bad_pages(output: Output, backup: Mapping[str, Any]) -> None:
    """Name pages of the server that are bad: what is restored has them as they are."""
    # A daemon of an earlier release does not say.
    count, named = int(backup.get("bad_pages", 0)), backup.get("bad_pages_named", ())
    if not count:
        return
    pages = "1 page of the server is bad" if count == 1 else f"{count} pages of the server are bad"
    places = [f"{one['relation'] or one['path']} {one['fork']} block {one['block']}" for one in named]
    if count > len(named):
        places.append("…")
    output.warn(f"{pages}: {', '.join(places)}; in which backup each was last clean: pitr backups show")


def _show_fences(output: Output, fences: Mapping[str, Any] | None) -> None:
    """Say how fresh the last fence is, and what is wrong with it."""
    if fences is None:
        return
    if fences["number"] is None:
        output.line("fences   none yet")
    else:
        known = f"{fences['partitions']} partitions" if fences["unknown"] is None else "Kafka is unknown"
        output.line(
            f"fences   the last one is {format_seconds(float(fences['age_s']))} old: {known},"
            f" {fences['waiting']} wait for the regions"
        )
    if fences["unknown"] is not None:
        output.warn(f"the last fence knows nothing of Kafka: {fences['unknown']}")
    if fences["missing"]:
        output.warn(f"declared topics that Kafka does not have: {', '.join(fences['missing'][:10])}")
    if fences["trouble"] is not None:
        output.warn(f"no fence can be taken: {fences['trouble']}")
    if fences["store_error"] is not None:
        output.warn(f"fences cannot be put: {fences['store_error']}")
    mirror = fences.get("mirror")
    if mirror is None:
        return
    if mirror["age_s"] is not None:
        age = format_seconds(float(mirror["age_s"]))
        output.line(f"mirror   its pairs of offsets were read {age} ago, {mirror['behind']} are to be read")
    if mirror["trouble"] is not None:
        output.warn(f"pairs of the mirror cannot be read: {mirror['trouble']}")
    if mirror["store_error"] is not None:
        output.warn(f"pairs of the mirror cannot be put: {mirror['store_error']}")


def _show_redis(output: Output, seen: Mapping[str, Any]) -> None:
    """Say how old each site's newest snapshot is, and why there is no newer one."""
    failed = {task["name"]: task["last_error"] for task in seen["tasks"] if task["last_error"] is not None}
    for site in seen.get("redis", ()):
        age_s = site["age_s"]
        age = "has none yet" if age_s is None else f"is {format_seconds(float(age_s))} old"
        output.line(f"redis    {site['name']}: the newest snapshot {age}")
        reason = failed.get(f"redis-snapshot-{site['name']}")
        if reason is not None:
            output.warn(reason)


def _show_losses(output: Output, seen: Mapping[str, Any]) -> None:
    """Say that WAL was lost, by whichever run; it is a warning until a backup begins anew after it."""
    count, lost_at = int(seen["events"].get("wal-lost", 0)), seen["wal_lost_at"]
    if not count:
        return
    times = "once" if count == 1 else f"{count} times"
    text = (
        f"WAL was lost {times}, last at {lost_at or '-'}: pitr timeline shows the gaps, pitr log the reason"
    )
    completed_at = seen["backup"]["last_completed_at"]
    # A backup that was being taken when WAL was lost fails: one that was completed later begins after it.
    if lost_at is not None and completed_at is not None and str(completed_at) > str(lost_at):
        output.line(f"lost     {text}")
    else:
        output.warn(text)


def _show_verification(output: Output, tasks: Sequence[Mapping[str, Any]]) -> None:
    """Say when a restore is verified next, or that none is."""
    task = next((task for task in tasks if task["name"] == "verification"), None)
    if task is None:
        output.line("verify   no restore is verified by itself: the configuration has no [verify]")
    elif task["is_running"]:
        output.line("verify   a restore is being verified")
    else:
        output.line(f"verify   the next one is due at {task['next_at'] or '-'}")
        if task["last_error"]:
            output.line(f"         the last attempt: {task['last_error']}")
    for task in tasks:
        if not task["name"].startswith("drill-"):
            continue
        when = (
            "it is being held" if task["is_running"] else f"the next one is due at {task['next_at'] or '-'}"
        )
        output.line(f"drill    {task['name'].removeprefix('drill-')}: {when}")
        if task["last_error"]:
            output.line(f"         the last attempt: {task['last_error']}")


def _show_forecast(output: Output, forecast: Mapping[str, Any] | None) -> None:
    """Say how long recovery to the latest moment would take, by what was measured."""
    from cli.forecast import NO_RUNS, forecast_text
    from verifiers.rto_model import Forecast

    if forecast is None:
        output.line(f"recovery {NO_RUNS}")
        return
    told = Forecast(float(forecast["seconds"]), forecast["error"], int(forecast["runs"]))
    output.line(f"recovery {forecast_text(told)}")


def _show_protection(output: Output, protection: Mapping[str, Any]) -> None:
    """Say what commits wait for, where they do, and what that costs."""
    if protection["is_synchronous"] or protection["level"]:
        output.line(f"commits  acknowledged ones are {protection['worth']}")
    if protection["level"]:
        output.warn("protection is lowered; pitr log tells since when, and it ends by itself with the quorum")
    if protection["puts_cost_per_month"] is not None:
        output.line(
            f"puts     {protection['puts_per_s']:.2f} objects/s:"
            f" about {protection['puts_cost_per_month']:.2f} a month in all regions"
        )
    if protection["events_waiting"]:
        output.line(f"events   {protection['events_waiting']} are noted here and wait for the regions")


def _show_disk(output: Output, disk: Mapping[str, Any]) -> None:
    """Say how much room there is for WAL on the server, and how long it lasts."""
    if disk["free_bytes"] is not None:
        free, total = format_bytes(int(disk["free_bytes"])), format_bytes(int(disk["total_bytes"]))
        output.line(f"disk     {free} of {total} free where pg_wal is")
    rate = format_bytes(round(disk["growth_rate"] or 0))
    if disk["full_in_s"] is not None:
        then = "then the slot is dropped" if disk["when_disk_fills"] == "drop" else "the server stops then"
        output.warn(f"disk full in {format_seconds(float(disk['full_in_s']))}, at {rate}/s of WAL; {then}")
    if disk["slot_lost_in_s"] is not None:
        lost_in = format_seconds(float(disk["slot_lost_in_s"]))
        output.warn(
            f"max_slot_wal_keep_size is reached in {lost_in}, at {rate}/s of WAL; the slot is lost then"
        )


def _show_bad_copies(output: Output, region: Mapping[str, Any]) -> None:
    """Name the copies that only a person can remove, and say what to do then."""
    count = int(region["bad_copies"])
    if not count:
        return
    known = f"{count} {'copy is' if count == 1 else 'copies are'} known to be bad"
    output.line(f"copies   {known} in region {region['name']}; other regions cover for them")
    for copy in region["bad_copies_named"]:
        output.line(
            f"         {copy['kind']}: {copy['key']}: {copy['detail'].removeprefix(copy['key'] + ': ')}"
        )
    if count > len(region["bad_copies_named"]):
        output.line(f"         and {count - len(region['bad_copies_named'])} more")
    output.line("         next: remove them there by hand, then: pitr repair")
