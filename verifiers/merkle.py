"""Merkle trees as RFC 6962 has them: roots, and proofs that an entry is in and that nothing changed.

Pure.  Hashes come in and go out; what a leaf means is its caller's.  Reference: RFC 6962 §2.1, RFC 9162
§2.1.3–4 for the verification.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from pitr.errors import NotAuthentic

EMPTY_ROOT = hashlib.sha256(b"").digest()


def leaf_hash(content: bytes) -> bytes:
    """Return the hash of a leaf."""
    return hashlib.sha256(b"\x00" + content).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of an inner node."""
    return hashlib.sha256(b"\x01" + left + right).digest()


class GrowingTree:
    """The root of a tree that only grows, in the memory of its height: the roots of the full trees in it."""

    __slots__ = ("_full", "size")

    def __init__(self) -> None:
        self.size = 0
        self._full: list[bytes] = []

    def append(self, leaf: bytes) -> None:
        """Add the hash of the next leaf."""
        self._full.append(leaf)
        self.size += 1
        joined = self.size
        while joined % 2 == 0:
            right, left = self._full.pop(), self._full.pop()
            self._full.append(node_hash(left, right))
            joined //= 2

    def root(self) -> bytes:
        """Return the root of the tree so far."""
        if not self._full:
            return EMPTY_ROOT
        root = self._full[-1]
        for left in reversed(self._full[:-1]):
            root = node_hash(left, root)
        return root


def root_of(leaves: Sequence[bytes]) -> bytes:
    """Return the root of the tree of these leaves' hashes."""
    tree = GrowingTree()
    for leaf in leaves:
        tree.append(leaf)
    return tree.root()


def inclusion_proof(index: int, leaves: Sequence[bytes]) -> list[bytes]:
    """Return the path from leaf ``index`` to the root (RFC 6962 §2.1.1).  Raises IndexError."""
    if not 0 <= index < len(leaves):
        raise IndexError(f"no leaf {index} in a tree of {len(leaves)}")
    if len(leaves) == 1:
        return []
    split = _split(len(leaves))
    if index < split:
        return [*inclusion_proof(index, leaves[:split]), root_of(leaves[split:])]
    return [*inclusion_proof(index - split, leaves[split:]), root_of(leaves[:split])]


def consistency_proof(first: int, leaves: Sequence[bytes]) -> list[bytes]:
    """Return the proof that the tree of the first ``first`` leaves is a beginning of this one (§2.1.2).

    Raises IndexError unless ``first`` is from 1 to their number.
    """
    if not 1 <= first <= len(leaves):
        raise IndexError(f"no tree of {first} in one of {len(leaves)}")
    return _subproof(first, leaves, is_whole=True)


def _subproof(first: int, leaves: Sequence[bytes], *, is_whole: bool) -> list[bytes]:
    if first == len(leaves):
        return [] if is_whole else [root_of(leaves)]
    split = _split(len(leaves))
    if first <= split:
        return [*_subproof(first, leaves[:split], is_whole=is_whole), root_of(leaves[split:])]
    return [*_subproof(first - split, leaves[split:], is_whole=False), root_of(leaves[:split])]


def verify_inclusion(index: int, size: int, leaf: bytes, proof: Sequence[bytes], root: bytes) -> None:
    """Raise NotAuthentic unless ``proof`` leads from leaf ``index`` to the root of a tree of ``size``."""
    if not 0 <= index < size:
        raise NotAuthentic(f"inclusion proof: no leaf {index} in a tree of {size}")
    at, last, found = index, size - 1, leaf
    for node in proof:
        if last == 0:
            raise NotAuthentic("inclusion proof is too long")
        if at % 2 or at == last:
            found = node_hash(node, found)
            while at % 2 == 0 and at:
                at, last = at >> 1, last >> 1
        else:
            found = node_hash(found, node)
        at, last = at >> 1, last >> 1
    if last or found != root:
        raise NotAuthentic("inclusion proof does not lead to the root")


def verify_consistency(
    first: int, second: int, first_root: bytes, second_root: bytes, proof: Sequence[bytes]
) -> None:
    """Raise NotAuthentic unless the tree of ``first`` leaves is a beginning of that of ``second``."""
    wrong = NotAuthentic("consistency proof does not lead to both roots")
    if not 1 <= first <= second:
        raise NotAuthentic(f"consistency proof: no tree of {first} in one of {second}")
    if first == second:
        if proof or first_root != second_root:
            raise wrong
        return
    path = [first_root, *proof] if first & (first - 1) == 0 else list(proof)
    if not path:
        raise wrong
    at, last = first - 1, second - 1
    while at % 2:
        at, last = at >> 1, last >> 1
    old = new = path[0]
    for node in path[1:]:
        if last == 0:
            raise wrong
        if at % 2 or at == last:
            old, new = node_hash(node, old), node_hash(node, new)
            while at % 2 == 0 and at:
                at, last = at >> 1, last >> 1
        else:
            new = node_hash(new, node)
        at, last = at >> 1, last >> 1
    if last or old != first_root or new != second_root:
        raise wrong


def _split(size: int) -> int:
    """Return the greatest power of two below ``size``, which is 2 or more."""
    return 1 << (size - 1).bit_length() - 1
