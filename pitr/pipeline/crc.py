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


def crc32c(content: bytes | memoryview, start: int = 0) -> int:
    """Return the CRC32C of ``content``, going on from ``start``, the CRC of what came before it."""
    return int(google_crc32c.extend(start, bytes(content) if isinstance(content, memoryview) else content))


def crc32c_combine(first: int, second: int, second_bytes: int) -> int:
    """Return the CRC32C of two runs of bytes laid end to end, from that of each.

    ``second_bytes`` is the length of the second.
    """
    return _product(_shift(second_bytes), first) ^ second


def crc32c_zeros(size_bytes: int) -> int:
    """Return the CRC32C of ``size_bytes`` zero bytes, in time that does not grow with them."""
    # A CRC starts from and ends with all ones: zeros shift the ones, nothing else.
    return _product(_shift(size_bytes), 0xFFFF_FFFF) ^ 0xFFFF_FFFF


class FileCrc32c:
    """The CRC32C of a file from that of its runs of bytes, in order; what lies between them is zero."""

    __slots__ = ("_crc", "_end")

    def __init__(self) -> None:
        self._crc = 0
        self._end = 0

    @property
    def end(self) -> int:
        """The offset up to which the CRC goes."""
        return self._end

    def add(self, offset: int, size_bytes: int, crc: int) -> None:
        """Go on with ``size_bytes`` bytes at ``offset`` whose CRC is ``crc``.

        Raises ValueError if they begin before ``end``.
        """
        self._skip_to(offset)
        self._crc = crc32c_combine(self._crc, crc, size_bytes)
        self._end += size_bytes

    def finish(self, size_bytes: int) -> int:
        """Return the CRC of the file of ``size_bytes`` bytes.  Raises ValueError if it is longer."""
        self._skip_to(size_bytes)
        return self._crc

    def _skip_to(self, offset: int) -> None:
        gap_bytes = offset - self._end
        if gap_bytes < 0:
            raise ValueError(f"offset {offset} lies before {self._end}")
        if gap_bytes:
            self._crc = crc32c_combine(self._crc, crc32c_zeros(gap_bytes), gap_bytes)
            self._end = offset


@lru_cache(maxsize=4096)
def _shift(size_bytes: int) -> int:
    """Return x to the power of the bits in ``size_bytes`` bytes, modulo the polynomial."""
    if size_bytes < 0:
        raise ValueError(f"negative length: {size_bytes}")
    power, square = _ONE, _ONE >> 8
    while size_bytes:
        if size_bytes & 1:
            power = _product(power, square)
        square = _product(square, square)
        size_bytes >>= 1
    return power


def _product(left: int, right: int) -> int:
    """Multiply two polynomials over GF(2) modulo the CRC's; bit 31 is the constant term."""
    product = 0
    while left:
        if left & _ONE:
            product ^= right
        left = left << 1 & 0xFFFF_FFFF
        right = right >> 1 ^ _POLYNOMIAL if right & 1 else right >> 1
    return product
