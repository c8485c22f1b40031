"""Java servers from Maven jars: fetched once per machine, shared by all homes, with a class-data archive."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from compose._errors import ServerFailed, ServerMissing
from compose.process import run_tool

TEMPLATES = Path(__file__).resolve().parent / "templates"
FETCH_SECONDS = 900.0
"""20 s was seen; a slow mirror or a cold Maven installation takes minutes."""
_COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"


def cache_directory() -> Path:
    """Return the user's cache directory for us (XDG base directory specification)."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "adsindex"


def find_java() -> str:
    """Return the java program: of JAVA_HOME, else of PATH. Raises ServerMissing."""
    if home := os.environ.get("JAVA_HOME"):
        java = Path(home) / "bin" / "java"
        if java.is_file():
            return str(java)
        raise ServerMissing(f"JAVA_HOME is {home}, where there is no bin/java; correct or unset it", ())
    if java_on_path := shutil.which("java"):
        return java_on_path
    raise ServerMissing(
        "Java 17 or newer is needed and was not found; install it: "
        "apt-get install -y --no-install-recommends default-jre-headless",
        ("default-jre-headless",),
    )


def fetch_jars(pom: Path) -> list[Path]:
    """Return the jars that a pom names, with all they need, in a fixed order; fetched with Maven on first use.

    The folder is named by the pom's hash and published by a rename, so that a killed download leaves nothing
    half-made; a file lock makes one process fetch while others wait.
    """
    folder = jars_folder(pom)
    if not folder.is_dir():
        with locked(folder.with_suffix(".lock")):
            if not folder.is_dir():
                _fetch(pom, folder)
    return sorted(folder.glob("*.jar"))


def jars_folder(pom: Path) -> Path:
    """Return the folder in which the jars of a pom are, or will be."""
    return cache_directory() / f"{pom.name.split('.')[0]}-{hashlib.sha256(pom.read_bytes()).hexdigest()[:16]}"


def _fetch(pom: Path, folder: Path) -> None:
    maven = shutil.which("mvn")
    if maven is None:
        raise ServerMissing(
            "Maven is needed once to fetch the server's jars and was not found; install it: "
            "apt-get install -y --no-install-recommends maven",
            ("maven",),
        )
    log = folder.with_suffix(".fetch.log")
    log.unlink(missing_ok=True)
    remove_left_over(folder)
    with tempfile.TemporaryDirectory(prefix=f"{folder.name}.part-", dir=folder.parent) as part:
        command = [maven, "-B", "-q", "-f", str(pom), _COPY, f"-DoutputDirectory={part}/jars"]
        run_tool(command, log, what="fetching jars with Maven", seconds=FETCH_SECONDS, cwd=Path(part))
        if not any(Path(part, "jars").glob("*.jar")):
            raise ServerFailed(f"Maven said that all is well and brought no jars; see {log}")
        Path(part, "jars").rename(folder)


def remove_left_over(target: Path) -> None:
    """Remove what a killed maker of `target` left; only for who holds its lock."""
    for part in target.parent.glob(f"{target.name}.part-*"):
        shutil.rmtree(part)


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold a lock between processes while inside; the kernel frees it when we, and the tools we run, are dead."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as handle:
        os.set_inheritable(handle.fileno(), True)
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
