"""What a pin's product costs."""

from __future__ import annotations

import re
from collections.abc import Mapping

from argus import HandlerContext, Inputs, InvalidInput, Value, handler

_CURRENCY = re.compile(r"[A-Z]{3}")


@handler(
    root="pin",
    watches=("pin.price_micros", "pin.list_price_micros", "pin.currency"),
    writes=("pin.offer_price_micros", "pin.offer_currency", "pin.discount_percent"),
)
def price(row: Inputs, context: HandlerContext) -> Mapping[str, Value]:
    """Choose the price that a buyer pays, and tell how far (in whole percent, rounded down) it is below the list."""
    current, listed, currency = row["pin.price_micros"], row["pin.list_price_micros"], row["pin.currency"]
    for column, micros in (("price_micros", current), ("list_price_micros", listed)):
        if micros is not None and micros < 0:
            raise InvalidInput("bad_price", f"pin.{column} is {micros}; a price cannot be below 0")
    if currency is not None and not _CURRENCY.fullmatch(currency):
        raise InvalidInput("bad_price", f"pin.currency is {currency[:20]!r}, not an ISO 4217 code of three capitals")
    offer = current if current is not None else listed
    discounted = offer is not None and listed is not None and offer < listed
    return {
        "pin.offer_price_micros": offer,
        "pin.offer_currency": currency if offer is not None else None,
        "pin.discount_percent": (listed - offer) * 100 // listed if discounted else None,
    }
