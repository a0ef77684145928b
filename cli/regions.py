"""Regions as stores: URLs and credentials files opened, alone or replicated."""

from __future__ import annotations

import configparser
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cli.settings import RegionSettings
from pitr.errors import KeyMissing
from storage.regions import Region, StoreEvent
from storage.s3 import S3Credentials
from storage.url import create_store, open_store, parse_region_url

if TYPE_CHECKING:
    from storage.repair import RepairQueue
    from storage.replicated import ReplicatedStore

# Heads say that everything before them is there; a read that misses one must not mend only the head.
AFTER_ALL_PREFIXES = ("heads/",)
# What a verifier puts is evidence: where a region's URL says so, nobody can take it back.
LOCKED_PREFIXES = ("log/", "reports/")
_CREDENTIALS_BYTES_MAX = 64 * 1024


def open_regions(regions: Sequence[RegionSettings]) -> tuple[Region, ...]:
    """Open every region's store, the nearest first.  Raises StoreError, KeyMissing for its credentials."""
    return tuple(
        Region(region.name, open_store(parse_region_url(region.url), _credentials(region), LOCKED_PREFIXES))
        for region in regions
    )


def create_regions(regions: Sequence[RegionSettings]) -> tuple[Region, ...]:
    """Open every region and make it ready for objects: directories are made, buckets must exist."""
    return tuple(
        Region(region.name, create_store(parse_region_url(region.url), _credentials(region)))
        for region in regions
    )


def open_reading(
    regions: Sequence[Region], quorum: int, *, answers_min: int | None = None
) -> ReplicatedStore:
    """Return the regions as one store that only reads.

    ``answers_min`` lowers how many regions a listing needs; see ``ReplicatedStore``.
    """
    from storage.replicated import ReplicatedStore

    return ReplicatedStore(
        regions, quorum=quorum, after_all_prefixes=AFTER_ALL_PREFIXES, read_only_regions_minimum=answers_min
    )


def open_writing(
    regions: Sequence[Region],
    quorum: int,
    queue: RepairQueue,
    *,
    on_event: Callable[[StoreEvent], None] | None = None,
    puts_in_flight: int = 1,
) -> ReplicatedStore:
    """Return the regions as one store that acknowledges at ``quorum``.  Close it before the queue.

    ``puts_in_flight``: how many puts of WAL are to be under way in each region at a time.
    """
    from storage.replicated import WORKERS_PER_REGION, ReplicatedStore

    return ReplicatedStore(
        regions,
        quorum=quorum,
        queue=queue,
        after_all_prefixes=AFTER_ALL_PREFIXES,
        on_event=on_event,
        workers_per_region=max(WORKERS_PER_REGION, puts_in_flight),
    )


def _credentials(region: RegionSettings) -> S3Credentials | None:
    """Read an AWS credentials file; None leaves it to the environment, as the AWS tools do."""
    if region.credentials_file is None:
        return None
    return read_credentials(region.credentials_file, region.credentials_profile)


def read_credentials(path: Path, profile: str) -> S3Credentials:
    """Read one profile of an AWS credentials file.  Raises KeyMissing, which shows no secret."""
    parser = configparser.ConfigParser(interpolation=None)
    try:
        with path.open("r", encoding="utf-8") as file:
            parser.read_string(file.read(_CREDENTIALS_BYTES_MAX))
        section = parser[profile]
        return S3Credentials(
            section["aws_access_key_id"], section["aws_secret_access_key"], section.get("aws_session_token")
        )
    except OSError as error:
        raise KeyMissing(f"the credentials file {path} cannot be read", detail=error.strerror) from error
    except (configparser.Error, UnicodeDecodeError):
        # Not the cause's text: a parser quotes the line that it does not understand, a secret perhaps.
        raise KeyMissing(f"the credentials file {path} is not an AWS credentials file") from None
    except KeyError as error:
        raise KeyMissing(
            f"the credentials file {path} lacks {error.args[0]!r}",
            hint=f"it needs aws_access_key_id and aws_secret_access_key under [{profile}]",
        ) from None
