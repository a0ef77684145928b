"""CRC32C (Castagnoli): the checksum of PostgreSQL's backup manifests, and how two join into one.

No protection against an attacker, seals are that: it tells whether bytes that were read from the
server are the bytes that were restored.  The only home of ``google_crc32c``, but for the WAL walk.

Reference: RFC 3720 appendix B.4; PostgreSQL src/port/pg_crc32c_sb8.c; the joining is zlib's
``crc32_combine`` (a product of polynomials modulo the CRC's).
"""

from __future__ import annotations

from functools import lru_cache

import google_crc32c

# The polynomial 0x1EDC6F41 with its bits reflected, as every table-driven implementation has it.
_POLYNOMIAL = 0x82F63B78
_ONE = 1 << 31
_RUNS_MAX = 1024


def crc32c(content: bytes | memoryview, start: int = 0) -> int:
    """Return the CRC32C of ``content``, going on from ``start``, the CRC of what came before it."""
    if isinstance(content, memoryview):
        whole = content.obj
        # Only bytes are taken, and a view of all of them needs no copy.
        is_all = isinstance(whole, bytes) and content.c_contiguous and len(whole) == content.nbytes
        content = whole if isinstance(whole, bytes) and is_all else bytes(content)
    return int(google_crc32c.extend(start, content))


def crc32c_combine(first: int, second: int, second_bytes: int) -> int:
    """Return the CRC32C of two runs of bytes laid end to end, from that of each.

    ``second_bytes`` is the length of the second.
    """
    return _shifted(first, second_bytes) ^ second


def crc32c_zeros(size_bytes: int) -> int:
    """Return the CRC32C of ``size_bytes`` zero bytes, in time that does not grow with them."""
    # A CRC starts from and ends with all ones: zeros shift the ones, nothing else.
    return _shifted(0xFFFF_FFFF, size_bytes) ^ 0xFFFF_FFFF


class FileCrc32c:
    """The CRC32C of a file from that of its runs of bytes, in order; what lies between them is zero.

    Runs are joined when their sum is asked for: most indexes of an incremental backup never ask.
    """

    __slots__ = ("_crc", "_end", "_joined", "_runs")

    def __init__(self) -> None:
        self._crc = 0
        self._joined = 0
        self._end = 0
        self._runs: list[tuple[int, int, int]] = []

    @property
    def end(self) -> int:
        """The offset up to which the CRC goes."""
        return self._end

    def add(self, offset: int, size_bytes: int, crc: int) -> None:
        """Go on with ``size_bytes`` bytes at ``offset`` whose CRC is ``crc``.

        Raises ValueError if they begin before ``end``.
        """
        self._check(offset)
        self._runs.append((offset, size_bytes, crc))
        self._end = offset + size_bytes
        if len(self._runs) >= _RUNS_MAX:
            self._join()

    def finish(self, size_bytes: int) -> int:
        """Return the CRC of the file of ``size_bytes`` bytes.  Raises ValueError if it is longer."""
        self._check(size_bytes)
        self._join()
        self._skip_to(size_bytes)
        self._end = size_bytes
        return self._crc

    def _check(self, offset: int) -> None:
        if offset < self._end:
            raise ValueError(f"offset {offset} lies before {self._end}")

    def _join(self) -> None:
        for offset, size_bytes, crc in self._runs:
            self._skip_to(offset)
            self._crc = crc32c_combine(self._crc, crc, size_bytes)
            self._joined += size_bytes
        self._runs.clear()

    def _skip_to(self, offset: int) -> None:
        gap_bytes = offset - self._joined
        if gap_bytes:
            # As if combined with ``crc32c_zeros``, and one shift instead of two.
            self._crc = _shifted(self._crc ^ 0xFFFF_FFFF, gap_bytes) ^ 0xFFFF_FFFF
            self._joined = offset


def _shifted(crc: int, size_bytes: int) -> int:
    """Return ``crc`` times x to the power of the bits in ``size_bytes`` bytes, modulo the polynomial."""
    table = _shift_table(size_bytes)
    return (
        table[crc & 15]
        ^ table[16 + (crc >> 4 & 15)]
        ^ table[32 + (crc >> 8 & 15)]
        ^ table[48 + (crc >> 12 & 15)]
        ^ table[64 + (crc >> 16 & 15)]
        ^ table[80 + (crc >> 20 & 15)]
        ^ table[96 + (crc >> 24 & 15)]
        ^ table[112 + (crc >> 28)]
    )


@lru_cache(maxsize=1024)
def _shift_table(size_bytes: int) -> tuple[int, ...]:
    """Return what a shift makes of each value of each of a CRC's eight groups of four bits.

    It costs as much as two products, and most lengths of a backup come again.
    """
    if size_bytes < 0:
        raise ValueError(f"negative length: {size_bytes}")
    power = _ONE
    for bit in range(size_bytes.bit_length()):
        if size_bytes >> bit & 1:
            power = _product(power, _square(bit))
    of_bits = [power]
    for _ in range(31):
        power = power >> 1 ^ _POLYNOMIAL if power & 1 else power >> 1
        of_bits.append(power)
    of_bits.reverse()
    table: list[int] = []
    for low in range(0, 32, 4):
        group = [0]
        for one in of_bits[low : low + 4]:
            group += [one ^ other for other in group]
        table += group
    return tuple(table)


@lru_cache(maxsize=64)
def _square(bit: int) -> int:
    """Return x to the power of the bits in ``1 << bit`` bytes, modulo the polynomial."""
    half = _square(bit - 1) if bit else None
    return _ONE >> 8 if half is None else _product(half, half)


def _product(left: int, right: int) -> int:
    """Multiply two polynomials over GF(2) modulo the CRC's; bit 31 is the constant term."""
    product = 0
    while left:
        if left & _ONE:
            product ^= right
        left = left << 1 & 0xFFFF_FFFF
        right = right >> 1 ^ _POLYNOMIAL if right & 1 else right >> 1
    return product
