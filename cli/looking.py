"""The top of the daemon's threads that look again and again: an error ends one look, and not the thread."""

from __future__ import annotations

from collections.abc import Callable

from pitr.errors import PitrError


def look_and_go_on(name: str, look: Callable[[], object], tell: Callable[..., object]) -> None:
    """Look; ``tell`` of an error that nobody foresaw, for the thread would end without a word."""
    try:
        look()
    except Exception as failure:  # noqa: BLE001 — the top of a thread: it is told and tried again
        tell(f"{name} failed, and is tried again", reason=in_words(failure))


def in_words(failure: Exception) -> str:
    """Return what to say of an error; of one that nobody foresaw also its class."""
    if isinstance(failure, PitrError):
        return failure.in_one_line
    return f"{type(failure).__name__}: {failure}"
