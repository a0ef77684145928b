"""The import contracts hold, and they would not if somebody broke them."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import tomllib
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("storage", "pitr", "verifiers", "cli")


def _contracts() -> ConfigParser:
    parser = ConfigParser()
    parser.read(ROOT / ".importlinter")
    return parser


def test_every_package_of_the_wheel_is_under_the_contracts() -> None:
    roots = _contracts()["importlinter"]["root_packages"].split()
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    on_disk = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for package in PACKAGES
        for path in (ROOT / package).rglob("__init__.py")
    }
    assert set(roots) == set(PACKAGES)
    assert sorted(listed) == sorted(on_disk), "pyproject.toml must list every package, and no other"


@pytest.mark.parametrize(
    ("path", "line", "contract"),
    [
        ("storage/store.py", "import pitr.errors", "the arrows go one way"),
        ("pitr/errors.py", "import verifiers", "the arrows go one way"),
        ("pitr/layout.py", "import socket", "decisions do no I/O"),
        ("pitr/wal/lsn.py", "import time", "decisions do no I/O"),
        ("pitr/repository.py", "import boto3", "boto3 lives in storage.s3"),
        ("pitr/layout.py", "import pitr.repository", "in pitr"),
        ("pitr/stranger.py", "", "in pitr"),
    ],
)
def test_a_forbidden_import_breaks_a_contract(path: str, line: str, contract: str, tmp_path: Path) -> None:
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / ".importlinter", tmp_path)
    with (tmp_path / path).open("a") as module:
        module.write(f"\n{line}\n")
    checked = subprocess.run(
        [
            sys.executable,
            "-c",
            "from importlinter.cli import lint_imports_command as run; run()",
            "--no-cache",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert checked.returncode == 1, checked.stdout + checked.stderr
    broken = [text for text in checked.stdout.splitlines() if text.endswith("BROKEN")]
    assert any(text.startswith(contract) or contract in text for text in broken), checked.stdout


def _third_party_imports() -> set[str]:
    names = set()
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    names |= {alias.name.partition(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    names.add(node.module.partition(".")[0])
    return names - set(sys.stdlib_module_names) - set(PACKAGES)


def test_every_library_has_a_home_in_the_contracts() -> None:
    contracts = _contracts()
    homes = {
        name
        for section in contracts.sections()
        if contracts[section].get("type") == "protected"
        for name in contracts[section]["protected_modules"].split()
    }
    assert not _third_party_imports() - homes, "write a contract that says where it lives"
