"""What a MySQL or MariaDB server is, whether its binlog can be followed without a gap, and where the binlog ends."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import pymysql
from pymysql.connections import Connection

from gateway import _mysql
from gateway._exceptions import ServerUnsuitable
from gateway._gtid_set import tag_of
from gateway._mysql import Address
from gateway.binlog_position import BinlogPosition

MARIADB, MYSQL = "mariadb", "mysql"

_REQUIRED = {
    "log_bin": ("ON", "set log_bin in the server's configuration file and restart it", "nothing is logged"),
    "binlog_format": ("ROW", "SET GLOBAL binlog_format = 'ROW'", "statements do not say which rows they changed"),
    "binlog_row_image": ("FULL", "SET GLOBAL binlog_row_image = 'FULL'", "rows may come without their key"),
    "binlog_row_metadata": ("FULL", "SET GLOBAL binlog_row_metadata = 'FULL'", "rows come without column names"),
}
_FORBIDDEN = {
    "binlog_row_value_options": ("", "SET GLOBAL binlog_row_value_options = ''", "JSON comes in pieces"),
    "binlog_transaction_compression": (
        "OFF",
        "SET GLOBAL binlog_transaction_compression = OFF",
        "compressed transactions are not read",
    ),
}
_PARSE_ERROR = 1064
_GRANT = re.compile(r"GRANT (.*) ON (.*) TO ", re.I)
_READS_STATUS = ("REPLICATION CLIENT", "BINLOG MONITOR", "SUPER")


@dataclass(frozen=True, slots=True)
class Server:
    """A server's identity and dialect."""

    flavour: str
    version: str
    identity: str
    """Differs between any two servers, and stays when one restarts."""
    gtids: bool
    case_blind: bool
    """Table names differ only by more than their case."""


def describe_server(connection: Connection[Any]) -> Server:
    """Ask a server what it is."""
    values = variables(connection)
    version = str(connection.get_server_info())
    flavour = MARIADB if "mariadb" in version.lower() else MYSQL
    uuid = values.get("server_uuid") or values.get("server_uid") or ""
    # MariaDB's server_uid is made of the host and the port's interface; copies of one machine may share it.
    identity = ":".join((uuid, values["server_id"], values["hostname"], values["port"]))
    return Server(
        flavour,
        version.removeprefix("5.5.5-"),  # what MariaDB tells old replicas
        identity,
        flavour == MARIADB or values.get("gtid_mode", "OFF") == "ON",
        values.get("lower_case_table_names", "0") != "0",
    )


def variables(connection: Connection[Any]) -> dict[str, str]:
    """Return all global settings, names in lower case."""
    found = _mysql.rows(connection, "SHOW GLOBAL VARIABLES")
    return {str(name).lower(): str(value) for name, value in found}


def check_server(connection: Connection[Any], address: Address) -> None:
    """Raise ServerUnsuitable, with the statement that mends each fault, unless the binlog has every change."""
    values = variables(connection)
    mariadb = "mariadb" in str(connection.get_server_info()).lower()
    faults: list[str] = []
    for name, (wanted, mend, why) in _REQUIRED.items():
        present = values.get(name)
        if present is None:
            faults.append(f"the server has no {name}: use MariaDB 10.5 or MySQL 8.0.14, or newer ({why})")
        elif present.upper() not in (wanted, "1" if wanted == "ON" else wanted):
            faults.append(f"{name} is {present or 'empty'}, but must be {wanted} ({why}): {mend}")
    for name, (wanted, mend, why) in _FORBIDDEN.items():
        present = values.get(name, wanted)
        if present.upper() != wanted:
            faults.append(f"{name} is {present}, but must be {wanted or 'empty'} ({why}): {mend}")
    if values.get("server_id") == "0":
        faults.append("server_id is 0, so no reader of the binlog is let in: SET GLOBAL server_id = 1")
    faults.extend(_rights(connection, address))
    if not faults:
        faults.extend(status_faults(_status(connection), address))
    if faults:
        text = "\n".join(f"- {fault}" for fault in faults)
        keep = ", and put the settings into the server's configuration file too"
        if not mariadb:  # MySQL remembers settings by itself
            text, keep = text.replace("SET GLOBAL", "SET PERSIST"), ""
        raise ServerUnsuitable(
            f"ads DB {address.name}: its binlog cannot be followed without losing changes\n{text}\n"
            f"Changed settings hold for new sessions: let applications connect anew{keep}."
        )


def end_position(connection: Connection[Any]) -> BinlogPosition:
    """Return the end of the server's binlog. Raises ServerUnsuitable when it writes none."""
    status = _status(connection)
    if status is None:
        raise ServerUnsuitable("the server writes no binlog: set log_bin in its configuration file and restart it")
    server = describe_server(connection)
    gtid = ""
    if server.flavour == MARIADB:
        gtid = str(_mysql.rows(connection, "SELECT BINLOG_GTID_POS(%s, %s)", status[:2])[0][0] or "")
    elif server.gtids:
        gtid = str(status[4]).replace("\n", "")
    return BinlogPosition(str(status[0]), int(status[1]), gtid, server.identity)


def _status(connection: Connection[Any]) -> tuple[Any, ...] | None:
    try:
        found = _mysql.rows(connection, "SHOW BINARY LOG STATUS")
    except pymysql.ProgrammingError as error:  # before MySQL 8.2, and MariaDB
        if error.args[0] != _PARSE_ERROR:
            raise
        found = _mysql.rows(connection, "SHOW MASTER STATUS")
    return found[0] if found else None


def _rights(connection: Connection[Any], address: Address) -> list[str]:
    granted: set[str] = set()
    reads = False
    for (grant,) in _mysql.rows(connection, "SHOW GRANTS"):
        match = _GRANT.match(str(grant))
        if match is None:
            continue
        rights = {r.strip().upper() for r in match.group(1).split(",")}
        target = match.group(2).replace("`", "").replace("\\", "")
        if target == "*.*":
            granted |= rights
        if rights & {"SELECT", "ALL PRIVILEGES"} and target.split(".")[0] in ("*", address.database):
            reads = True
    if "ALL PRIVILEGES" in granted:
        return []
    user = _mysql.rows(connection, "SELECT CURRENT_USER()")[0][0]
    name, _, host = str(user).rpartition("@")
    to = f"TO '{name}'@'{host}'"
    faults = []
    if not granted & {"REPLICATION SLAVE", "REPLICATION REPLICA"}:
        faults.append(f"{user} may not read the binlog: GRANT REPLICATION SLAVE ON *.* {to}")
    if not granted & set(_READS_STATUS):
        faults.append(f"{user} may not ask where the binlog ends: GRANT REPLICATION CLIENT ON *.* {to}")
    if not reads:
        faults.append(f"{user} may not read the ads: GRANT SELECT ON {_mysql.quoted(address.database)}.* {to}")
    return faults


def status_faults(status: tuple[Any, ...] | None, address: Address) -> list[str]:
    """Return what is wrong with the state of a server's binlog, as the server tells it."""
    if status is None:
        return ["the server writes no binlog: set log_bin in its configuration file and restart it"]
    if len(status) > 4 and (tag := tag_of(str(status[4] or ""))):
        return [
            f"the server has transactions whose GTIDs have the tag {tag!r}, which are not read: use a server on which "
            "nobody sets gtid_next to a tag"
        ]
    only, ignored = ({d for d in str(value or "").split(",") if d} for value in status[2:4])
    if (only and address.database not in only) or address.database in ignored:
        return [
            f"the binlog leaves out the database {address.database}: take it out of binlog_ignore_db, "
            "or add it to binlog_do_db, in the server's configuration file and restart it"
        ]
    return []
