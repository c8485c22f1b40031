"""Errors of messaging.

MessagingError            catch this to treat every failure of the log or of an RPC mirror alike
├── LogError
│   ├── UnknownTopic      the topic was never created: start the service once, or name another topic
│   ├── RecordTooLarge    the record is over the limit: the input is at fault
│   ├── OffsetTrimmed     the records asked for are gone: start from a newer base or resync
│   └── LogUnavailable    the log cannot be opened or written (disk full, wrong format, broker away)
├── HomeUnavailable       the home's directory cannot be made or written: name another
└── BadMessage            bytes that are not the message they should be: dead letter
"""

from __future__ import annotations

from catalog.portable import Portable


class MessagingError(Portable):
    """Base of all errors of messaging."""


class LogError(MessagingError):
    """Base of the log's errors."""


class UnknownTopic(LogError):
    """Raised when a topic does not exist."""


class RecordTooLarge(LogError):
    """Raised when a record exceeds the log's limit; names topic, key and size."""


class OffsetTrimmed(LogError):
    """Raised when records asked for have been trimmed."""

    def __init__(self, topic: str, partition: int, asked: int, oldest: int) -> None:
        self.topic, self.partition, self.asked, self.oldest = topic, partition, asked, oldest
        super().__init__(
            f"{topic}[{partition}] offset {asked} is gone, the oldest kept is {oldest}; "
            "start from a newer base or resync"
        )


class LogUnavailable(LogError):
    """Raised when the log cannot be opened, read or written."""


class HomeUnavailable(MessagingError):
    """Raised when a home's directories cannot be created."""


class BadMessage(MessagingError):
    """Raised when bytes do not parse as the expected message."""
