"""Whether, when and for how much an ad may serve."""

from __future__ import annotations

from collections.abc import Mapping

from argus import HandlerContext, Inputs, InvalidInput, Value, handler


@handler(
    root="ad",
    watches=(
        "advertiser.status",
        "advertiser.billing_status",
        "campaign.status",
        "ad_group.status",
        "ad_group.targeting_terms",
        "ad.status",
        "ad.review_status",
        "ad_document.creative_problem",
        "ad_document.bid_micros",
    ),
    reads=("ad_group.bid_micros", "advertiser.currency"),
    writes=("ad_document.servable", "ad_document.blocked_by"),
)
def status_rollup(row: Inputs, context: HandlerContext) -> Mapping[str, Value]:
    """Roll all switches from advertiser to creative into one, with every cause that blocks, outermost first.

    Two conditions are left out on purpose. The budget changes with every impression, and a campaign has many ads:
    serving holds budget state per campaign, so that spending rewrites no document. The clock changes nothing here:
    a schedule begins and ends without any update, so serving compares `starts_us` and `ends_us` with its own clock.
    """
    causes: list[str] = []
    if absence := row.absence("ad_group"):
        causes.append(absence)  # and what is above it is unknown
    elif absence := row.absence("campaign"):
        causes += [absence, *_not(row, "ad_group", "status", "ACTIVE")]
    else:
        if absence := row.absence("advertiser"):
            causes.append(absence)
        else:
            causes += _not(row, "advertiser", "status", "ACTIVE")
            causes += _not(row, "advertiser", "billing_status", "OK")
        causes += _not(row, "campaign", "status", "ACTIVE")
        causes += _not(row, "ad_group", "status", "ACTIVE")
    causes += _not(row, "ad", "status", "ACTIVE")
    causes += _not(row, "ad", "review_status", "APPROVED")
    if problem := row["ad_document.creative_problem"]:
        causes.append(problem)
    if row.exists("ad_group"):
        if row["ad_group.targeting_terms"] is None:
            causes.append(f"{row.name('ad_group')} has no valid targeting")
        if row["ad_document.bid_micros"] is None and (row["ad_group.bid_micros"] or 0) > 0:
            causes.append(f"{row.name('advertiser')} has currency {row['advertiser.currency']!r} without exchange rate")
        elif row["ad_document.bid_micros"] is None:
            causes.append(f"{row.name('ad_group')} has no bid above 0")
    return {"ad_document.servable": not causes, "ad_document.blocked_by": causes or None}


def _not(row: Inputs, table: str, column: str, good: str) -> list[str]:
    value = row[f"{table}.{column}"]
    if value == good:
        return []
    what = "" if column == "status" else f"{column.replace('_', ' ')} "
    return [f"{row.name(table)} has {what or 'status '}{value or 'unknown'}, not {good}"]


@handler(
    root="ad",
    watches=("campaign.starts_at", "campaign.ends_at", "ad_group.starts_at", "ad_group.ends_at"),
    writes=("ad_document.starts_us", "ad_document.ends_us"),
)
def schedule(row: Inputs, context: HandlerContext) -> Mapping[str, Value]:
    """Intersect the schedules of campaign and ad group; a side without limit stays open (null)."""
    starts = [t for t in (row["campaign.starts_at"], row["ad_group.starts_at"]) if t is not None]
    ends = [t for t in (row["campaign.ends_at"], row["ad_group.ends_at"]) if t is not None]
    return {
        "ad_document.starts_us": max(starts, default=None),
        "ad_document.ends_us": min(ends, default=None),
    }


@handler(
    root="ad",
    watches=("ad_group.bid_micros", "advertiser.currency"),
    writes=("ad_document.bid_micros", "ad_document.bid_currency", "ad_document.bid_account_micros"),
)
def bid(row: Inputs, context: HandlerContext) -> Mapping[str, Value]:
    """Take the ad group's bid, in the advertiser's currency and in that of the account, in which bids are compared.

    A bid that is not above 0 is none, and blocks; so does one in a currency without a declared exchange rate.
    """
    micros, currency, rates = row["ad_group.bid_micros"], row["advertiser.currency"], context.catalog.exchange_rates
    if micros is None or micros <= 0:
        return {}
    worth = rates.to_account(micros, currency) if rates else None
    if worth is None and row.exists("advertiser"):  # one that has not come yet is no fault of the bid
        raise InvalidInput(
            "unknown_currency",
            f"{row.name('advertiser')} has currency {currency!r}, for which the catalogue declares no exchange rate; "
            "correct the currency, or add it to exchange_rates",
        )
    return {
        "ad_document.bid_micros": micros,
        "ad_document.bid_currency": currency,
        "ad_document.bid_account_micros": worth,
    }
