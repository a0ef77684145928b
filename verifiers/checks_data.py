"""C08, C14 and C15: the rows, judged by their indexes, their constraints and the owner's own queries."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import stat
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pitr.errors import PitrError
from pitr.postgres.scratch_session import QueryFailed, ScratchSession
from verifiers.check import CheckResult, Outcome
from verifiers.check_maker import CheckMaker, Judgement, failed, passed
from verifiers.checks_unique import UNIQUE_KEYS, ask_without_indexes, unique_queries
from verifiers.scratch_server import ScratchServer

CONSTRAINTS_MAX: Final = 5000
CONSTRAINT_TIMEOUT_S: Final = 600.0
QUERY_TIMEOUT_S: Final = 300.0
QUERIES_MAX: Final = 200
QUERY_BYTES_MAX: Final = 1 << 20
_SHOWN_MAX: Final = 8
# Half of what PostgreSQL lets a function have.
_ARGUMENTS: Final = 50
_UNIQUE_SINCE: Final = 17
_FOREIGN_TABLE: Final = "f"
_NAME: Final = re.compile(r"[^a-z0-9_-]+")
# A foreign key of a partitioned table speaks for all partitions.  A CHECK is asked of each table with rows
# of its own: those that inherit it have it too, and NO INHERIT says that the others need not hold it.
_CONSTRAINTS: Final = """
SELECT t.relkind::text, c.contype::text, c.conname, c.convalidated,
       CASE t.relkind WHEN 'p' THEN '' ELSE 'ONLY ' END || c.conrelid::regclass::text,
       pg_get_expr(c.conbin, c.conrelid),
       CASE o.relkind WHEN 'p' THEN '' ELSE 'ONLY ' END || c.confrelid::regclass::text, c.confmatchtype::text,
       ARRAY(SELECT quote_ident(a.attname) FROM unnest(c.conkey) WITH ORDINALITY k(n, i)
               JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = k.n ORDER BY k.i),
       ARRAY(SELECT quote_ident(a.attname) FROM unnest(c.confkey) WITH ORDINALITY k(n, i)
               JOIN pg_attribute a ON a.attrelid = c.confrelid AND a.attnum = k.n ORDER BY k.i),
       ARRAY(SELECT 'OPERATOR(' || quote_ident(n.nspname) || '.' || o.oprname || ')'
               FROM unnest(c.conpfeqop) WITH ORDINALITY k(op, i) JOIN pg_operator o ON o.oid = k.op
               JOIN pg_namespace n ON n.oid = o.oprnamespace ORDER BY k.i)
  FROM pg_constraint c JOIN pg_namespace s ON s.oid = c.connamespace
  JOIN pg_class t ON t.oid = c.conrelid LEFT JOIN pg_class o ON o.oid = c.confrelid
 WHERE c.contype IN ('f', 'c') AND c.conparentid = 0 AND NOT (c.contype = 'c' AND t.relkind = 'p')
   AND s.nspname !~ '^pg_' AND s.nspname <> 'information_schema'
 ORDER BY c.conrelid::regclass::text, c.conname"""
_OTHER_INDEXES: Final = """
SELECT m.amname, count(*) FROM pg_class c JOIN pg_am m ON m.oid = c.relam
 WHERE c.relkind = 'i' AND m.amname <> 'btree' GROUP BY 1"""
# What nothing here asks: an exclusion's operators are known to its index alone, and a domain's constraints
# belong to no table.
_NOT_ASKED: Final = """
SELECT count(*) FILTER (WHERE c.contype = 'x'), count(*) FILTER (WHERE c.contypid <> 0)
  FROM pg_constraint c JOIN pg_namespace s ON s.oid = c.connamespace
 WHERE s.nspname !~ '^pg_' AND s.nspname <> 'information_schema'"""
_NOT_NULL: Final = """
SELECT c.oid::regclass::text, array_agg(quote_ident(a.attname) ORDER BY a.attnum)
  FROM pg_class c JOIN pg_namespace s ON s.oid = c.relnamespace
  JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND a.attnotnull AND NOT a.attisdropped
 WHERE c.relkind = 'r' AND s.nspname !~ '^pg_' AND s.nspname <> 'information_schema'
 GROUP BY c.oid ORDER BY 1"""


def check_relations(server: ScratchServer, maker: CheckMaker) -> CheckResult:
    """C08: every table's pages, every B-tree against its table.  The server must take writes."""
    options = [
        "--all",
        "--maintenance-db=template1",
        "--install-missing",
        "--heapallindexed",
        "--parent-check",
    ]
    if server.major >= _UNIQUE_SINCE:
        options.append("--checkunique")

    def judge() -> Judgement:
        expected = "pg_amcheck ends with exit code 0"
        if not _has_amcheck(server):
            reason = "the PostgreSQL programs on this host come without the extension amcheck"
            return Judgement(Outcome.SKIPPED, expected, "not looked at", reason)
        run = server.run_tool("pg_amcheck", *server.connection_words, *options)
        if run.exit_code != 0:
            said = run.output or run.said
            return failed(expected, f"exit code {run.exit_code}", said, digest=run.sha256)
        return passed(expected, "exit code 0", digest=run.sha256)

    return maker.run("C08", "pg_amcheck " + " ".join(options), judge, version=server.version)


def looks_for_duplicates(server: ScratchServer) -> bool:
    """Tell whether C08 finds two rows of one unique key: pg_amcheck can from 17 on.  Raises QueryFailed."""
    return server.major >= _UNIQUE_SINCE and _has_amcheck(server)


def _has_amcheck(server: ScratchServer) -> bool:
    with server.session() as session:
        return bool(session.value("SELECT count(*) FROM pg_available_extensions WHERE name = 'amcheck'"))


def unseen_indexes(server: ScratchServer) -> str | None:
    """Say which indexes C08 says nothing of; None where there is none such.  Raises QueryFailed."""
    counts: Counter[str] = Counter()
    for database in server.databases():
        with server.session(database) as session:
            counts.update({str(kind): int(str(count)) for kind, count in session.rows(_OTHER_INDEXES)})
    if not counts:
        return None
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
    return f"C08 looks into tables and B-trees alone: indexes of other kinds were not looked into: {kinds}"


def check_constraints(server: ScratchServer, maker: CheckMaker, *, asks_unique: bool) -> CheckResult:
    """C14: foreign keys, checks and NOT NULL, asked of all rows; not what was never valid.

    ``asks_unique``: unique keys too, where C08 does not look for duplicates.
    """

    def judge() -> Judgement:
        counts = _Counts()
        for database in server.databases():
            with server.session(database, timeout_s=CONSTRAINT_TIMEOUT_S) as session:
                _ask_constraints(session, database, counts)
                if asks_unique:
                    # A bad index must not be asked about itself.
                    ask_without_indexes(session, shutil.disk_usage(server.data_dir).free)
                    _ask_all(session, database, unique_queries(session), counts)
                _count_others(session, counts)
        expected = "no row that breaks a constraint"
        evidence = "\n".join([counts.observed, *counts.broken, *counts.invalid, *counts.unasked]).encode()
        if counts.broken:
            return failed(
                expected, f"{counts.observed}, {len(counts.broken)} broken", _some(counts.broken), evidence
            )
        doubts = counts.invalid + counts.unasked
        if doubts:
            return Judgement(Outcome.WARNED, expected, counts.observed, _some(doubts), evidence)
        return passed(expected, counts.observed, evidence)

    return maker.run("C14", _CONSTRAINTS + _NOT_NULL + UNIQUE_KEYS, judge)


class _Counts:
    def __init__(self) -> None:
        self.asked = 0
        self.foreign = 0
        self.exclusions = 0
        self.of_domains = 0
        self.broken: list[str] = []
        self.invalid: list[str] = []
        self.unasked: list[str] = []

    @property
    def observed(self) -> str:
        said = f"{self.asked} constraints asked of all rows"
        if self.unasked:
            said += f", {len(self.unasked)} not asked"
        if self.foreign:
            said += f"; {self.foreign} of foreign tables left out: their rows are not in the backup"
        if self.exclusions:
            said += f"; {self.exclusions} EXCLUDE not asked"
        if self.of_domains:
            said += f"; {self.of_domains} of domains not asked"
        return said


def _count_others(session: ScratchSession, counts: _Counts) -> None:
    ((exclusions, of_domains),) = session.rows(_NOT_ASKED)
    counts.exclusions += int(str(exclusions))
    counts.of_domains += int(str(of_domains))


def _ask_constraints(session: ScratchSession, database: str, counts: _Counts) -> None:
    queries: list[tuple[str, str]] = []
    for row in session.rows(_CONSTRAINTS, rows_max=CONSTRAINTS_MAX + 1):
        relkind, kind, name, is_valid, table, expression, other, match, own, their, operators = row
        place = f"{name} of {str(table).removeprefix('ONLY ')}"
        if relkind == _FOREIGN_TABLE:
            # Its rows are another server's, which a scratch server must not ask.
            counts.foreign += 1
            continue
        if not is_valid:
            counts.invalid.append(f"{database}: {place} is NOT VALID: nobody says that it holds")
            continue
        assert isinstance(own, list)
        assert isinstance(their, list)
        assert isinstance(operators, list)
        if kind == "c":
            queries.append((place, f"SELECT 1 FROM {table} WHERE NOT ({expression}) LIMIT 1"))
        else:
            queries.append((place, _orphans(str(table), str(other), own, their, operators, str(match))))
    for table, columns in session.rows(_NOT_NULL, rows_max=CONSTRAINTS_MAX + 1):
        assert isinstance(columns, list)
        # Not IS NULL: the planner takes the constraint's word for it, and looks at no row.
        groups = [columns[at : at + _ARGUMENTS] for at in range(0, len(columns), _ARGUMENTS)]
        nulls = " OR ".join(f"num_nulls({', '.join(group)}) > 0" for group in groups)
        queries.append((f"NOT NULL of {table}", f"SELECT 1 FROM ONLY {table} WHERE {nulls} LIMIT 1"))
    _ask_all(session, database, queries, counts)


def _ask_all(
    session: ScratchSession, database: str, queries: Sequence[tuple[str, str]], counts: _Counts
) -> None:
    """Ask queries for rows that break something, each with what it is of."""
    for number, (place, query) in enumerate(queries):
        if number >= CONSTRAINTS_MAX:
            counts.unasked.append(f"{database}: {len(queries) - number} constraints are past the limit")
            break
        try:
            found = session.rows(query, rows_max=1)
        except QueryFailed as cause:
            counts.unasked.append(f"{database}: {place}: {cause.message}")
            continue
        counts.asked += 1
        if found:
            counts.broken.append(f"{database}: {place}")


def _orphans(
    table: str, other: str, own: Sequence[str], their: Sequence[str], operators: Sequence[str], match: str
) -> str:
    """Return the query for rows without what they refer to; as ri_triggers.c RI_Initial_Check asks it."""
    joined = " AND ".join(
        f"pk.{key} {operator} fk.{column}"
        for column, key, operator in zip(own, their, operators, strict=True)
    )
    glue = " OR " if match == "f" else " AND "
    present = glue.join(f"fk.{column} IS NOT NULL" for column in own)
    return (
        f"SELECT 1 FROM {table} fk LEFT JOIN {other} pk ON {joined}"
        f" WHERE pk.{their[0]} IS NULL AND ({present}) LIMIT 1"
    )


@dataclass(frozen=True, slots=True)
class Assertion:
    """A query of the owner's, which must return no row.  Its first line may be ``-- database: NAME``.

    ``fault``: why the file holds none; then the check fails.
    """

    name: str
    sql: str
    database: str
    fault: str | None = None


def read_assertions(folder: Path | None) -> list[Assertion] | None:
    """Return the queries in ``folder``, by name; None without a folder.

    A file that cannot be read as a query is one that fails.  Raises PitrError without the folder, or if there
    are too many.
    """
    if folder is None:
        return None
    if not folder.is_dir():
        raise PitrError(f"the folder of checks {folder} is not there", hint="set [verify] checks_dir")
    files = sorted(folder.glob("*.sql"))
    if len(files) > QUERIES_MAX:
        raise PitrError(f"{folder} has {len(files)} checks; the limit is {QUERIES_MAX}")
    return [_read_assertion(file) for file in files]


def _read_assertion(file: Path) -> Assertion:
    """Return the query in a file, whatever lies under its name: a pipe is not waited for."""
    name = _NAME.sub("-", file.stem.lower()).strip("-")[:60] or "query"
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as stream:
            is_plain = stat.S_ISREG(os.fstat(descriptor).st_mode)
            content = stream.read(QUERY_BYTES_MAX + 1) if is_plain else b""
    except OSError as cause:
        return Assertion(name, "", "postgres", f"the file cannot be read: {cause.strerror}")
    if not is_plain:
        return Assertion(name, "", "postgres", "it is not a plain file")
    if len(content) > QUERY_BYTES_MAX:
        # Cut, it would be another query.
        return Assertion(name, "", "postgres", f"the file is longer than {QUERY_BYTES_MAX} bytes")
    try:
        sql = content.decode("utf-8")
    except UnicodeDecodeError:
        return Assertion(name, "", "postgres", "the file is not UTF-8")
    line = re.match(r"\s*--\s*database:\s*(\S+)", sql)
    return Assertion(name, sql, line[1] if line else "postgres")


def check_assertions(
    server: ScratchServer, assertions: Sequence[Assertion] | None, maker: CheckMaker
) -> list[CheckResult]:
    """C15, one result for each query; a query that the owner wrote must pass, so each is required.

    None: no folder for them is configured.  One without any has lost them, as by a disk that is not there.
    """
    if assertions is None:
        return [maker.skipped("C15", "no queries of the owner's are configured ([verify] checks_dir)")]
    if not assertions:
        why = "the folder of the owner's queries ([verify] checks_dir) has no *.sql file"
        lost = failed("the owner's queries", "no query", why)
        return [maker.run("C15", "read the owner's queries", lambda: lost, is_required=True)]
    results = []
    seen: dict[str, int] = {}
    for one in assertions:
        seen[one.name] = seen.get(one.name, 0) + 1
        name = one.name if seen[one.name] == 1 else f"{one.name}-{seen[one.name]}"
        results.append(_assert(server, f"C15.{name}", one, maker))
    return results


def _assert(server: ScratchServer, check: str, one: Assertion, maker: CheckMaker) -> CheckResult:
    def judge() -> Judgement:
        if one.fault is not None:
            return failed("a query in the file", "none", one.fault)
        with server.session(one.database, timeout_s=QUERY_TIMEOUT_S, search_path="public") as session:
            # By a cursor, which takes one query and nothing else: neither nothing, nor COPY, nor a SET that
            # would let the next statement write.
            found = list(itertools.islice(session.each_row(one.sql), _SHOWN_MAX))
        expected = f"no row, in database {one.database}"
        if found:
            evidence = "\n".join(repr(tuple(map(str, row))) for row in found).encode()
            count = f"{len(found)} rows" if len(found) < _SHOWN_MAX else f"{len(found)} rows or more"
            # The rows may be somebody's data; the report has their digest.
            return failed(expected, count, "the query returned rows", evidence)
        return passed(expected, "no row", b"")

    return maker.run(check, one.sql, judge, is_required=True)


def _some(faults: Sequence[str]) -> str:
    more = f"; and {len(faults) - _SHOWN_MAX} more" if len(faults) > _SHOWN_MAX else ""
    return "; ".join(faults[:_SHOWN_MAX]) + more
