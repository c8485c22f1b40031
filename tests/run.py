"""`adsindex test`: format, lint, types and tests, in this order; the first failure is the exit code, all are run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from compose import Stack, StackError

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = (
    "catalog", "messaging", "storage_repo", "gateway", "updater", "argus", "manas", "batch_workflows", "debug_ui",
    "cli", "compose", "benchmarks",
)  # fmt: skip


def main() -> int:
    """Run the checks; arguments go to pytest, and with any argument only pytest runs."""
    arguments = sys.argv[1:]
    python = sys.executable
    workers = str(min(4, max(2, os.cpu_count() or 2)))
    pytest = [python, "-m", "pytest", *(arguments or ["-n", workers, "--dist", "loadfile", "--no-loadscope-reorder", "--durations=15"])]
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
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_PROXY": "127.0.0.1,localhost"}
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
    if failed:
        sys.stderr.write(f"adsindex test: FAILED: {', '.join(failed)}\n")
    return code


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
