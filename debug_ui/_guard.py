"""What protects a page without log-in: loopback names only, bounded input, same-origin posts, no foreign content.

The Host check stops DNS rebinding: a page of another site whose name was pointed at 127.0.0.1 still sends its own name.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Awaitable, Callable
from urllib.parse import parse_qs, urlsplit

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
MAX_QUERY_BYTES = 16_384
"""A search request with a 64-number vector has some 1,500 bytes."""
MAX_BODY_BYTES = 16_384
TOKEN_FIELD = "csrf_token"

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none'; "
        "frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class CrossSitePost(Exception):
    """Raised for a post that did not come from a page of ours."""


def host_name(value: str) -> str:
    """Return the host of a Host header, without port and brackets; "" if it is none."""
    try:
        return (urlsplit(f"//{value}").hostname or "").lower()
    except ValueError:
        return ""


async def guard(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    """Refuse foreign host names and oversized input, and add the protecting headers to every answer."""
    if host_name(request.headers.get("host", "")) not in LOOPBACK:
        return PlainTextResponse("this page answers only to localhost; open it by http://127.0.0.1\n", status_code=421)
    if len(request.scope.get("query_string", b"")) > MAX_QUERY_BYTES or len(request.url.path) > MAX_QUERY_BYTES:
        return PlainTextResponse(f"the address has more than {MAX_QUERY_BYTES} bytes\n", status_code=414)
    response = await call_next(request)
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    return response


class PostGuard:
    """Checks posts: same origin by what the browser says, and a token that only our own pages hold."""

    def __init__(self) -> None:
        self.token = secrets.token_urlsafe(24)

    async def check(self, request: Request) -> dict[str, str]:
        """Return the form's fields. Raises CrossSitePost."""
        origin = request.headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
            raise CrossSitePost(f"the post comes from {origin[:100]}, not from this page")
        if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            raise CrossSitePost("the browser says that the post comes from another site")
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY_BYTES:
                raise CrossSitePost(f"the form has more than {MAX_BODY_BYTES} bytes")
        fields = {k: v[0] for k, v in parse_qs(body.decode(errors="replace"), max_num_fields=20).items()}
        if not hmac.compare_digest(fields.get(TOKEN_FIELD, "").encode(), self.token.encode()):
            raise CrossSitePost("the form's token is missing or old; reload the page and try again")
        return fields
