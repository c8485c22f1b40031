"""What people see: the pin's title and image, and whether they may be shown."""

from __future__ import annotations

from collections.abc import Mapping

from argus import HandlerContext, Inputs, Value, handler


@handler(
    root="ad",
    watches=("ad.pin_id", "pin.title", "pin.status", "pin.image_id", "image.url", "image.status"),
    writes=("ad_document.title", "ad_document.image_url", "ad_document.creative_problem"),
)
def creative(row: Inputs, context: HandlerContext) -> Mapping[str, Value]:
    """Join title and image of the ad's pin. A pin may do without an image, but the one it names must be there."""
    title = (row["pin.title"] or "").strip() or None
    url = row["image.url"] if row["image.status"] == "ACTIVE" else None
    return {
        "ad_document.title": title,
        "ad_document.image_url": url,
        "ad_document.creative_problem": _problem(row, title, url),
    }


def _problem(row: Inputs, title: str | None, url: str | None) -> str | None:
    if absence := row.absence("pin"):
        return absence
    if row["pin.status"] != "ACTIVE":
        return f"{row.name('pin')} has status {row['pin.status'] or 'unknown'}, not ACTIVE"
    if title is None:
        return f"{row.name('pin')} has no title"
    if row["pin.image_id"] is None:
        return None
    if absence := row.absence("image"):
        return absence
    if row["image.status"] != "ACTIVE":
        return f"{row.name('image')} has status {row['image.status'] or 'unknown'}, not ACTIVE"
    return None if url else f"{row.name('image')} has no url"
