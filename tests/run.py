"""`adsindex test`: format, lint, types and tests, in this order; the first failure is the exit code, all are run.

Spark's tests are run apart, in CI and by `adsindex test --spark`: pyspark, half a gigabyte, is installed meanwhile into
`.venv-spark`, which is put before the environment of the other tests.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from compose import Stack, StackError

ROOT = Path(__file__).resolve().parent.parent
SPARK_LOCK = ROOT / "requirements-spark.lock"
SPARK_FOLDER = ROOT / ".venv-spark"
IN_CI = os.environ.get("CI", "").lower() == "true"
PACKAGES = (
    "catalog", "messaging", "storage_repo", "gateway", "updater", "argus", "manas", "batch_workflows", "debug_ui",
    "cli", "compose", "benchmarks",
)  # fmt: skip


def main() -> int:
    """Run the checks; arguments go to pytest, and with any argument only pytest runs. --spark: Spark's tests only."""
    arguments = sys.argv[1:]
    with_spark, only_spark = not arguments and IN_CI, arguments[:1] == ["--spark"]
    python = sys.executable
    workers = str(min(4, max(2, os.cpu_count() or 2)))
    whole = ["-n", workers, "--dist", "loadfile", "--no-loadscope-reorder", "--durations=15"]
    pytest = [python, "-m", "pytest", *(arguments or [*whole, *(["-m", "not spark"] if with_spark else [])])]
    checks = [pytest]
    if not arguments:
        checks = [
            [python, "-m", "ruff", "format", "--check", "."],
            [python, "-m", "ruff", "check", "."],
            [python, "-m", "mypy", *(word for package in PACKAGES for word in ("-p", package))],
            pytest,
        ]
    failed: list[str] = []
    code = 0
    failures = Path(tempfile.mkdtemp(prefix="adsindex-test-")) / "failures"
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "NO_PROXY": "127.0.0.1,localhost",
        "ADSINDEX_TEST_FAILURES": str(failures),
    }  # fmt: skip
    installing = Spark(environment) if with_spark or only_spark else None
    if installing is not None:
        checks = checks if with_spark else []
    if os.geteuid() == 0 and shutil.which("apt-get"):
        environment.setdefault("ADSINDEX_STACK_INSTALL", "1")
    if not arguments:
        provision(may_apt=environment.get("ADSINDEX_STACK_INSTALL") == "1")
    for command in checks:
        started = time.monotonic()
        name = " ".join(command[2:4])
        result = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
        sys.stderr.write(f"adsindex test: {name}: exit {result} after {time.monotonic() - started:.0f} s\n")
        if result:
            failed.append(name)
            code = code or result
    if installing is not None and (result := installing.test(arguments[1:])):
        failed.append("Spark's tests")
        code = code or result
    if failures.exists():
        sys.stderr.write(f"adsindex test: these failed:\n{failures.read_text()}")
    shutil.rmtree(failures.parent)
    if failed:
        sys.stderr.write(f"adsindex test: FAILED: {', '.join(failed)}\n")
    return code


class Spark:
    """pyspark in a folder of its own, installed beside the other checks; then its tests."""

    def __init__(self, environment: dict[str, str]) -> None:
        """Begin to install what the lock file says, unless it is there."""
        self._environment = environment
        self._folder = SPARK_FOLDER / hashlib.sha256(SPARK_LOCK.read_bytes() + sys.version.encode()).hexdigest()[:16]
        self._part = self._folder.with_suffix(f".part-{os.getpid()}")
        self._log = self._folder.with_suffix(".log")
        self._process: subprocess.Popen[bytes] | None = None
        if self._folder.is_dir():
            return
        SPARK_FOLDER.mkdir(exist_ok=True)
        # There is no wheel of pyspark: one is built, by the setuptools that the test environment has.
        command = [
            sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-deps", "--no-build-isolation",
            "--no-compile", "--require-hashes", "--target", str(self._part), "-r", str(SPARK_LOCK),
        ]  # fmt: skip
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)

    def test(self, arguments: list[str]) -> int:
        """Wait until it is installed, and run its tests; return the exit code."""
        started = time.monotonic()
        if self._process is not None:
            if self._process.wait():
                sys.stderr.write(f"adsindex test: pyspark was not installed; see {self._log}\n")
                return 1
            if self._folder.is_dir():  # another `test` was quicker
                shutil.rmtree(self._part)
            else:
                self._part.rename(self._folder)
        installed = time.monotonic()
        path = os.pathsep.join((str(ROOT), str(self._folder)))
        command = [sys.executable, "-m", "pytest", "-m", "spark", *(arguments or ["tests/batch_workflows"])]
        result = subprocess.run(
            command, cwd=ROOT, env={**self._environment, "PYTHONPATH": path}, check=False
        ).returncode
        sys.stderr.write(
            f"adsindex test: Spark's tests: exit {result} after {time.monotonic() - installed:.0f} s, and "
            f"{installed - started:.0f} s of waiting for the installation\n"
        )
        return result


def provision(*, may_apt: bool) -> None:
    """Get the programs of the real servers once, before the tests' workers all ask for them.

    Tests without their server skip loudly, in CI they fail; set ADSINDEX_STACK_INSTALL=0 to install nothing.
    """
    started = time.monotonic()
    for name in ("mysql", "kafka"):
        try:
            Stack(ROOT).prepare([name], may_apt=may_apt)
        except StackError as error:
            sys.stderr.write(f"adsindex test: no {name} for the tests: {error}\n")
    sys.stderr.write(f"adsindex test: servers provided after {time.monotonic() - started:.0f} s\n")


if __name__ == "__main__":
    raise SystemExit(main())
