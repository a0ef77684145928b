"""The rules of the house that no linter knows, read from the source itself."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("storage", "pitr", "verifiers", "cli")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
LINES_MAX = 400
# One file and a program of its own, so that an auditor can read all of it.
AUDITOR = "verifiers/pitr_audit.py"
AUDITOR_LINES_MAX = 600
FUNCTION_LINES_MAX = 60

# Whoever decides gets the time, the randomness and the surroundings as arguments.
DECISIONS = (
    "pitr/backup_choice.py",
    "pitr/commits_around.py",
    "pitr/derived/policy.py",
    "pitr/derived/rdb.py",
    "pitr/derived/restore_words.py",
    "pitr/derived/snapshot_record.py",
    "pitr/derived/topology.py",
    "pitr/derived/unknowable.py",
    "pitr/errors.py",
    "pitr/layout.py",
    "pitr/lease_terms.py",
    "pitr/planner.py",
    "pitr/postgres/page.py",
    "pitr/postgres/summaries.py",
    "pitr/recovery.py",
    "pitr/restore_plan.py",
    "pitr/retention.py",
    "pitr/retention_proof.py",
    "pitr/catalogue/expiry_record.py",
    "pitr/stop.py",
    "pitr/strain.py",
    "pitr/survey.py",
    "pitr/targets.py",
    "pitr/throttle.py",
    "pitr/timeline_causes.py",
    "pitr/timeline_map.py",
    "pitr/timeline_spans.py",
    "pitr/wal_path.py",
    "pitr/wal_runs.py",
    "pitr/wal_sources.py",
    "pitr/wal_walk.py",
    "pitr/catalogue/records.py",
    "pitr/catalogue/lease_record.py",
    "pitr/catalogue/backup_record.py",
    "pitr/catalogue/wal_records.py",
    "pitr/wal",
)
SURROUNDINGS = re.compile(
    r"(?:datetime|date|Instant|ZonedDateTime|SystemDateTime)\.(?:now|utcnow|today|today_in_system_tz|now_in_system_tz)"
    r"|time\.(?:time|monotonic|perf_counter|time_ns|monotonic_ns|localtime|gmtime|sleep)"
    r"|os\.(?:environ|getenv|environb|urandom|getcwd|stat|open|listdir|scandir)(?:\..*)?"
    r"|random\..*|secrets\.token.*|uuid\.uuid.*|open|input"
)
# In all of pitr: only the shell reads these.
ENVIRONMENT = re.compile(r"os\.(?:environ|environb|getenv)(?:\..*)?|sys\.argv|input")

TEXT_SUFFIXES = {
    "",
    ".py",
    ".md",
    ".toml",
    ".cfg",
    ".ini",
    ".txt",
    ".lock",
    ".sh",
    ".sql",
    ".yml",
    ".yaml",
    ".json",
}
MACHINE_PATH = re.compile(
    r"/(?:root|work|opt)/[A-Za-z0-9_.-]+|/home/[a-z][A-Za-z0-9_-]*/|/Users/[A-Za-z]|/tmp/(?!pitr)[A-Za-z0-9_-]+/"
)
REGISTRY_HOST = re.compile(
    r"pypi\.org|pythonhosted\.org|proxy\.golang\.org|sum\.golang\.org|repo1?\.maven|--(?:extra-)?index-url|--find-links"
)


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _dotted(node: ast.AST) -> str | None:
    """Return ``a.b.c`` for such an expression."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        inner = _dotted(node.value)
        return None if inner is None else f"{inner}.{node.attr}"
    return None


def _uses(path: Path, forbidden: re.Pattern[str]) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        candidate = node.func if isinstance(node, ast.Call) else node
        if isinstance(candidate, ast.Name) and not isinstance(node, ast.Call):
            continue
        dotted = _dotted(candidate)
        if dotted is None:
            continue
        # `datetime.datetime.now` is also `datetime.now`.
        for text in (dotted, dotted.partition(".")[2]):
            if forbidden.fullmatch(text):
                yield f"{_name(path)}:{node.lineno}: {dotted}"


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_a_module_stays_short_and_a_function_fits_on_a_screen(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= (AUDITOR_LINES_MAX if _name(path) == AUDITOR else LINES_MAX)
    long = [
        f"{node.name}: {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno + 1 > FUNCTION_LINES_MAX
    ]
    assert not long


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_a_module_says_what_it_is(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    if path.name == "__init__.py":
        assert len(tree.body) == 1, "a package's __init__ holds a docstring only"
    elif _name(path) != AUDITOR:
        future = [
            node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module == "__future__"
        ]
        assert future, "from __future__ import annotations"


def test_only_the_shell_prints() -> None:
    found = [
        f"{_name(path)}:{node.lineno}"
        for path in MODULES
        if not path.is_relative_to(ROOT / "cli") and _name(path) != AUDITOR
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and _dotted(node.func) in {"print", "sys.stdout.write", "sys.stderr.write"}
    ]
    assert not found


def test_decisions_read_no_clock_environment_or_random_source() -> None:
    paths = [
        path
        for place in DECISIONS
        for path in ([ROOT / place] if place.endswith(".py") else sorted((ROOT / place).rglob("*.py")))
        if path.is_file()
    ]
    assert len(paths) > 10
    assert not [use for path in paths for use in _uses(path, SURROUNDINGS)]


def test_only_the_shell_reads_the_environment() -> None:
    inner = [path for path in MODULES if not path.is_relative_to(ROOT / "cli")]
    assert not [use for path in inner for use in _uses(path, ENVIRONMENT)]


def _owned() -> list[Path]:
    """Return the files of the project: its folders, and what lies beside them."""
    folders = [*PACKAGES, "tests", "docs", "examples", "benchmarks", ".ci"]
    inner = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    # In a second work tree ".git" is a file, which names a path of its machine.
    beside = [path for path in ROOT.iterdir() if path.name != ".git"]
    return [path for path in [*beside, *inner] if path.is_file() and "__pycache__" not in path.parts]


def test_no_path_of_one_machine_and_no_registry_is_in_the_tree() -> None:
    found = []
    for path in _owned():
        if path.suffix not in TEXT_SUFFIXES or path == Path(__file__):
            continue
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            for forbidden in (MACHINE_PATH, REGISTRY_HOST):
                match = forbidden.search(line)
                if match:
                    found.append(f"{_name(path)}:{number}: {match[0]}")
    assert not found


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-test.lock"])
def test_every_locked_requirement_has_its_hashes(lock: str) -> None:
    text = (ROOT / lock).read_text()
    entries = re.split(r"\n(?=[a-z0-9])", text[text.index("\n", text.index("#    make lock")) + 1 :])
    assert len(entries) > 20
    assert not [
        entry.split(" ")[0] for entry in entries if "--hash=sha256:" not in entry or "==" not in entry
    ]


def test_the_test_lock_holds_the_other_one_in_the_same_versions() -> None:
    def pins(lock: str) -> set[str]:
        return set(re.findall(r"^([a-z0-9][^ ]*==[^ ]+)", (ROOT / lock).read_text(), re.MULTILINE))

    assert pins("requirements.lock") < pins("requirements-test.lock")


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-test.lock"])
def test_boto3_comes_without_its_second_client(lock: str) -> None:
    # Wherever awscrt is, boto3 signs through it: more CPU for each put, and 38 MB more in each set-up.
    assert not re.findall(r"^awscrt\b", (ROOT / lock).read_text(), re.MULTILINE)
