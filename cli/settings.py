"""Which backends a home uses: chosen once by `up`, remembered in HOME/settings.json, found there by every command."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Self
from urllib.parse import urlsplit, urlunsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from messaging import LogError
from messaging.home import Home
from messaging.kafka_settings import KafkaSettings

EMBEDDED = "embedded"
"""The backend inside the home itself; the default of every part."""
MAX_SHARDS = 64
"""As many as Manas takes on one machine; read here so that commands need not import it."""
BY_GTID, BY_FILE = "gtid", "file"
"""By file the ads DB cannot be taken over by a replica; it is for servers whose GTIDs cannot be used."""
_ADS_DB_SCHEMES = ("sqlite", "mysql+pymysql")


class SettingsError(Exception):
    """The settings of a home cannot be used; the text says which, why and what to do."""


class Settings(BaseModel):
    """Backends of one home: "embedded" or a URL each. Unknown names and half-set URLs are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    ads_db: str = EMBEDDED
    """`mysql+pymysql://user:password@host:port/database`, `sqlite:///file`, or embedded."""
    log: str = EMBEDDED
    """`kafka://host:port[,host:port][/prefix][?…]` (see `messaging.kafka.KafkaSettings`), or embedded."""
    binlog_position: str = BY_GTID
    """What a MySQL's binlog is followed by: GTIDs, where the server has them, or file and offset."""

    repo: str = EMBEDDED
    """`hbase://host:port?thrift2=port&zookeeper=host:port[&…]` (see `storage_repo.hbase.HbaseAddress`), or embedded."""

    walproxy: str = ""
    """HOST[:PORT] under which HBase's region servers reach the WAL proxy; "": this machine's loopback."""

    shards: Annotated[int, Field(ge=1, le=MAX_SHARDS)] = 1
    """Manas servers over which documents are shared out, behind a broker if there are several."""

    @field_validator("ads_db")
    @classmethod
    def _check_ads_db(cls, value: str) -> str:
        if value == EMBEDDED:
            return value
        parts = urlsplit(value)
        if parts.scheme not in _ADS_DB_SCHEMES:
            raise ValueError(f"an ads DB is {EMBEDDED}, sqlite:///FILE or mysql+pymysql://USER:PASSWORD@HOST:PORT/NAME")
        if parts.scheme != "sqlite" and (not parts.hostname or not parts.path.strip("/")):
            raise ValueError(
                "the ads DB's URL needs a host and the name of a database: mysql+pymysql://…@HOST:PORT/NAME"
            )
        return value

    @field_validator("binlog_position")
    @classmethod
    def _check_binlog_position(cls, value: str) -> str:
        if value not in (BY_GTID, BY_FILE):
            raise ValueError(f"a binlog is followed by {BY_GTID} or by {BY_FILE}, not by {value!r}")
        return value

    @field_validator("log")
    @classmethod
    def _check_log(cls, value: str) -> str:
        if value != EMBEDDED:
            try:
                KafkaSettings.parse(value)
            except LogError as error:
                raise ValueError(str(error)) from error
        return value

    @field_validator("walproxy")
    @classmethod
    def _check_walproxy(cls, value: str) -> str:
        host, _, port = value.partition(":")
        if value and not (host and (not port or (port.isdecimal() and 0 < int(port) < 1 << 16))):
            raise ValueError(f"{value!r} is no address for the WAL proxy; write HOST or HOST:PORT")
        return value

    @field_validator("repo")
    @classmethod
    def _check_repo(cls, value: str) -> str:
        if value != EMBEDDED:
            from storage_repo.hbase.address import HbaseAddress  # with Thrift's clients a quarter of a server's start

            HbaseAddress.parse(value)
        return value

    @classmethod
    def load(cls, home: Home) -> Self:
        """Return the settings of a home; all embedded when nothing was ever chosen. Raises SettingsError."""
        file = settings_file(home)
        try:
            return cls.model_validate(json.loads(file.read_text()))
        except FileNotFoundError:
            return cls()
        except ValidationError as error:
            raise SettingsError(f"{file}: {_sentence(error)}; correct or remove the file") from error
        except ValueError as error:
            raise SettingsError(f"{file} is not JSON: {error}; correct or remove the file") from error

    def public(self) -> dict[str, str]:
        """Return the settings for people: without passwords."""
        return {name: _without_password(str(value)) for name, value in self.model_dump().items()}


def settings_file(home: Home) -> Path:
    """Return where a home's settings are remembered."""
    return home.root / "settings.json"


def choose(home: Home, **chosen: str | int | None) -> Settings:
    """Return the home's settings with the chosen ones changed, and remember them: `check_choice`, then `remember`."""
    after = check_choice(home, **chosen)
    remember(home, after)
    return after


def check_choice(home: Home, **chosen: str | int | None) -> Settings:
    """Return the home's settings with the chosen ones changed; nothing is remembered. None leaves one as it was.

    Raises SettingsError for a value that cannot be used, for another log or Repo under a base index, whose manifest
    counts positions in the log, and timestamps of the Repo, that it was built beside, and for another ads DB under a
    store that has the rows of one.
    """
    before = Settings.load(home)
    changes = {name: value for name, value in chosen.items() if value is not None}
    try:
        after = Settings.model_validate(before.model_dump() | changes)
    except ValidationError as error:
        raise SettingsError(_sentence(error)) from error
    if after == before:
        return after
    if after.log != before.log and (home.base / "CURRENT").exists():
        raise SettingsError(
            f"{home.root} has a base index whose positions count records of the log {_without_password(before.log)}; "
            f"use a new home for another log, or remove {home.base} and build the base index again"
        )
    if after.repo != before.repo and (home.base / "CURRENT").exists():
        raise SettingsError(
            f"{home.root} has a base index whose version is a timestamp of the Repo {before.repo}; use a new home for "
            f"another Repo, or remove {home.base} and build the base index again"
        )
    if (home.root / "catalog.fingerprint").exists() and not _same_ads(home, before.ads_db, after.ads_db):
        raise SettingsError(
            f"{home.root} has the rows of the ads DB {_without_password(before.ads_db)}, which are not those of "
            f"{_without_password(after.ads_db)}; use a new home, and a new prefix of the log, for another ads DB. A "
            "replica that takes over has a database of the same name"
        )
    return after


def remember(home: Home, settings: Settings) -> None:
    """Make settings the home's."""
    if settings == Settings.load(home):
        return
    part = settings_file(home).with_suffix(".part")
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:  # may hold passwords
        file.write(json.dumps(settings.model_dump(), indent=1) + "\n")
    part.replace(settings_file(home))


def stage_settings(home: Home) -> dict[str, str]:
    """Return what a stage is told of the home's backends: what is not as it is by default.

    walproxy_… is where the WAL proxy listens if not on loopback.
    """
    chosen = Settings.load(home)
    given = {"ads_db": (chosen.ads_db, EMBEDDED), "binlog_position": (chosen.binlog_position, BY_GTID)}
    told = {name: value for name, (value, default) in given.items() if value != default}
    if chosen.walproxy:
        host, _, port = chosen.walproxy.partition(":")
        told |= {"walproxy_host": host, "walproxy_bind": host, "walproxy_port": port or "0"}
    return told


def _same_ads(home: Home, one: str, other: str) -> bool:
    """Return whether two URLs may be of the same rows: of one file, or of one database on servers that replicate it."""
    parts = [urlsplit(f"sqlite:///{home.ads_db}" if url == EMBEDDED else url) for url in (one, other)]
    return parts[0].scheme == parts[1].scheme and parts[0].path.strip("/") == parts[1].path.strip("/")


def _sentence(error: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(map(str, fault['loc']))}: {fault['msg'].removeprefix('Value error, ')}"
        for fault in error.errors(include_url=False)
    )


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=user.partition(":")[0] + at + host)) if at else url
