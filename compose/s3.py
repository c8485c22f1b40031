"""An S3 server for developing and testing: moto's, in a virtual environment of its own, holding all objects in memory.

Its pins fight with those of the S3 client that the workflows use, so the two never share an environment.
"""

from __future__ import annotations

import hashlib
import http.client
import shutil
import sys
import tempfile
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from compose._errors import ServerFailed, ServerMissing
from compose.jars import TEMPLATES, cache_directory, locked, remove_left_over
from compose.process import run_tool
from compose.server import ANSWER_SECONDS, Server

LOCK = TEMPLATES / "s3-requirements.lock"
MAKE_SECONDS = 60.0
INSTALL_SECONDS = 900.0
"""10 s were seen; a slow index takes minutes."""


class S3Server(Server):
    """One server without accounts: any key and secret are taken. Objects are gone when it stops.

    Its URL is what clients call the endpoint.
    """

    name = "s3"

    def prepare(self) -> None:
        """Make the environment, once per machine and Python."""
        _ = self._python

    def url(self, port: int) -> str:
        """Endpoint address."""
        return f"http://127.0.0.1:{port}"

    def configure(self, ports: Mapping[str, int]) -> list[str]:
        """Nothing to write; `-X` carries the directory, by which the process is known."""
        return [
            str(self._python), "-X", f"adsindex.directory={self.directory}", "-m", "moto.server",
            "--host", "127.0.0.1", "--port", str(ports["port"]),
        ]  # fmt: skip

    def answers(self, port: int) -> bool:
        """Ask for the list of buckets."""
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_SECONDS)
        try:
            connection.request("GET", "/")
            return b"ListAllMyBucketsResult" in connection.getresponse().read()
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    @cached_property
    def _python(self) -> Path:
        return environment() / "bin" / "python"


def environment() -> Path:
    """Return the environment with the server, named by the lock file's hash and Python's version.

    Made beside and renamed, so that a kill leaves nothing half-made; one process makes it while others wait.
    Raises ServerMissing without Python's venv module, ServerFailed when the packages cannot be installed.
    """
    key = hashlib.sha256(LOCK.read_bytes() + sys.version.encode()).hexdigest()[:16]
    folder = cache_directory() / f"s3-{key}"
    if not folder.is_dir():
        with locked(folder.with_suffix(".lock")):
            if not folder.is_dir():
                _make(folder)
    return folder


def _make(folder: Path) -> None:
    log = folder.with_suffix(".install.log")
    log.unlink(missing_ok=True)
    remove_left_over(folder)
    with tempfile.TemporaryDirectory(prefix=f"{folder.name}.part-", dir=folder.parent) as part:
        made = Path(part, "venv")
        command = [sys.executable, "-m", "venv", str(made)]
        try:
            run_tool(command, log, what="making a virtual environment", seconds=MAKE_SECONDS, cwd=Path(part))
        except ServerFailed as error:
            version = f"{sys.version_info.major}.{sys.version_info.minor}"
            raise ServerMissing(
                f"Python's venv module failed: {error}; install it: "
                f"apt-get install -y --no-install-recommends python{version}-venv",
                (f"python{version}-venv",),
            ) from error
        pip = [str(made / "bin" / "python"), "-m", "pip", "install", "--disable-pip-version-check", "--no-compile"]
        locked_only = ["--require-hashes", "--only-binary", ":all:", "-r", str(LOCK)]
        what = "installing the S3 server (is the package index reachable?)"
        run_tool([*pip, *locked_only], log, what=what, seconds=INSTALL_SECONDS, cwd=Path(part))
        shutil.move(made, folder)
