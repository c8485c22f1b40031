"""Small Java programs on the stack's jars: compiled at first use, kept by what they were made of."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from compose import ServerMissing
from compose.hbase import JAVA_17, class_path, jars
from compose.install import install, may_install
from compose.jars import cache_directory, find_java, locked

_COMPILE_S = 300.0
"""Some seconds on an idle machine."""


class CompileError(Exception):
    """Raised when javac refuses a program; has its messages."""


def java_command(source: Path, conf: Path, arguments: Sequence[str], flags: Sequence[str] = ()) -> list[str]:
    """Return the command that runs a program of one file, compiled if need be, with a configuration directory of HBase.

    Raises ServerMissing without a JDK, CompileError.
    """
    path = os.pathsep.join((class_path(), str(_compiled(source)), str(conf)))
    return [find_java(), *JAVA_17, *flags, "-cp", path, source.stem, *arguments]


def _compiled(source: Path) -> Path:
    """Return the directory with the classes of a program."""
    content = source.read_bytes() + b"\0".join(jar.name.encode() for jar in jars())
    target = cache_directory() / f"{source.stem}-{hashlib.sha256(content).hexdigest()[:16]}"
    if target.is_dir():
        return target
    with locked(target.with_suffix(".lock")):
        if not target.is_dir():
            with tempfile.TemporaryDirectory(prefix=f"{target.name}.part-", dir=target.parent) as part:
                classes = Path(part, "classes")
                command = [_javac(), "-d", str(classes), "-cp", class_path(), str(source)]
                done = subprocess.run(command, capture_output=True, text=True, timeout=_COMPILE_S, check=False)
                if done.returncode:
                    raise CompileError(f"javac refused {source} ({done.returncode}): {done.stderr[-2000:]}")
                classes.rename(target)
    return target


def _javac() -> str:
    """Return the compiler beside java, or on the path; installs a JDK when that is allowed. Raises ServerMissing."""
    for attempt in range(2):
        beside = Path(find_java()).resolve().with_name("javac")
        if found := str(beside) if beside.is_file() else shutil.which("javac"):
            return found
        missing = ServerMissing(
            "a Java compiler is needed and was not found; install it: "
            "apt-get install -y --no-install-recommends default-jdk-headless",
            ("default-jdk-headless",),
        )
        if attempt or not may_install():
            raise missing
        install(missing)
    raise AssertionError("the second attempt returns or raises")
