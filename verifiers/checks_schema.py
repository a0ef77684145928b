"""C12, C13 and C18: the schema, what it was made with, and whose it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pitr.postgres.scratch_session import ScratchSession
from verifiers.check import CheckResult, Outcome
from verifiers.check_maker import CheckMaker, Judgement, failed, passed
from verifiers.scratch_server import ScratchServer

# Newer minor releases put a random word there, so that no text in a dump can become a command of psql's.
_RANDOM_LINE: Final = rb"\\(?:un)?restrict "
_SHOWN_MAX: Final = 8
_EXTENSIONS: Final = """
SELECT e.extname, e.extversion,
       (SELECT count(*) FROM pg_available_extension_versions v
         WHERE v.name = e.extname AND v.version = e.extversion) AS has_version,
       (SELECT count(*) FROM pg_available_extensions a WHERE a.name = e.extname) AS is_there
  FROM pg_extension e ORDER BY 1"""
_COLLATIONS: Final = """
SELECT n.nspname || '.' || c.collname, c.collversion, pg_collation_actual_version(c.oid)
  FROM pg_collation c JOIN pg_namespace n ON n.oid = c.collnamespace
 WHERE c.collversion IS NOT NULL
   AND c.collversion IS DISTINCT FROM pg_collation_actual_version(c.oid)
   AND EXISTS (SELECT FROM pg_depend d WHERE d.refclassid = 'pg_collation'::regclass AND d.refobjid = c.oid)
 ORDER BY 1"""
_DATABASE_COLLATION: Final = """
SELECT 'database ' || datname, datcollversion, pg_database_collation_actual_version(oid)
  FROM pg_database WHERE datname = current_database() AND datcollversion IS NOT NULL
   AND datcollversion IS DISTINCT FROM pg_database_collation_actual_version(oid)"""
# Each column of PostgreSQL's own tables that names roles: as its list of foreign keys has it (owners, members
# policies, user mappings, settings), and each with grants.  Not the grants that an extension came with, which
# DROP ROLE forgot before 17, nor who granted a membership, which it forgot before 16.
_ROLE_COLUMNS: Final = """
SELECT c.relname, quote_ident(c.relname), quote_ident(a.attname), a.atttypid = 'aclitem[]'::regtype,
       coalesce(k.is_array, false), coalesce(k.is_opt, false), c.relisshared,
       (SELECT 'x.' || quote_ident(n.attname) FROM pg_attribute n
         WHERE n.attrelid = c.oid AND n.attnum > 0 AND n.atttypid = 'name'::regtype ORDER BY n.attnum LIMIT 1)
  FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
  LEFT JOIN pg_get_catalog_foreign_keys() k
         ON k.fktable = c.oid AND k.fkcols = ARRAY[a.attname::text] AND k.pktable = 'pg_authid'::regclass
 WHERE c.relnamespace = 'pg_catalog'::regnamespace AND c.relkind = 'r' AND c.relname <> 'pg_init_privs'
   AND (k.fktable IS NOT NULL OR a.atttypid = 'aclitem[]'::regtype)
   AND NOT (c.relname = 'pg_auth_members' AND a.attname = 'grantor'
            AND current_setting('server_version_num')::int < 160000)
 ORDER BY 1, 3"""
# What a row of them is called; of any other its name, or its place.
_CALLED: Final = {
    "pg_class": "x.oid::regclass",
    "pg_proc": "x.oid::regprocedure",
    "pg_attribute": "x.attrelid::regclass || '.' || quote_ident(x.attname)",
    "pg_default_acl": "x.oid",
    "pg_auth_members": "x.roleid",
}
_NO_ROLE: Final = "NOT EXISTS (SELECT FROM pg_roles r WHERE r.oid = {})"
_DANGLING_MAX: Final = 1000
_ROLES: Final = """
SELECT r.rolname, r.rolsuper, r.rolcreaterole, r.rolcreatedb, r.rolreplication, r.rolbypassrls, r.rolcanlogin,
       coalesce((SELECT string_agg(g.rolname, ',' ORDER BY g.rolname) FROM pg_auth_members m
                   JOIN pg_roles g ON g.oid = m.roleid WHERE m.member = r.oid), '')
  FROM pg_roles r WHERE r.rolname !~ '^pg_' ORDER BY 1"""


def schema_digest(server: ScratchServer) -> tuple[bytes | None, int, str]:
    """Return the digest of the whole schema, its size, and what was said where it cannot be read.

    No secret is in it: roles come without their passwords.  Raises ToolFailed.
    """
    words = ["--schema-only", "--no-role-passwords", "--no-comments", "-l", "template1"]
    run = server.run_tool("pg_dumpall", *server.connection_words, *words, drop=_RANDOM_LINE)
    return (run.sha256 if run.exit_code == 0 else None), run.size_bytes, run.said


def check_schema(server: ScratchServer, maker: CheckMaker) -> CheckResult:
    """C12: every definition can be read.  Whether it is the source's is C11's part, at a fingerprint."""

    def judge() -> Judgement:
        digest, size_bytes, said = schema_digest(server)
        expected = "pg_dumpall --schema-only ends with exit code 0"
        if digest is None:
            return failed(expected, "it does not", said)
        if not size_bytes:
            return failed(expected, "exit code 0", "it printed nothing")
        return passed(expected, f"exit code 0, {size_bytes} bytes", digest=digest)

    return maker.run("C12", "pg_dumpall --schema-only --no-role-passwords", judge, version=server.version)


def check_versions(server: ScratchServer, maker: CheckMaker) -> CheckResult:
    """C13.  A collation of another version is a warning: indexes may be in an order that is none."""

    def judge() -> Judgement:
        missing: list[str] = []
        other: list[str] = []
        count = 0
        for database in server.databases():
            with server.session(database) as session:
                for name, version, has_version, is_there in session.rows(_EXTENSIONS):
                    count += 1
                    if not is_there:
                        missing.append(f"{database}: extension {name} {version} is not installed here")
                    elif not has_version:
                        other.append(f"{database}: extension {name} {version} has no such version here")
                for name, made, actual in [*session.rows(_COLLATIONS), *session.rows(_DATABASE_COLLATION)]:
                    other.append(f"{database}: {name} was made with {made}, here it is {actual}")
        expected = "every extension and collation as it was made"
        observed = f"{count} extensions"
        faults = missing + other
        evidence = "\n".join([observed, *faults]).encode()
        if missing:
            return failed(expected, f"{observed}, {len(missing)} missing", _some(faults), evidence)
        if other:
            said = f"{observed}, {len(other)} of other versions"
            return Judgement(Outcome.WARNED, expected, said, _some(other), evidence)
        return passed(expected, observed, evidence)

    return maker.run("C13", _EXTENSIONS + _COLLATIONS + _DATABASE_COLLATION, judge)


def check_roles(server: ScratchServer, maker: CheckMaker) -> CheckResult:
    """C18: nothing belongs to, or is granted to or by, a role that is not there; the roles are evidence."""

    def judge() -> Judgement:
        faults: list[str] = []
        with server.session() as session:
            roles = session.rows(_ROLES)
            columns = [_RoleColumn.of(row) for row in session.rows(_ROLE_COLUMNS)]
            faults += _dangling(session, [one for one in columns if one.is_shared])
        own = [one for one in columns if not one.is_shared]
        for database in server.databases():
            with server.session(database) as session:
                faults += [f"{database}: {what}" for what in _dangling(session, own)]
        superusers = sum(bool(role[1]) for role in roles)
        expected = "every owner and grantee is a role"
        observed = f"{len(roles)} roles, {superusers} of them superusers; {len(columns)} columns name roles"
        evidence = "\n".join(repr(tuple(map(str, role))) for role in roles).encode()
        if faults:
            return failed(expected, f"{observed}, {len(faults)} dangling", _some(faults), evidence)
        return passed(expected, observed, evidence)

    return maker.run("C18", _ROLE_COLUMNS + _ROLES, judge)


@dataclass(frozen=True, slots=True)
class _RoleColumn:
    """A column that names roles; ``called`` is what says which row it is of."""

    table: str
    column: str
    has_grants: bool
    is_array: bool
    may_be_none: bool
    is_shared: bool
    called: str

    @classmethod
    def of(cls, row: tuple[object, ...]) -> _RoleColumn:
        name, table, column, has_grants, is_array, may_be_none, is_shared, named = row
        called = _CALLED.get(str(name), str(named or "x.ctid"))
        return cls(str(table), str(column), bool(has_grants), bool(is_array), bool(may_be_none),
                   bool(is_shared), called)  # fmt: skip

    def query(self) -> str:
        """Return what finds the rows that name a role which is not there."""
        said = f"SELECT '{self.table}.{self.column} of ' || {self.called}"
        if self.has_grants:
            grantee, grantor = _NO_ROLE.format("a.grantee"), _NO_ROLE.format("a.grantor")
            source = f"pg_catalog.{self.table} x, aclexplode(x.{self.column}) a"
            return f"{said} FROM {source} WHERE (a.grantee <> 0 AND {grantee}) OR {grantor}"
        role, source = f"x.{self.column}", f"pg_catalog.{self.table} x"
        if self.is_array:
            role, source = "u.role", f"{source}, unnest(x.{self.column}) u(role)"
        some = f"{role} <> 0 AND " if self.may_be_none else ""
        return f"{said} FROM {source} WHERE {some}{_NO_ROLE.format(role)}"


def _dangling(session: ScratchSession, columns: list[_RoleColumn]) -> list[str]:
    statement = " UNION ALL ".join(one.query() for one in columns)
    return [str(what) for (what,) in session.rows(f"{statement} ORDER BY 1", rows_max=_DANGLING_MAX)]


def _some(faults: list[str]) -> str:
    more = f"; and {len(faults) - _SHOWN_MAX} more" if len(faults) > _SHOWN_MAX else ""
    return "; ".join(faults[:_SHOWN_MAX]) + more
