"""How an ad has done so far, from the reporting database."""

from __future__ import annotations

from collections.abc import Mapping

from argus import HandlerContext, Inputs, SourceUse, Value, handler
from argus.sources import PerformanceRow

_PRIOR_CLICKS = 2.0
_PRIOR_IMPRESSIONS = 10_000.0
"""What an ad without history is taken to have: 0.02 % clicks, the order of real display ads. It takes about ten
thousand impressions before an ad's own history outweighs this."""


@handler(
    root="ad",
    watches=("ad.id", "ad.performance_version"),
    writes=(
        "ad_document.impressions",
        "ad_document.clicks",
        "ad_document.conversions",
        "ad_document.spend_micros",
        "ad_document.quality",
    ),
    sources=(SourceUse("performance", key="ad.id", version="ad.performance_version"),),
)
def performance(row: Inputs, context: HandlerContext) -> Mapping[str, Value]:
    """Pull an ad's history, and estimate its quality: click-through against that of an unknown ad, which has 1.0.

    The estimate is smoothed by a prior (a Beta distribution's mean), so that a click on the first impression is
    no miracle. It is rounded to six digits.
    """
    history: PerformanceRow | None = context.source("performance")
    if history is None:
        return {"ad_document.quality": 1.0}
    rate = (history.clicks + _PRIOR_CLICKS) / (history.impressions + _PRIOR_IMPRESSIONS)
    return {
        "ad_document.impressions": history.impressions,
        "ad_document.clicks": history.clicks,
        "ad_document.conversions": history.conversions,
        "ad_document.spend_micros": history.spend_micros,
        "ad_document.quality": round(rate / (_PRIOR_CLICKS / _PRIOR_IMPRESSIONS), 6),
    }
