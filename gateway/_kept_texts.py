"""What is stored with a position and has no room there: kept in a compacted topic, under a number of its own.

Kafka keeps 4096 bytes with a position. A GTID set grows by a UUID with every server that was ever the primary, and the
tables that are declared and due to be sent grow with the catalogue.
"""

from __future__ import annotations

import hashlib
import json

from gateway._exceptions import PositionLost
from messaging import Log, OutRecord
from messaging.topics import GTID_SETS

MAX_STATE_BYTES = 4_000
"""Of a state that is stored as it is."""

_MAX_KEY_BYTES = 1_000
"""Of the snapshot's newest key that stays with the position: a longer one takes a record for every chunk."""

_READ = 1_000


class KeptTexts:
    """Texts of one kind, of which the newest two are kept. For one thread; only one Gateway publishes at a time."""

    def __init__(self, log: Log, keys: str = "") -> None:
        """Use the topic GTID_SETS of the log; `keys` begins the keys of this kind."""
        self._log, self._keys = log, keys
        self.number = ""
        """Of the text that was put or got last."""

    def put(self, text: str) -> str:
        """Publish a text and return its number. Raises LogUnavailable.

        Two keys in turn: a position that is stored after this may be lost, and then the text before is needed.
        """
        key = self._keys + ("even" if self._key_of(self.number) == f"{self._keys}odd" else "odd")
        self.number = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
        self._log.publish([OutRecord(GTID_SETS, key, f"{self.number} {text}".encode())])
        return self.number

    def get(self, number: str) -> str:
        """Return the text of a number. Raises PositionLost when the topic does not have it."""
        for _, found, text in self._records():
            if found == number:
                self.number = number
                return text
        raise PositionLost(
            f"the part {number} of the stored position is not in the topic {GTID_SETS}; was the topic made anew? "
            "Run the resync workflow: the Gateway then goes on from the binlog's present end and sends every row again"
        )

    def _key_of(self, number: str) -> str:
        return next((key for key, found, _ in self._records() if found == number), "")

    def _records(self) -> list[tuple[str, str, str]]:
        """Return (key, number, text) of all records, oldest first."""
        found: list[tuple[str, str, str]] = []
        at, end = self._log.start_offsets(GTID_SETS)[0], self._log.end_offsets(GTID_SETS)[0]
        while at < end and (records := self._log.read(GTID_SETS, 0, at, _READ)):
            for record in records:
                number, _, text = record.value.decode().partition(" ")
                found.append((record.key, number, text))
            at = records[-1].offset + 1
        return found


class LongStates:
    """Stores states of the feed with positions, however many tables they name. For one thread."""

    def __init__(self, log: Log) -> None:
        """Use the topic GTID_SETS of the log, which has records of this only while a state is long."""
        self._kept = KeptTexts(log, "tables-")
        self._content = ""

    def shortened(self, text: str) -> str:
        """Return what to store for a state's JSON, publishing its tables if that is due. Raises LogUnavailable."""
        if len(text.encode()) <= MAX_STATE_BYTES:
            return text
        values = json.loads(text)
        names = ["todo", "declared"]
        if len(json.dumps(values["after"])) > _MAX_KEY_BYTES:
            names.append("after")
        content = json.dumps({name: values.pop(name) for name in names}, separators=(",", ":"))
        if content != self._content:
            self._kept.put(content)
            self._content = content
        return json.dumps(values | {"kept": self._kept.number}, separators=(",", ":"))

    def whole(self, stored: str) -> str:
        """Return the JSON that was given to `shortened`. Raises PositionLost when the topic does not have its rest."""
        try:
            values = json.loads(stored)
            number = values.pop("kept", "")
        except (ValueError, TypeError, AttributeError):
            return stored  # whoever reads it says so
        if not number:
            return stored
        self._content = self._kept.get(number)
        return json.dumps(values | json.loads(self._content), separators=(",", ":"))
