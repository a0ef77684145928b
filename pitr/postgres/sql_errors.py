"""Errors of SQL: psycopg's, turned into ours by what can be done about them.

Reference: PostgreSQL manual, "PostgreSQL Error Codes".
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from pitr.errors import ServerRefused, ServerUnavailable

# Connection, rollback, resources, operator intervention, system: what may be otherwise in a minute.
_UNAVAILABLE_CLASSES = ("08", "40", "53", "57", "58")
# Of the data that a statement met: cardinality, data, integrity, limits, CHECK OPTION, RAISE.
_POISON_CLASSES = ("21", "22", "23", "44", "54", "P0")
_REFUSED_TEXTS = ("authentication", "pg_hba.conf", "does not exist", "no password", "not permitted")


@contextmanager
def mapped_errors() -> Iterator[None]:
    """Raise ServerRefused for what a person must mend, ServerUnavailable for what may be well in a minute."""
    try:
        yield
    except psycopg.Error as cause:
        state, text = cause.sqlstate or "", str(cause).strip()
        is_refused = (
            not state.startswith(_UNAVAILABLE_CLASSES)
            if state
            else isinstance(cause, psycopg.ProgrammingError) or any(part in text for part in _REFUSED_TEXTS)
        )
        hint = None
        if state == "42501":
            hint = "GRANT EXECUTE on the function to this role, or pg_read_all_settings; see `pitr doctor`"
        error = ServerRefused if is_refused else ServerUnavailable
        lines = text.splitlines() or [type(cause).__name__]
        raise error(lines[0], detail="\n".join(lines[1:]) or None, hint=hint) from cause


def is_poison(error: BaseException) -> bool:
    """Tell whether a statement failed by the data it met, so that it may succeed with other data."""
    return isinstance(error, psycopg.Error) and (error.sqlstate or "").startswith(_POISON_CLASSES)
