"""The digest of a body that carries its own proof, so that no two parts of a process hash the same bytes.

A store must not believe a digest that it is given.  But bytes never change: one that was computed
from this very object needs no second computing, in however many regions it is put.
"""

from __future__ import annotations

import hashlib


class BodyDigest(bytes):
    """The SHA-256 of a body, made by ``of`` only.

    It holds the body: where the digest is to outlive it, keep ``bytes(digest)``.
    """

    _body: bytes | None = None

    @classmethod
    def of(cls, body: bytes) -> BodyDigest:
        """Hash ``body``.  Raises TypeError for what could be changed afterwards."""
        if type(body) is not bytes:
            raise TypeError(f"a {type(body).__name__} can change after it was hashed")
        digest = cls(hashlib.sha256(body).digest())
        digest._body = body
        return digest

    def is_proof_for(self, body: bytes) -> bool:
        """Say whether it was computed from this object; an equal one elsewhere in memory is not it."""
        return self._body is body
