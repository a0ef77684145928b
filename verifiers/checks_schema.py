"""C12, C13 and C18: the schema, what it was made with, and whose it is."""

from __future__ import annotations

from typing import Final

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
_OWNERS: Final = """
SELECT 'relation ' || c.oid::regclass FROM pg_class c
 WHERE NOT EXISTS (SELECT FROM pg_roles r WHERE r.oid = c.relowner)
UNION ALL SELECT 'schema ' || nspname FROM pg_namespace n
 WHERE NOT EXISTS (SELECT FROM pg_roles r WHERE r.oid = n.nspowner)
UNION ALL SELECT 'function ' || p.oid::regprocedure FROM pg_proc p
 WHERE NOT EXISTS (SELECT FROM pg_roles r WHERE r.oid = p.proowner)
UNION ALL SELECT 'grant on ' || c.oid::regclass FROM pg_class c, aclexplode(c.relacl) a
 WHERE a.grantee <> 0 AND NOT EXISTS (SELECT FROM pg_roles r WHERE r.oid = a.grantee)
UNION ALL SELECT 'database ' || datname FROM pg_database d
 WHERE NOT EXISTS (SELECT FROM pg_roles r WHERE r.oid = d.datdba)
UNION ALL SELECT 'membership in role ' || roleid FROM pg_auth_members m
 WHERE NOT EXISTS (SELECT FROM pg_roles r WHERE r.oid = m.roleid)
    OR NOT EXISTS (SELECT FROM pg_roles r WHERE r.oid = m.member)
 ORDER BY 1"""
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
    """C18: nothing belongs to, or is granted to, a role that is not there; the roles are evidence."""

    def judge() -> Judgement:
        faults: list[str] = []
        with server.session() as session:
            roles = session.rows(_ROLES)
        for database in server.databases():
            with server.session(database) as session:
                faults += [f"{database}: {what}" for (what,) in session.rows(_OWNERS, rows_max=1000)]
        superusers = sum(bool(role[1]) for role in roles)
        expected = "every owner and grantee is a role"
        observed = f"{len(roles)} roles, {superusers} of them superusers"
        evidence = "\n".join(repr(tuple(map(str, role))) for role in roles).encode()
        if faults:
            return failed(expected, f"{observed}, {len(faults)} dangling", _some(faults), evidence)
        return passed(expected, observed, evidence)

    return maker.run("C18", _OWNERS + _ROLES, judge)


def _some(faults: list[str]) -> str:
    more = f"; and {len(faults) - _SHOWN_MAX} more" if len(faults) > _SHOWN_MAX else ""
    return "; ".join(faults[:_SHOWN_MAX]) + more
