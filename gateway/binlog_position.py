"""Where a reader stands in a server's binlog, and how that is kept with the Gateway's position in the log."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field

import msgspec

from gateway import _gtid_set
from gateway._exceptions import PositionLost

_FILE_NUMBER = re.compile(r"^(.*)\.(\d+)$")


class BinlogPosition(msgspec.Struct, frozen=True, gc=False):
    """After a whole transaction: file and offset on `server`, and the GTIDs so far, which hold anywhere."""

    file: str
    offset: int
    gtid: str = ""
    server: str = ""

    def reached(self, other: BinlogPosition) -> bool:
        """Return whether this is at or after `other` in the binlog of the same server."""
        return file_order(self.file, self.offset) >= file_order(other.file, other.offset)

    def after(self, file: str, offset: int, gtid: str, flavour: str) -> BinlogPosition:
        """Return the position after one more transaction that ends there and has that GTID ("" for none)."""
        return BinlogPosition(file, offset, add_gtid(self.gtid, gtid, flavour), self.server)


@dataclass(frozen=True, slots=True)
class FeedState:
    """What the binlog feed stores with its position: enough to go on after any crash.

    `todo` are the entity tables whose rows still have to be enqueued as a whole, `after` is the key up to which the
    first of them is done (None: nothing), `declared` the digests of what each table's rows were enqueued for.
    """

    position: BinlogPosition
    todo: tuple[str, ...] = ()
    after: tuple[int | str, ...] | None = None
    declared: dict[str, str] = field(default_factory=dict)
    resync: int = 0
    """Number of the last request for a resync that was taken up."""
    database: str = ""
    """On the same server another one has other rows; "" in what was stored before this was."""

    def to_json(self) -> str:
        """Return the state as compact JSON: Kafka keeps 4096 bytes with a position."""
        at = self.position
        values = {
            "v": 1,
            "file": at.file,
            "pos": at.offset,
            "gtid": at.gtid,
            "server": at.server,
            "todo": list(self.todo),
            "after": None if self.after is None else list(self.after),
            "declared": self.declared,
            "resync": self.resync,
            "db": self.database,
        }
        return json.dumps(values, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> FeedState:
        """Return the state that `to_json` gave. Raises PositionLost for anything else."""
        try:
            values = json.loads(text)
            after = values["after"]
            return cls(
                BinlogPosition(values["file"], int(values["pos"]), values["gtid"], values["server"]),
                tuple(values["todo"]),
                None if after is None else tuple(after),
                dict(values["declared"]),
                int(values["resync"]),
                str(values.get("db", "")),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise PositionLost(
                f"the position stored for the ads DB's binlog cannot be read: {text[:200]!r}; run the resync workflow"
            ) from error


def file_order(file: str, offset: int) -> tuple[str, int, int]:
    """Return a key that orders positions of one server."""
    match = _FILE_NUMBER.match(file)
    return (match.group(1), int(match.group(2)), offset) if match else (file, 0, offset)


def add_gtid(gtids: str, gtid: str, flavour: str) -> str:
    """Return a GTID position after one more transaction: per domain the newest on MariaDB, a set on MySQL."""
    if not gtid:
        return gtids
    if flavour == "mariadb":
        if "," not in gtids and gtids.partition("-")[0] == gtid.partition("-")[0]:  # one domain, as nearly always
            return gtid
        by_domain = {g.split("-", 1)[0]: g for g in gtids.split(",") if g}
        by_domain[gtid.split("-", 1)[0]] = gtid
        return ",".join(by_domain[domain] for domain in sorted(by_domain, key=int))
    return _gtid_set.add(gtids, gtid)
