"""The ads DB: what every implementation offers, and opening the right one by its URL."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from sqlalchemy import Engine

from catalog import Catalog
from gateway._exceptions import AdsDbUnavailable

_SQLITE_URL, _MYSQL_URL = "sqlite:///", "mysql+pymysql://"


@dataclass(frozen=True, slots=True)
class StatementResult:
    """What one statement gave: rows for a query, else the number of rows that it changed."""

    statement: str
    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    rowcount: int


@dataclass(frozen=True, slots=True)
class CaptureReport:
    """What `ensure_capture` had to do; all zero when everything was in place."""

    triggers_created: int = 0
    triggers_dropped: int = 0
    rows_enqueued: int = 0
    lost: tuple[str, ...] = ()
    """Repo tables whose triggers were gone or different; what was deleted meanwhile is not known."""
    redefined: tuple[str, ...] = ()
    """Repo tables whose ads DB tables were, or may have been, changed by DDL."""


class AdsDb(ABC):
    """The ads database. Safe for several threads and processes; applications write to it beside us."""

    name: str
    """What messages call it: the file, or the URL without its password."""
    engine: Engine
    """For writers of many rows through the models; its transactions take locks at once."""

    @staticmethod
    def open(where: Path | str) -> AdsDb:
        """Open the ads DB at a path, sqlite:/// or mysql+pymysql:// URL, creating its tables if it is empty.

        A database with tables of its own, none of them ours, is taken as it is. Raises AdsDbUnavailable.
        """
        from gateway.mysql_ads_db import MysqlAdsDb
        from gateway.sqlite_ads_db import SqliteAdsDb

        text = str(where)
        if text.startswith(_MYSQL_URL):
            return MysqlAdsDb.at(text)
        if "://" in text and not text.startswith(_SQLITE_URL):
            scheme = text.partition("://")[0]
            raise AdsDbUnavailable(
                f"ads DB {scheme}://…: only SQLite and MySQL can be opened here; give a path, {_SQLITE_URL}PATH or "
                f"{_MYSQL_URL}USER:PASSWORD@HOST:PORT/DATABASE"
            )
        return SqliteAdsDb.at(Path(text.removeprefix(_SQLITE_URL)).expanduser().absolute())

    @abstractmethod
    def ensure_capture(self, catalog: Catalog, position: int | None = None) -> CaptureReport:
        """Make sure that changes of the catalogue's tables can be followed; cheap when all is in place already.

        `position` is for the Gateway alone: the last change that it published. Raises SchemaMismatch with the
        catalogue's lines, ServerUnsuitable, AdsDbUnavailable.
        """

    @abstractmethod
    def check_schema(self, catalog: Catalog) -> None:
        """Raise SchemaMismatch, every fault with file and line, when the ads DB lacks what the catalogue reads.

        Changes nothing. Raises also ServerUnsuitable, AdsDbUnavailable.
        """

    @abstractmethod
    def execute(self, sql: str) -> list[StatementResult]:
        """Run one or several statements in one transaction: all of them or none.

        Raises StatementFailed quoting the statement, AdsDbUnavailable when the database is locked or away.
        """

    @abstractmethod
    def select(self, statement: str, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Run one SELECT with :name parameters; it takes no locks. Raises AdsDbUnavailable."""

    @abstractmethod
    def quoted(self, name: str) -> str:
        """Return an SQL identifier."""

    @abstractmethod
    def last_change(self) -> int:
        """Return a number that grows with every change committed; 0 when there was none. Raises AdsDbUnavailable."""

    @abstractmethod
    def is_empty(self) -> bool:
        """Return whether the ads domain's tables are there and none has a row. Raises AdsDbUnavailable."""

    @abstractmethod
    def close(self) -> None:
        """Close all pooled connections; safe to call twice."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
