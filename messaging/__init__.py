"""How a message gets from one stage to the next: a durable partitioned log, wake-ups, and the message set."""

from messaging._exceptions import (
    BadMessage,
    HomeUnavailable,
    LogError,
    LogUnavailable,
    MessagingError,
    OffsetTrimmed,
    RecordTooLarge,
    UnknownTopic,
)
from messaging._wake import Waiter, wake
from messaging.api import Consumer, Log, OutRecord, Position, Record
from messaging.embedded import EmbeddedLog, open_embedded_log

__all__ = [
    "BadMessage",
    "Consumer",
    "EmbeddedLog",
    "HomeUnavailable",
    "Log",
    "LogError",
    "LogUnavailable",
    "MessagingError",
    "OffsetTrimmed",
    "OutRecord",
    "Position",
    "Record",
    "RecordTooLarge",
    "UnknownTopic",
    "Waiter",
    "open_embedded_log",
    "wake",
]
