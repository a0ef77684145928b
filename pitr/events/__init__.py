"""Events: which Kafka offsets belong to a moment of the database, and what to replay after a restore.

    declared flows ─→ fences (offsets, then a mark in PostgreSQL) ─→ plan ─→ replay ─→ reconciliation

Decisions are pure; ``broker`` says what is asked of a broker, and ``kafka`` alone asks a real one.
Reference: docs/events.md.
"""
