"""Which regions lack something that has just been put, once they had a moment to get it."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from storage.replicated import ReplicatedStore

# With every put the last region is a moment behind.
WAIT_S: Final = 10.0
_POLL_S: Final = 0.2


def lagging_regions(
    store: ReplicatedStore, *, wait_s: float = WAIT_S, failing_wait_s: float = 0.0
) -> list[str]:
    """Return the regions that lack something that was put before this call.

    A region that answers is given ``wait_s`` to get it, one that failed of late ``failing_wait_s``.
    """
    asked_at = datetime.now(UTC)
    begun = time.monotonic()
    while True:
        behind = [
            region
            for region in store.status()
            if region.oldest_pending_at is not None and region.oldest_pending_at <= asked_at
        ]
        spent_s = time.monotonic() - begun
        if not any(spent_s <= (wait_s if region.is_healthy else failing_wait_s) for region in behind):
            return [region.name for region in behind]
        time.sleep(_POLL_S)
