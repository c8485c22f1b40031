"""Page tokens: where the next page begins, so that pages never repeat or skip an ad while the index stays as it is.

A token has the score and the id of the last hit, which is a place in the order whoever answers, and what must be the
same on every page: the request, its instant, and how many candidates are scored in full. It is not secret and not
signed; a made-up one gives some other page of the same answer. A page that a deadline or a missing shard has left short
has no token: whether there are more is not known, and the same page can be asked for again.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec

from catalog.values import micros_of
from manas._exceptions import InvalidRequest
from manas._layer import After

KEY = "page_token"
MOST = (1 << 31) - 1
"""Candidates, and hits on the pages before: nobody can ask for more hits, and it bounds what a made-up token costs."""
_DAY_US = 86_400_000_000
INSTANTS = range(micros_of(datetime.min) + _DAY_US, micros_of(datetime.max) - _DAY_US)
"""Microseconds since the epoch of what is in the years 1 to 9999 by every clock, wherever it is."""


class Page(msgspec.Struct, frozen=True, array_like=True):
    """Where a page begins."""

    request: bytes
    """Hash of the request without its token."""
    at_us: int = 0
    """Instant that the first page was asked at; 0 for the first page itself."""
    rerank: int = 0
    """Candidates scored in full; 0 where there is no second phase."""
    score: float = 0.0
    key: int | str = 0
    seen: int = 0
    """Hits on the pages before."""

    @property
    def after(self) -> After | None:
        """The last hit of the page before, None for the first page."""
        return After(self.score, self.key) if self.seen else None


def read_page(request: Mapping[str, Any], *, int_keys: bool) -> Page | None:
    """Return the page that a request asks for, None if it does not ask for pages. Raises InvalidRequest."""
    if KEY not in request:
        return None
    token = request[KEY]
    if not isinstance(token, str):
        raise InvalidRequest(f"{KEY}: a string out of the answer before, '' for the first page, got {str(token)[:60]}")
    digest = _digest(request)
    if token == "":
        return Page(digest)
    try:
        page = msgspec.msgpack.decode(base64.b64decode(token, altchars=b"-_", validate=True), type=Page)
    except (msgspec.DecodeError, binascii.Error, ValueError):
        raise InvalidRequest(f"{KEY}: {token[:60]!r} is not a token of an answer; begin with ''") from None
    if page.request != digest:
        raise InvalidRequest(f"{KEY}: it belongs to another request; all pages are asked for with the same one")
    fits = 1 <= page.seen <= MOST and 0 <= page.rerank <= MOST and (not page.at_us or page.at_us in INSTANTS)
    if isinstance(page.key, int) != int_keys or not fits or page.score != page.score:
        raise InvalidRequest(f"{KEY}: {token[:60]!r} is not a token of this index; begin with ''")
    return page


def check_size(k: int) -> None:
    """Raises InvalidRequest for a page of everything."""
    if k == 0:
        raise InvalidRequest(f"{KEY}: pages have a size; give k from 1 on")


def write_page(page: Page) -> str:
    """Return the token of a page."""
    return base64.urlsafe_b64encode(msgspec.msgpack.encode(page)).decode()


def _digest(request: Mapping[str, Any]) -> bytes:
    plain = {name: value for name, value in request.items() if name != KEY}
    return hashlib.blake2b(json.dumps(plain, sort_keys=True, default=str).encode(), digest_size=8).digest()
