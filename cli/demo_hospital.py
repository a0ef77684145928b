"""The demo's hospital: a small schema, a clerk who works all the while, and the ledger of what was promised.

The clerk writes down a transaction only after the server has acknowledged it, so the ledger is the
judge of the restored cluster: nothing in it may be missing, and nothing else may be there.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psycopg

from pitr.wal.lsn import LSN

CONNECT_TIMEOUT_S = 10
STOP_TIMEOUT_S = 20.0
# About a hundred commits a second: a busy small hospital, and room for the backup on two cores.
PAUSE_S = 0.008
PATIENTS_AT_FIRST = 20_000
_SCHEMA = """
CREATE TABLE patients (
    id bigint PRIMARY KEY, name text NOT NULL, born date NOT NULL, note text NOT NULL);
CREATE TABLE appointments (
    id bigint PRIMARY KEY, patient_id bigint NOT NULL REFERENCES patients,
    at timestamptz NOT NULL, ward text NOT NULL);
CREATE TABLE billing (
    id bigint PRIMARY KEY, appointment_id bigint NOT NULL, cents bigint NOT NULL);
CREATE INDEX ON appointments (patient_id);
"""
_PATIENTS = """
INSERT INTO patients
SELECT n, 'patient ' || n, date '1930-01-01' + (n * 7919 %% 33000)::int,
       repeat(md5(n::text), 8)
  FROM generate_series(1, %s) AS n
"""


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """One transaction that the server acknowledged: visit ``number``, and the WAL that holds it."""

    number: int
    end: LSN
    acknowledged_s: float


@dataclass(frozen=True, slots=True)
class Moment:
    """A moment between two transactions: up to ``last`` was acknowledged, everything else is later."""

    at: datetime
    last: Acknowledged
    count: int


def open_hospital(dsn: str) -> None:
    """Make the tables and the first patients."""
    with _connect(dsn) as connection:
        connection.execute(_SCHEMA)
        connection.execute(_PATIENTS, [PATIENTS_AT_FIRST])
        connection.execute("VACUUM ANALYZE")


class Clerk:
    """Makes appointments in a thread, one transaction after the other.  ``ledger``: a JSON line for each."""

    def __init__(self, dsn: str, ledger: Path) -> None:
        self._dsn = dsn
        self._ledger_path = ledger
        self._between = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="clerk", daemon=True)
        self._failure: Exception | None = None
        self.acknowledged: list[Acknowledged] = []

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End after the transaction under way.  Raises what the clerk's work failed with."""
        self._stopping.set()
        self._thread.join(STOP_TIMEOUT_S)
        if self._failure is not None:
            raise self._failure

    def stop_quietly(self) -> None:
        """End, also when the server is gone; for cleaning up."""
        self._stopping.set()
        self._thread.join(STOP_TIMEOUT_S)

    def moment(self) -> Moment:
        """Return a moment of the server's clock that lies between two transactions."""
        with self._between, _connect(self._dsn) as connection:
            # Commit times have microseconds; a moment apart on both sides leaves no doubt what is before.
            time.sleep(0.005)
            row = connection.execute("SELECT clock_timestamp()").fetchone()
            time.sleep(0.005)
            assert row is not None
            return Moment(row[0].astimezone(UTC), self.acknowledged[-1], len(self.acknowledged))

    def _work(self) -> None:
        try:
            with _connect(self._dsn) as connection, self._ledger_path.open("a", encoding="utf-8") as ledger:
                number = 0
                while not self._stopping.wait(PAUSE_S):
                    number += 1
                    with self._between:
                        done = self._visit(connection, number)
                        self.acknowledged.append(done)
                        record = {
                            "number": done.number,
                            "end": str(done.end),
                            "at": datetime.now(UTC).isoformat(),
                        }
                        ledger.write(json.dumps(record) + "\n")
                        ledger.flush()
        except Exception as error:  # noqa: BLE001 — the top of a thread: the demo tells of it
            self._failure = error

    def _visit(self, connection: psycopg.Connection, number: int) -> Acknowledged:
        patient = _patient(number)
        with connection.transaction():
            connection.execute(
                "INSERT INTO appointments VALUES (%s, %s, clock_timestamp(), %s)",
                [number, patient, f"ward {number % 7}"],
            )
            connection.execute(
                "INSERT INTO billing VALUES (%s, %s, %s)", [number, number, 100 + number % 9900]
            )
            connection.execute("UPDATE patients SET note = md5(note) WHERE id = %s", [patient])
        row = connection.execute("SELECT pg_current_wal_flush_lsn()::text").fetchone()
        assert row is not None
        return Acknowledged(number, LSN.parse(row[0]), time.monotonic())


def break_things(dsn: str, clerk: Clerk) -> LSN:
    """Do what somebody does on a bad day, amid the clerk's work; return where the WAL of it ends."""
    with _connect(dsn) as connection:
        connection.execute("DELETE FROM appointments")
        # The clerk writes bills, and would only fail without the table.
        clerk.stop()
        connection.execute("DROP TABLE billing")
        row = connection.execute("SELECT pg_current_wal_flush_lsn()::text").fetchone()
    assert row is not None
    return LSN.parse(row[0])


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the restored cluster holds against the ledger."""

    expected: int
    found: int
    missing: int
    unexpected: int
    bills_differ: int
    patients: int
    notes_differ: int

    @property
    def is_right(self) -> bool:
        """Tell whether every acknowledged transaction before the moment is there and nothing after it."""
        wrong = self.missing or self.unexpected or self.bills_differ or self.notes_differ
        return not wrong and self.patients == PATIENTS_AT_FIRST


def judge(dsn: str, acknowledged: list[Acknowledged], moment: Moment) -> Verdict:
    """Compare the restored cluster with the ledger up to the moment."""
    expected = {done.number for done in acknowledged[: moment.count]}
    with _connect(dsn) as connection:
        found = {row[0] for row in connection.execute("SELECT id FROM appointments")}
        bills = {row[0]: row[1] for row in connection.execute("SELECT id, cents FROM billing")}
        notes = {row[0]: row[1] for row in connection.execute("SELECT id, note FROM patients")}
    right = {number: 100 + number % 9900 for number in expected}
    differ = sum(1 for number in right.keys() | bills.keys() if right.get(number) != bills.get(number))
    return Verdict(
        expected=len(expected),
        found=len(found),
        missing=len(expected - found),
        unexpected=len(found - expected),
        bills_differ=differ,
        patients=len(notes),
        notes_differ=sum(1 for patient, note in _notes(expected).items() if notes.get(patient) != note),
    )


def _patient(number: int) -> int:
    """Return whom visit ``number`` is of."""
    return 1 + number * 7919 % PATIENTS_AT_FIRST


def _notes(visits: Iterable[int]) -> dict[int, str]:
    """Return every patient's note after these visits: each visit leaves the MD5 of the one before."""
    notes = {patient: _md5(str(patient)) * 8 for patient in range(1, PATIENTS_AT_FIRST + 1)}
    for number in visits:
        notes[_patient(number)] = _md5(notes[_patient(number)])
    return notes


def _md5(text: str) -> str:
    return hashlib.md5(text.encode("ascii"), usedforsecurity=False).hexdigest()


def _connect(dsn: str) -> psycopg.Connection:
    return psycopg.connect(dsn, autocommit=True, connect_timeout=CONNECT_TIMEOUT_S)
