"""A MariaDB server from Debian packages, set up as the Gateway needs it: row binlog, full images, full metadata."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path

from compose import process
from compose._errors import ServerMissing
from compose.server import ANSWER_SECONDS, Server, fill_template

PACKAGES = ("mariadb-server", "mariadb-client")
INITIALISE_SECONDS = 180.0
"""Making the system tables takes two seconds on a quick disk and a minute on a slow one."""
_SBIN = "/usr/sbin:/usr/local/sbin:/usr/libexec"
"""Where Debian keeps mariadbd; not on every user's PATH."""
_PROTOCOL_10 = 10


class MySqlServer(Server):
    """One server with the database `ads` and the user adsindex; its URL is mysql+pymysql://…@127.0.0.1:PORT/ads."""

    name = "mysql"
    product = "MariaDB"
    options_template, start_sql_template = "my.cnf", "init.sql"

    def prepare(self) -> None:
        """Find the programs."""
        _find("mariadbd")
        _find("mariadb-install-db")

    def url(self, port: int) -> str:
        """SQLAlchemy URL of the database `ads`."""
        return f"mysql+pymysql://adsindex:adsindex@127.0.0.1:{port}/ads"

    def admin_url(self, port: int) -> str:
        """The same as root, whose password only the owner of the home can read."""
        return f"mysql+pymysql://root:{self._root_password()}@127.0.0.1:{port}/mysql"

    def configure(self, ports: Mapping[str, int]) -> list[str]:
        """Write option file and start-up SQL; make the system tables if there are none."""
        options = self.directory / "my.cnf"
        values = {"DIRECTORY": self.directory, "PORT": ports["port"], "USER_LINE": self._user_line()}
        extra = "".join(f"{key}={value}\n" if value else f"{key}\n" for key, value in self.overrides.items())
        fill_template(self.options_template, options, values, extra=extra)
        start_sql = self.directory / "init.sql"
        fill_template(self.start_sql_template, start_sql, {"ROOT_PASSWORD": self._root_password()}, mode=0o600)
        temporary = self.directory / "tmp"
        temporary.mkdir(mode=0o700, exist_ok=True)
        self._give_to_server(temporary)
        data = self.directory / "data"
        if not data.exists():
            self._initialise(data, options)
        self._give_to_server(start_sql)
        return [self._program(), f"--defaults-file={options}", f"--init-file={start_sql}"]

    def answers(self, port: int) -> bool:
        """Read the greeting: it comes only after recovery and the start-up SQL."""
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=ANSWER_SECONDS) as connection:
                greeting = connection.recv(64)
        except OSError:
            return False
        return len(greeting) > 4 and greeting[4] == _PROTOCOL_10

    def _initialise(self, data: Path, options: Path) -> None:
        """Make the system tables beside and move them in, so that a kill leaves no half-made directory in use."""
        part = self.directory / "data.part"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(mode=0o700)
        self._give_to_server(part)
        process.run_tool(
            self._initialise_command(part, options), self.log_file, what=f"making {self.product}'s system tables",
            seconds=INITIALISE_SECONDS, cwd=self.directory,
        )  # fmt: skip
        part.rename(data)

    def _program(self) -> str:
        return _find("mariadbd")

    def _initialise_command(self, data: Path, options: Path) -> list[str]:
        return [
            _find("mariadb-install-db"), f"--defaults-file={options}", f"--datadir={data}",
            "--auth-root-authentication-method=normal", "--skip-test-db", "--skip-log-bin",
        ]  # fmt: skip

    def _root_password(self) -> str:
        file = self.directory / "root.password"
        if not file.exists():
            file.touch(mode=0o600)
            file.write_text(secrets.token_urlsafe(18))
        return file.read_text()

    def _runs_as(self) -> str | None:
        """Return the account to change to: mysql when we are root and it can enter the home, else nobody new.

        A home below a directory that only root may enter (/root) cannot be served by another account.
        """
        if os.geteuid() != 0:
            return None
        try:
            account = pwd.getpwnam("mysql")
        except KeyError:
            return "root"
        entered = subprocess.run(
            ["/usr/bin/test", "-x", str(self.directory)],
            user=account.pw_uid, group=account.pw_gid, extra_groups=[], check=False,
        ).returncode  # fmt: skip
        return "root" if entered else "mysql"

    def _user_line(self) -> str:
        account = self._runs_as()
        return f"user={account}" if account else "# runs as the account that started it"

    def _give_to_server(self, path: Path) -> None:
        if self._runs_as() == "mysql":
            shutil.chown(path, "mysql", "mysql")


def _find(program: str) -> str:
    found = shutil.which(program) or shutil.which(program, path=_SBIN)
    if found is None:
        raise ServerMissing(
            f"MariaDB is needed and {program} was not found; install it: "
            f"apt-get install -y --no-install-recommends {' '.join(PACKAGES)}",
            PACKAGES,
        )
    return found
