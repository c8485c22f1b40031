"""Install missing programs with apt, when the user says so."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

from compose._errors import ServerFailed, ServerMissing

INSTALL_SECONDS = 900.0
LOCK_SECONDS = 300
"""How long to wait for another apt-get on the machine."""


def may_install() -> bool:
    """Return whether ADSINDEX_STACK_INSTALL=1 allows to install packages."""
    return os.environ.get("ADSINDEX_STACK_INSTALL", "") == "1"


def install(missing: ServerMissing) -> None:
    """Install the packages that an error names. Raises the error itself if apt cannot help."""
    if not missing.packages or not shutil.which("apt-get"):
        raise missing
    if os.geteuid() != 0:
        raise ServerMissing(f"{missing} (only root can; you are not)", missing.packages)
    sys.stderr.write(f"adsindex: installing {' '.join(missing.packages)} with apt-get\n")
    options = ["-q", "-y", "-o", f"DPkg::Lock::Timeout={LOCK_SECONDS}"]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for arguments in (["update"], ["install", "--no-install-recommends", *missing.packages]):
        done = subprocess.run(
            ["apt-get", *options, *arguments], env=environment, stdin=subprocess.DEVNULL, capture_output=True,
            text=True, timeout=INSTALL_SECONDS, check=False,
        )  # fmt: skip
        if done.returncode:
            lines = "\n".join((done.stdout + done.stderr).splitlines()[-12:])
            raise ServerFailed(f"apt-get {' '.join(arguments)} failed (exit {done.returncode}):\n{lines}")
