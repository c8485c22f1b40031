"""A handler that raises on some documents; the catalogue of test_workflow_bad_input names it."""

from __future__ import annotations

from collections.abc import Mapping

from argus import HandlerContext, Inputs, Value, handler


@handler(root="pin", watches=("pin.title",), writes=("pin.loud_title",))
def loud_title(row: Inputs, context: HandlerContext) -> Mapping[str, Value]:
    """Write the title in capitals, with the bug that some have none."""
    title = row["pin.title"]
    if title == "BOOM":
        raise ZeroDivisionError("a bug of the handler")
    return {"pin.loud_title": title.upper() if title else None}
