"""BYTES: keeps sealed objects safe in several regions.  Knows no PostgreSQL, no keys, no catalogue."""
