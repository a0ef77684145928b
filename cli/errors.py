"""Exit codes and error numbers: one table from error classes to what a caller of ``pitr`` sees.

The codes are published (docs/exit-codes.md is made from this table, and a test compares
them): scripts and service managers rely on them, so a code never changes its meaning.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TypeAlias

from pitr import errors as domain
from pitr.events import broker, gaps, refusals
from storage import store


class ExitCode(IntEnum):
    """What the exit status of ``pitr`` means; any other value is a failure."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    PARTIAL = 3
    NOT_RESTORABLE = 4
    THRESHOLD = 5
    LOCKED = 6
    NOT_VERIFIED = 7
    KEY = 8
    STORAGE = 9
    NOT_INITIALISED = 10
    INTERRUPTED = 130


EXIT_MEANINGS: dict[ExitCode, str] = {
    ExitCode.OK: "done",
    ExitCode.FAILURE: "failed",
    ExitCode.USAGE: "wrong usage or configuration; nothing was done",
    ExitCode.PARTIAL: "done, but some region or server was missed; the message says what mends it",
    ExitCode.NOT_RESTORABLE: "the recovery target is not restorable, or not clear"
    " (`timeline`: some moment since the oldest backup)",
    ExitCode.THRESHOLD: "a threshold is broken (`status --check-rpo`)",
    ExitCode.LOCKED: "another run holds the lock or the lease",
    ExitCode.NOT_VERIFIED: "something was restored or read, and did not prove right",
    ExitCode.KEY: "a key is missing, or something does not decrypt or verify",
    ExitCode.STORAGE: "storage is unreachable, refuses, or is below quorum",
    ExitCode.NOT_INITIALISED: "not initialised",
    ExitCode.INTERRUPTED: "interrupted",
}


class ConfigRefused(domain.PitrError):
    """The configuration file has mistakes; ``detail`` lists all of them."""


class UsageRefused(domain.PitrError):
    """The command line is wrong, or a needed answer was not given."""


class ThresholdBroken(domain.PitrError):
    """A figure is worse than the caller allows."""


class GapFound(domain.PitrError):
    """Some moment since the oldest backup cannot be restored; the map of timelines is in the result."""


class ChecksFailed(domain.PitrError):
    """A check found something wrong; the findings are in the result."""


class DoctorFailed(domain.PitrError):
    """The doctor found something that keeps the set-up from working."""


class RegionsMissed(domain.PitrError):
    """The work is done at quorum; some region lacks part of it."""


class WaitInterrupted(domain.PitrError):
    """Whoever waited was interrupted; what was waited for goes on elsewhere."""


class ToldAs(domain.PitrError):
    """An error that is shown under the number and exit code of another one."""

    def __init__(self, message: str, *, detail: str, hint: str, number: int, exit_code: ExitCode) -> None:
        super().__init__(message, detail=detail, hint=hint)
        self.number = number
        self.exit_code = exit_code


class DaemonRefused(ToldAs):
    """The daemon answered with an error, which is shown as if it had happened here."""


class SetupRefused(ToldAs):
    """A set-up cannot be made, or not to its end.  The same command may be repeated."""


# By a name of its own, for the rule has a field "type".
ErrorClass: TypeAlias = type[BaseException]


@dataclass(frozen=True, slots=True)
class ErrorRule:
    """How one class of error is shown: its number, its exit code, what to do if the error does not say.

    ``also``: other classes that mean the same to whoever reads it.
    """

    type: ErrorClass
    number: int
    exit_code: ExitCode
    meaning: str
    next: str
    also: tuple[ErrorClass, ...] = ()


# The first digit of the number is the exit code, 0 for 10 (an interruption, 130, is 1013).
RULES: tuple[ErrorRule, ...] = (
    ErrorRule(
        UsageRefused,
        2001,
        ExitCode.USAGE,
        "the command line is wrong or incomplete",
        "see the command's --help",
    ),
    ErrorRule(
        ConfigRefused, 2002, ExitCode.USAGE, "the configuration has mistakes", "correct the configuration"
    ),
    ErrorRule(
        refusals.PlanRefused,
        2003,
        ExitCode.USAGE,
        "the plan is another one, or for elsewhere",
        "pitr events plan",
    ),
    ErrorRule(RegionsMissed, 3001, ExitCode.PARTIAL, "done at quorum; a region was missed", "pitr status"),
    ErrorRule(
        domain.DerivedInPart,
        3005,
        ExitCode.PARTIAL,
        "derived state was not reached as a whole; nothing is claimed of the rest",
        "repeat it when what the message names is there",
        also=(domain.DerivedUnavailable,),
    ),
    ErrorRule(
        domain.TargetRefused,
        4001,
        ExitCode.NOT_RESTORABLE,
        "the target is ambiguous, in the future or not restorable",
        "pitr backups list",
    ),
    ErrorRule(
        domain.WalMissing, 4002, ExitCode.NOT_RESTORABLE, "WAL is missing in every region", "pitr wal list"
    ),
    ErrorRule(
        GapFound,
        4003,
        ExitCode.NOT_RESTORABLE,
        "some moment since the oldest backup cannot be restored",
        "pitr backup",
    ),
    ErrorRule(ThresholdBroken, 5001, ExitCode.THRESHOLD, "a threshold is broken", "pitr status"),
    ErrorRule(
        domain.AlreadyRunning,
        6001,
        ExitCode.LOCKED,
        "another run holds the lock or the lease",
        "wait until it has ended",
    ),
    ErrorRule(
        domain.RecoveryFailed,
        7001,
        ExitCode.NOT_VERIFIED,
        "recovery stopped elsewhere than planned; nothing was promoted",
        "pitr plan TARGET",
    ),
    ErrorRule(
        ChecksFailed, 7002, ExitCode.NOT_VERIFIED, "a check found something wrong", "read the findings above"
    ),
    ErrorRule(
        domain.ExpiryRefused,
        7003,
        ExitCode.NOT_VERIFIED,
        "something freezes expiry, or it would lose something; nothing was deleted",
        "see what the message names; docs/expire.md",
    ),
    ErrorRule(
        domain.NotAuthentic,
        8001,
        ExitCode.KEY,
        "a signature, tag or context is wrong",
        "do not use these bytes; find out who changed them",
        also=(domain.KeyNotCommitted,),
    ),
    ErrorRule(
        domain.KeyMissing,
        8002,
        ExitCode.KEY,
        "no key at hand opens this",
        "give the right identity with --identity FILE",
    ),
    ErrorRule(
        store.CopyDamaged,
        8003,
        ExitCode.KEY,
        "no region has a good copy of an object",
        "pitr catalogue check",
        also=(domain.NoGoodCopy,),
    ),
    ErrorRule(
        store.StoreUnavailable,
        9001,
        ExitCode.STORAGE,
        "too few regions answered",
        "repeat it; to read from those that do answer: --region NAME or --from URL",
    ),
    ErrorRule(
        store.StoreRefused,
        9002,
        ExitCode.STORAGE,
        "a region refuses: permission, quota or lock",
        "pitr doctor",
    ),
    ErrorRule(
        domain.NameTaken,
        9003,
        ExitCode.STORAGE,
        "too many regions hold something else, which no writer put, under the name of an object",
        "remove it there by hand; docs/config-regions.md",
        also=(store.CopyInTheWay,),
    ),
    ErrorRule(
        domain.NotInitialised,
        1,
        ExitCode.NOT_INITIALISED,
        "the configuration, repository, slot, key or catalogue is not there yet",
        "pitr init",
    ),
    ErrorRule(
        DoctorFailed, 1001, ExitCode.FAILURE, "the doctor found a fault", "do what the next: lines above say"
    ),
    ErrorRule(
        domain.ArchiveDiverged,
        1002,
        ExitCode.FAILURE,
        "the server's WAL differs from what is archived",
        "nothing was overwritten; if this server is the right one: pitr adopt --as failover, or --as restore",
    ),
    ErrorRule(domain.ServerRefused, 1003, ExitCode.FAILURE, "PostgreSQL says no", "pitr doctor"),
    ErrorRule(
        domain.ServerUnavailable, 1004, ExitCode.FAILURE, "PostgreSQL gave no answer in time", "pitr doctor"
    ),
    ErrorRule(
        domain.BackupFailed,
        1005,
        ExitCode.FAILURE,
        "the base backup did not complete; nothing lists it",
        "pitr backup",
    ),
    ErrorRule(
        domain.RestoreRefused,
        1006,
        ExitCode.FAILURE,
        "the restore would write over something, or lacks room; nothing was written",
        "choose another directory with --into",
    ),
    ErrorRule(
        store.ObjectConflict,
        1007,
        ExitCode.FAILURE,
        "a key holds other bytes: two writers",
        "look for a second daemon with the same key, and stop it; docs/failover.md",
    ),
    ErrorRule(
        store.ObjectMissing,
        1008,
        ExitCode.FAILURE,
        "an object that something names is in no region",
        "pitr catalogue check",
    ),
    ErrorRule(
        domain.MalformedValue,
        1009,
        ExitCode.FAILURE,
        "something that was read does not have the form that it must have",
        "pitr catalogue check",
    ),
    ErrorRule(
        domain.DerivedRefused,
        1020,
        ExitCode.FAILURE,
        "a server of derived state says no",
        "docs/redis.md lists what its user must be allowed",
    ),
    ErrorRule(
        broker.BrokerUnavailable, 1014, ExitCode.FAILURE, "Kafka gave no answer in time", "pitr doctor"
    ),
    ErrorRule(broker.BrokerRefused, 1015, ExitCode.FAILURE, "Kafka says no", "pitr doctor"),
    ErrorRule(
        broker.OffsetGone,
        4004,
        ExitCode.NOT_RESTORABLE,
        "Kafka no longer has events that a replay needs",
        "read the mirror, or accept the gap by name",
        also=(gaps.GapsFound,),
    ),
    ErrorRule(domain.PitrError, 1010, ExitCode.FAILURE, "another failure", "pitr doctor"),
    ErrorRule(store.StoreError, 1011, ExitCode.FAILURE, "another failure of a store", "pitr doctor"),
    ErrorRule(
        OSError,
        1012,
        ExitCode.FAILURE,
        "the operating system says no",
        "check the path, its owner and the disk",
    ),
    ErrorRule(
        KeyboardInterrupt,
        1013,
        ExitCode.INTERRUPTED,
        "interrupted",
        "the command may be repeated",
        also=(WaitInterrupted,),
    ),
    ErrorRule(
        Exception,
        1099,
        ExitCode.FAILURE,
        "a mistake in pitr itself",
        "repeat with --verbose and report what it prints",
    ),
)


@dataclass(frozen=True, slots=True)
class Failure:
    """An error as it is shown: *what*, *why*, *next*, its number and its exit code."""

    number: int
    exit_code: ExitCode
    message: str
    why: str
    next: str

    @property
    def code(self) -> str:
        """Return the number as it is printed: ``PITR-4001``."""
        return f"PITR-{self.number:04d}"

    def lines(self) -> tuple[str, str, str]:
        """Return the three lines; those after the first of a long *why* are indented."""
        why = self.why.replace("\n", "\n        ")
        return f"error[{self.code}]: {self.message}", f"  why:  {why}", f"  next: {self.next}"


def rule_for(error: BaseException) -> ErrorRule:
    """Return the rule of the error's nearest class."""
    for parent in type(error).__mro__:
        for rule in RULES:
            if parent is rule.type or parent in rule.also:
                return rule
    return RULES[-1]


def describe(error: BaseException) -> Failure:
    """Return how ``error`` is shown."""
    rule = rule_for(error)
    message, detail, hint = str(error) or rule.meaning, None, None
    if isinstance(error, domain.PitrError):
        message, detail, hint = error.message, error.detail, error.hint
    elif rule.type is Exception:
        message = f"{rule.meaning}: {type(error).__name__}: {error}"
    if rule.type is KeyboardInterrupt:
        message = rule.meaning
    if isinstance(error, ToldAs):
        return Failure(error.number, error.exit_code, message, detail or "", hint or rule.next)
    return Failure(
        rule.number, rule.exit_code, message, detail or _cause(error) or rule.meaning, hint or rule.next
    )


def _cause(error: BaseException) -> str | None:
    """Return the text of what lies below, or None; at most three steps, for chains can be long."""
    texts: list[str] = []
    cause = error.__cause__
    while cause is not None and len(texts) < 3:
        if str(cause):
            texts.append(str(cause).strip())
        cause = cause.__cause__
    return "; ".join(texts) or None
