"""Errors of Manas.

ManasError                    catch this to treat every failure of retrieval alike
├── InvalidRequest            the request is not one that this catalogue can answer: the caller is at fault
├── InvalidDocument           a document or budget state cannot be indexed: dead letter
├── UnusableCatalog           the catalogue's declarations contradict what requests need: fix the catalogue
├── SegmentError              a base index cannot be used; the one in service stays
│   ├── SegmentMissing        there is no manifest: the build never finished, or the path is wrong
│   ├── SegmentCorrupt        a file is missing, cut short or has a flipped byte; names the file
│   ├── SegmentFormat         written by another format version
│   └── CatalogMismatch       a field is indexed otherwise than the catalogue says now: build a new base
├── IndexIncomplete           the log no longer has deltas that are needed: build a newer base
├── FoldFailed                a delta could not be made a segment; tried again, and answers come from the delta
├── NotServing                there is an index, and it refuses to answer; says why
└── ManasUnavailable          the server cannot be reached in time
"""

from __future__ import annotations

import errno

from catalog.portable import Portable

_PASSING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EINTR)


def passes(error: BaseException) -> bool:
    """Tell whether an error is the machine's at the moment (no descriptor, no memory) and says nothing of a file."""
    return isinstance(error, OSError) and error.errno in _PASSING


class ManasError(Portable):
    """Base of all errors of Manas."""


class InvalidRequest(ManasError):
    """Raised for a request that cannot be answered; names the key, what is wrong and what is valid."""


class InvalidDocument(ManasError):
    """Raised for a document or budget state that cannot be indexed; names the document and the field."""


class UnusableCatalog(ManasError):
    """Raised when the catalogue's serving section or dimensions cannot be served as declared."""


class SegmentError(ManasError):
    """Base of what makes a base index unusable."""


class SegmentMissing(SegmentError):
    """Raised when a directory has no manifest, or the pointer names no directory."""


class SegmentCorrupt(SegmentError):
    """Raised when a file of a segment is not what its manifest says; names the file."""

    def __init__(self, file: str, problem: str) -> None:
        self.file = file
        super().__init__(f"{file}: {problem}; restore it, or roll back to another base")


class SegmentFormat(SegmentError):
    """Raised when a segment has another format version than this code reads."""


class CatalogMismatch(SegmentError):
    """Raised when a segment indexes a field otherwise than the catalogue in use declares it."""


class IndexIncomplete(ManasError):
    """Raised when deltas between the base and the oldest record kept in the log are gone."""


class FoldFailed(ManasError):
    """Raised when the process that folds ends without a result; the text has its last words."""


class NotServing(ManasError):
    """Raised while an index must not answer: it is starting, waits for a base, or has found its base damaged."""


class ManasUnavailable(ManasError):
    """Raised when the Manas server does not answer."""
