"""MySQL and MariaDB for the ads DB: connecting, which errors mean "try again", and splitting statements."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pymysql
from pymysql.connections import Connection
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from gateway._exceptions import AdsDbUnavailable

CONNECT_SECONDS = 10
READ_SECONDS = 60
"""Longest wait for an answer: a statement of ours reads some thousand rows by key."""

UNKNOWN_COLUMN, UNKNOWN_TABLE = 1054, 1146
_RIGHTS = (1044, 1045, 1142, 1143, 1227, 1698)
_COMMITS = re.compile(
    r"(ALTER|CREATE|DROP|RENAME|TRUNCATE|ANALYZE|OPTIMIZE|GRANT|REVOKE|LOCK|UNLOCK|SET\s+PASSWORD)\b", re.I
)


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is and how to log in; shown without the password."""

    url: URL

    @classmethod
    def of(cls, url: str) -> Address:
        """Parse mysql+pymysql://USER:PASSWORD@HOST:PORT/DATABASE. Raises AdsDbUnavailable."""
        try:
            parsed = make_url(url)
        except ArgumentError:
            parsed = None
        if parsed is None or not parsed.host or not parsed.database:
            raise AdsDbUnavailable("the URL of the ads DB is not mysql+pymysql://USER:PASSWORD@HOST:PORT/DATABASE")
        return cls(parsed)

    @property
    def name(self) -> str:
        """The URL without its password."""
        return self.url.render_as_string(hide_password=True)

    @property
    def database(self) -> str:
        """The schema that holds the ads."""
        return str(self.url.database)

    def settings(self) -> dict[str, Any]:
        """Return keyword arguments of pymysql.connect, a new dictionary each time."""
        return {
            "host": self.url.host,
            "port": self.url.port or 3306,
            "user": self.url.username or "",
            "password": self.url.password or "",
            "database": self.database,
            "charset": "utf8mb4",
            "connect_timeout": CONNECT_SECONDS,
            "read_timeout": READ_SECONDS,
            "write_timeout": READ_SECONDS,
            **{key: value for key, value in self.url.query.items() if key.startswith("ssl_")},
        }

    def __repr__(self) -> str:
        return f"Address({self.name})"


def connect(address: Address, **settings: Any) -> Connection[Any]:
    """Open an autocommit connection whose times are UTC. Raises AdsDbUnavailable."""
    with translated(address.name):
        return pymysql.connect(
            **address.settings(),
            autocommit=True,
            init_command="SET SESSION time_zone = '+00:00'",
            **settings,
        )


@contextlib.contextmanager
def translated(name: str) -> Iterator[None]:
    """Turn the driver's errors into AdsDbUnavailable naming the server."""
    try:
        yield
    except pymysql.MySQLError as error:
        raise AdsDbUnavailable(f"ads DB {name}: {describe(error)}; {_advice(error)}") from error


def describe(error: BaseException) -> str:
    """Return an error of the driver as a person reads it: message and number."""
    args = error.args
    return f"{args[1]} ({args[0]})" if len(args) > 1 else str(error)


def quoted(name: str) -> str:
    """Return an SQL identifier."""
    return "`" + name.replace("`", "``") + "`"


def rows(connection: Connection[Any], statement: str, parameters: object = None) -> list[tuple[Any, ...]]:
    """Run one statement and return its rows."""
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)
        return list(cursor.fetchall())


def commits_by_itself(statement: str) -> bool:
    """Return whether the server ends the running transaction before it runs this statement."""
    return _COMMITS.match(statement) is not None


def split_statements(sql: str) -> list[str]:
    """Split a script into statements; semicolons in strings, quoted names and comments do not count."""
    statements: list[str] = []
    current: list[str] = []
    for match in _TOKENS.finditer(sql):
        token = match.group()
        if token == ";":
            statements.append("".join(current).strip())
            current = []
        elif not match.group("comment"):
            current.append(token)
        else:
            current.append(" ")
    statements.append("".join(current).strip())
    return [statement for statement in statements if statement]


# A comment that begins with /*! is code for the server.
_TOKENS = re.compile(
    r"""'(?:[^'\\]|\\.|'')*'|"(?:[^"\\]|\\.|"")*"|`(?:[^`]|``)*`"""
    r"""|(?P<comment>--(?:[ \t][^\n]*)?(?=\n|$)|\#[^\n]*|/\*(?!!).*?\*/)|/\*!.*?\*/|;|[^'"`;#/-]+|.""",
    re.S,
)


def _advice(error: pymysql.MySQLError) -> str:
    code = error.args[0] if error.args else 0
    if code in _RIGHTS:
        return "grant the user what it lacks, or correct the URL"
    if code in (1205, 1213):
        return "another transaction holds the rows; try again"
    if code in (1054, 1064, 1146):
        return "check that the tables are what the catalogue declares"
    return "check that the server runs and can be reached"
