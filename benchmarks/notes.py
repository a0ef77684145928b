"""Clinical notes with JSON that look real: about as compressible as such text is, and never twice the same.

pgbench's filler compresses 40-fold, which flatters everybody; these rows compress 3- to 4-fold under zstd 1.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

_WORDS = (
    "patient", "admitted", "with", "acute", "pain", "left", "right", "chest", "no", "signs", "of", "fever",
    "blood", "pressure", "stable", "dose", "reduced", "to", "daily", "follow", "up", "in", "weeks", "allergy",
    "against", "penicillin", "x-ray", "shows", "fracture", "discharged", "oxygen", "saturation", "normal",
    "heart", "rate", "history", "diabetes", "type", "two", "insulin",
)  # fmt: skip
# Some words are followed by a number of up to five digits: a dose, a code, a bed.
_NUMBER_SHARE = 0.15
_POOL = 60_000
_ROWS_PER_BLOCK = 200
_BEGAN = datetime(2024, 6, 1, tzinfo=UTC)
_DAYS = 900

TABLE = """
CREATE TABLE {table} (id bigint, written_at timestamptz, note text, observations jsonb);
"""
COPY = "COPY {table} FROM STDIN"


def note_rows(rows: int, seed: str) -> Iterator[bytes]:
    """Yield ``rows`` rows of ``COPY``'s text format, ids from 1 on, in blocks.  Equal for equal seeds."""
    draw = random.Random(seed)
    words = [
        draw.choice(_WORDS) + (str(draw.randrange(100_000)) if draw.random() < _NUMBER_SHARE else "")
        for _ in range(_POOL)
    ]
    values = [f"{draw.random() * 100:.2f}" for _ in range(10_000)]
    for first in range(1, rows + 1, _ROWS_PER_BLOCK):
        block = []
        for number in range(first, min(first + _ROWS_PER_BLOCK, rows + 1)):
            written_at = _BEGAN + timedelta(seconds=draw.randrange(_DAYS * 86_400))
            text = " ".join(draw.choices(words, k=60 + number % 60))
            numbers = ", ".join(draw.choices(values, k=12))
            block.append(
                f"{number}\t{written_at:%Y-%m-%d %H:%M:%S+00}\t{text}\t"
                f'{{"pulse": {50 + draw.randrange(90)}, "values": [{numbers}],'
                f' "patient": "{draw.randbytes(16).hex()}"}}\n'
            )
        yield "".join(block).encode()
