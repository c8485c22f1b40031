"""What serving has of a document, and whether that is what the Repo holds."""

from __future__ import annotations

from typing import Any

import msgspec

from catalog import Catalog
from catalog.documents import readable_document
from debug_ui._values import jsonable
from debug_ui.backends import Backends
from debug_ui.views import ServingView
from manas import ManasError
from messaging.proto import adsindex_pb2 as pb


def readable_body(catalog: Catalog, body: bytes) -> dict[str, Any]:
    """Return a document's fields for show; bytes that are no document are shown as such."""
    try:
        return {name: jsonable(value) for name, value in readable_document(catalog, body).items()}
    except (msgspec.DecodeError, ValueError) as error:
        return {"(not a document)": f"{error}: {jsonable(body)}"}


def serving_view(
    backends: Backends, document_id: str, version: int | None, body: bytes | None, *, fields: bool = True
) -> ServingView:
    """Return what serving has, judged against the Repo's document (`version` None: the Repo never had one)."""
    try:
        served = backends.serving.get([document_id])[0]
    except ManasError as error:
        return ServingView(layer="unreachable", verdict=f"serving does not answer: {error}")
    return judge(backends.catalog, served, version, body, fields=fields)


def judge(
    catalog: Catalog, served: pb.ServedDocument, version: int | None, body: bytes | None, *, fields: bool = False
) -> ServingView:
    """Return the comparison of one served document with the Repo's."""
    known = served.found or served.deleted
    layer = ("deleted" if served.deleted else served.layer or "delta") if known else "none"
    same = served.body == body if served.found and not served.deleted and body is not None else None
    return ServingView(
        layer=layer,  # type: ignore[arg-type]  # the proto documents the two layers
        version=served.version if known else None,
        same_bytes=same,
        verdict=_verdict(served, known, version, body, same),
        trace_id=served.trace_id,
        origin_us=served.origin_us or None,
        answerable_us=served.answerable_us or None,
        fields=readable_body(catalog, served.body) if fields and served.body else {},
    )


def _verdict(served: pb.ServedDocument, known: bool, version: int | None, body: bytes | None, same: bool | None) -> str:
    if not known:
        if body is not None:
            return f"serving does not know the document, though the Repo has version {version}"
        return "serving does not know the document, and the Repo has none that may be served"
    if served.deleted:
        if body is None:
            return f"withdrawn at version {served.version}, as the Repo says"
        return f"serving has withdrawn the document at version {served.version}, but the Repo has version {version}"
    if body is None:
        return f"serving still answers with version {served.version}, though the Repo has withdrawn the document"
    if same:
        return f"serving has the Repo's document, byte for byte (version {served.version})"
    if version is not None and served.version < version:
        return f"serving has the older version {served.version}; the Repo has {version}"
    return f"serving has version {served.version} with other bytes than the Repo's version {version}"
