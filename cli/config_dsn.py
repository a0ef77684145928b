"""What the configuration may say of where the server is: the DSN, and the members of a Patroni cluster."""

from __future__ import annotations

import re

# A DSN with a comma in its hosts, as key and value or as URI.
_SEVERAL_HOSTS = re.compile(r"(^|[\s?&])host(addr)?\s*=\s*'?[^\s'&]*,|^[a-z0-9+]+://[^/?]*,", re.IGNORECASE)
_PASSWORD = re.compile(r"(^|[\s?&])password\s*=", re.IGNORECASE)
_URL_PASSWORD = re.compile(r"^[a-z0-9+]+://[^/@]*:[^/@]*@", re.IGNORECASE)


def no_password(dsn: str) -> str:
    """Refuse a DSN with a password in it.  Raises ValueError."""
    if _PASSWORD.search(dsn) or _URL_PASSWORD.match(dsn):
        raise ValueError("a password must not stand here; use a password file (passfile=, ~/.pgpass)")
    return dsn


def chosen_host(dsn: str) -> str:
    """Refuse several hosts without a word on which of them is meant.  Raises ValueError."""
    if _SEVERAL_HOSTS.search(dsn) and "target_session_attrs" not in dsn:
        raise ValueError(
            "of several hosts libpq would take any: add target_session_attrs=read-write for the primary,"
            " or standby to stream from one"
        )
    return dsn


def patroni_url(text: str) -> str:
    """Check the REST address of a member.  Raises MalformedValue."""
    # It imports ssl; only who has Patroni pays for it.
    from pitr.postgres.patroni import parse_url

    parse_url(text)
    return text
