"""The errors of the domain.  Leaves name the condition, and so what to do about it.

``message`` follows PostgreSQL's style: lower case, no full stop.  ``detail`` gives the
facts, ``hint`` what to do next; the CLI prints the three as *what*, *why*, *next*.
None of them ever holds a secret.
"""

from __future__ import annotations


class PitrError(Exception):
    """Base of all errors of the domain."""

    def __init__(self, message: str, *, detail: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail
        self.hint = hint

    @property
    def in_one_line(self) -> str:
        """Message and detail, for where there is no room for three lines."""
        return "; ".join(part for part in (self.message, self.detail) if part)


class MalformedValue(PitrError, ValueError):
    """A text or bytes do not have the form that they must have.  Repeating will not help."""


class TargetRefused(PitrError):
    """The recovery target is ambiguous, in the future or not restorable.  Nothing was written."""


class WalMissing(PitrError):
    """WAL that the plan needs is in no region.  A hole, never to be taken for the end."""


class ArchiveDiverged(PitrError):
    """The server's WAL differs from what is archived under the same name: two writers, or a fork.

    A person must act; nothing was overwritten.
    """


class NotAuthentic(PitrError):
    """A signature, tag, key commitment or context is wrong.  The bytes must not be used."""


class NameTaken(PitrError):
    """Under the name of an object too many regions hold something that no writer of the archive put."""


class NoGoodCopy(NotAuthentic):
    """Every region that answered has a damaged copy of an object, or none; another one may be got back."""


class KeyNotCommitted(NotAuthentic):
    """A container was not made with this data key in this context; its commitment says so."""


class KeyMissing(PitrError):
    """No identity at hand opens this envelope, or an identity or key file cannot be read."""


class ServerRefused(PitrError):
    """PostgreSQL says no: permission, setting or state.  A person must act."""


class ServerUnavailable(PitrError):
    """PostgreSQL gave no usable answer in time.  The call may be repeated."""


class BackupFailed(PitrError):
    """The base backup did not complete.  Nothing lists it as good; a new one may be started at once."""


class RestoreRefused(PitrError):
    """The restore would write over something, or lacks room.  Nothing was written."""


class RecoveryFailed(PitrError):
    """Recovery stopped elsewhere than planned, or not at all.  The directory must not be promoted."""


class ExpiryRefused(PitrError):
    """Expiry would lose something, or a sign of damage freezes it.  Nothing was deleted."""


class AlreadyRunning(PitrError):
    """Another run holds the lock or the lease.  Try again when it has ended."""


class DerivedUnavailable(PitrError):
    """A server of derived state gave no usable answer in time.  What it holds is unknown."""


class DerivedRefused(PitrError):
    """A server of derived state says no: permission, setting or state.  A person must act."""


class DerivedInPart(PitrError):
    """Something of the derived state was not reached, or changed meanwhile.  Nothing is claimed of it."""


class NotInitialised(PitrError):
    """The repository, slot, key or catalogue that the command needs does not exist yet."""
