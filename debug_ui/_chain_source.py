"""Steps 1-5 of the diagnosis: what the advertiser has set, read from the ads DB itself."""

from __future__ import annotations

from typing import Any

from debug_ui._chain import (
    ADS_JUDGED,
    Candidate,
    Fact,
    Finding,
    Search,
    Stop,
    counted,
    literal,
    schedule_fault,
    sql,
    whole,
)
from debug_ui._values import money

GROUPS_JUDGED = 1_000
ADS_READ = 5_000


def advertiser_runs(search: Search) -> Finding:
    """Step 1: the advertiser exists, is active and can be billed."""
    if not search.campaign:
        return Finding(None, "not judged: the ads DB has no campaign that names an advertiser")
    advertiser_id = search.campaign["advertiser_id"]
    row = search.advertiser
    if not row:
        raise Stop(
            f"advertiser {advertiser_id} does not exist",
            [search.source("campaigns.advertiser_id", advertiser_id, "campaigns", search.campaign_id)],
            "The campaign belongs to nobody who could be billed, so none of its ads may serve.",
            [
                f"create advertiser {advertiser_id}, or give the campaign to an existing one: "
                + sql(f"UPDATE campaigns SET advertiser_id = <id> WHERE id = {search.campaign_id}")
            ],
        )
    facts = [
        search.source("advertisers.status", row["status"], "advertisers", advertiser_id),
        search.source("advertisers.billing_status", row["billing_status"], "advertisers", advertiser_id),
    ]
    if row["status"] != "ACTIVE":
        raise Stop(
            f"advertiser {advertiser_id} ({row['name']}) is {row['status']}",
            facts,
            "Nothing of this advertiser serves, whatever the state of its campaigns.",
            [sql(f"UPDATE advertisers SET status = 'ACTIVE' WHERE id = {advertiser_id}")],
        )
    if row["billing_status"] != "OK":
        raise Stop(
            f"advertiser {advertiser_id} ({row['name']}) cannot be billed: {row['billing_status']}",
            facts,
            "The advertiser's payment does not work, so all its campaigns are held back until it does.",
            [
                "have the advertiser correct the payment, then: "
                + sql(f"UPDATE advertisers SET billing_status = 'OK' WHERE id = {advertiser_id}")
            ],
        )
    return Finding(True, f"advertiser {advertiser_id} ({row['name']}) is active and billable", facts)


def campaign_runs(search: Search) -> Finding:
    """Step 2: the campaign exists, is active and in schedule."""
    row, campaign_id = search.campaign, search.campaign_id
    if not row:
        if search.kind == "ad":
            return _ad_without_campaign(search)
        raise Stop(
            f"campaign {campaign_id} is not in the ads DB",
            [search.source("campaigns row", None, "campaigns", campaign_id)],
            "It has been deleted; only traces of it are left in the pipeline.",
            ["create the campaign anew if it was deleted by mistake"],
        )
    facts = [
        search.source("campaigns.status", row["status"], "campaigns", campaign_id),
        search.source("campaigns.starts_at", row["starts_at"], "campaigns", campaign_id),
        search.source("campaigns.ends_at", row["ends_at"], "campaigns", campaign_id),
    ]
    if row["status"] != "ACTIVE":
        raise Stop(
            f"campaign {campaign_id} ({row['name']}) is {row['status']}",
            facts,
            "The campaign has been switched off, so none of its ads serve.",
            [sql(f"UPDATE campaigns SET status = 'ACTIVE' WHERE id = {campaign_id}")],
        )
    if fault := schedule_fault(row, search.at_us):
        column = "starts_at" if fault.startswith("starts") else "ends_at"
        raise Stop(
            f"campaign {campaign_id} ({row['name']}) {fault}",
            facts,
            "The campaign is outside its schedule; it begins and ends by the clock, without any update.",
            [sql(f"UPDATE campaigns SET {column} = NULL WHERE id = {campaign_id}")],
        )
    return Finding(True, f"campaign {campaign_id} ({row['name']}) is active and in schedule", facts)


def _ad_without_campaign(search: Search) -> Finding:
    ad = search.row("ads", "id", search.entity_id)
    if not ad:
        raise Stop(
            f"ad {search.entity_id} is not in the ads DB",
            [search.source("ads row", None, "ads", search.entity_id)],
            "It has been deleted; only traces of it are left in the pipeline.",
            ["create the ad anew if it was deleted by mistake"],
        )
    raise Stop(
        f"ad {search.entity_id} belongs to no campaign: ad group {ad['ad_group_id']} or its campaign is missing",
        [search.source("ads.ad_group_id", ad["ad_group_id"], "ads", search.entity_id)],
        "An ad without campaign waits until its parents arrive.",
        [f"create ad group {ad['ad_group_id']} and its campaign, or move the ad to an existing ad group"],
    )


def budget_left(search: Search) -> Finding:
    """Step 3: a budget row exists, with something left for today and for the whole run."""
    campaign_id = search.campaign_id
    row = search.row("budgets", "campaign_id", campaign_id)
    if not row:
        raise Stop(
            f"campaign {campaign_id} has no budget",
            [search.source("budgets row", None, "budgets", f"campaign_id={campaign_id}")],
            "A campaign without a budget may not spend anything.",
            [
                "give it one, for example: "
                + sql(
                    "INSERT INTO budgets (campaign_id, daily_micros, lifetime_micros, spent_today_micros, "
                    f"spent_total_micros, currency) VALUES ({campaign_id}, 50000000, 0, 0, 0, 'USD')"
                )
            ],
        )
    currency = row.get("currency")
    facts = [
        search.source(f"budgets.{name}", row.get(name), "budgets", f"campaign_id={campaign_id}")
        for name in ("daily_micros", "spent_today_micros", "lifetime_micros", "spent_total_micros")
    ]
    daily, lifetime = whole(row.get("daily_micros")), whole(row.get("lifetime_micros"))
    today, total = whole(row.get("spent_today_micros")), whole(row.get("spent_total_micros"))
    if 0 < daily <= today:
        raise Stop(
            f"the daily budget is used up: {money(today, currency)} of {money(daily, currency)} spent today",
            facts,
            "The campaign pauses until spend is reset at the end of the day, or the budget is raised.",
            [
                sql(
                    f"UPDATE budgets SET daily_micros = {max(2 * daily, 2 * today, 1_000_000)} "
                    f"WHERE campaign_id = {campaign_id}"
                )
            ],
        )
    if 0 < lifetime <= total:
        raise Stop(
            f"the lifetime budget is used up: {money(total, currency)} of {money(lifetime, currency)} spent",
            facts,
            "The campaign has spent all that it was ever given, and ends here unless it gets more.",
            [
                sql(
                    f"UPDATE budgets SET lifetime_micros = {max(2 * lifetime, 2 * total)} "
                    f"WHERE campaign_id = {campaign_id}"
                )
            ],
        )
    left = [limit - spent for limit, spent in ((daily, today), (lifetime, total)) if limit > 0]
    said = f"{money(min(left), currency)} may still be spent today" if left else "the budget has no limit"
    return Finding(True, said, facts)


def ad_groups_run(search: Search) -> Finding:
    """Step 4: at least one ad group is active, in date and has a bid."""
    campaign_id = search.campaign_id
    keys = [int(campaign_id)]
    groups = search.rows("ad_groups", "campaign_id", keys, limit=GROUPS_JUDGED)
    if search.kind == "ad":
        groups = [g for g in groups if g["id"] == search.row("ads", "id", search.entity_id).get("ad_group_id")]
    if not groups:
        raise Stop(
            f"campaign {campaign_id} has no ad groups",
            [search.source("ad_groups rows", 0, "ad_groups", f"campaign_id={campaign_id}")],
            "There is nothing in the campaign that could bid.",
            ["create an ad group with a bid, and ads in it"],
        )
    faults: list[tuple[dict[str, Any], str, str]] = []
    for group in groups:
        bid = whole(group.get("bid_micros"))
        if group["status"] != "ACTIVE":
            faults.append((group, f"is {group['status']}", "status = 'ACTIVE'"))
        elif fault := schedule_fault(group, search.at_us):
            faults.append((group, fault, f"{'starts_at' if fault.startswith('starts') else 'ends_at'} = NULL"))
        elif bid <= 0:
            faults.append((group, "has no bid" if not bid else f"has a bid below 0 ({bid})", "bid_micros = 500000"))
        else:
            search.groups.append(group)
    facts = [
        search.source(
            "ad_groups (status, bid_micros, starts_at, ends_at)",
            [g["status"], g.get("bid_micros"), g.get("starts_at"), g.get("ends_at")],
            "ad_groups",
            g["id"],
        )
        for g in groups[:5]
    ]
    if not search.groups:
        first, fault, _ = faults[0]
        which = (
            f"ad group {first['id']} {fault}"
            if len(faults) == 1
            else (f"none of the {len(faults)} ad groups can run; ad group {first['id']} {fault}")
        )
        raise Stop(
            which,
            facts,
            "Bids and targeting live in ad groups; without one that runs, no ad of the campaign is in any auction.",
            [sql(f"UPDATE ad_groups SET {c} WHERE id = {g['id']}") for g, _, c in faults[:3]],
        )
    search.note([f"ad group {g['id']} {fault}" for g, fault, _ in faults])
    return Finding(True, f"{len(search.groups)} of {counted(len(groups), 'ad group')} can run", facts)


def ads_run(search: Search) -> Finding:
    """Step 5: at least one ad is active and approved and has a valid creative."""
    group_of = {g["id"]: g for g in search.groups}
    ads = search.rows("ads", "ad_group_id", list(group_of), limit=ADS_READ)
    if search.kind == "ad":
        ads = [a for a in ads if str(a["id"]) == search.entity_id]
    if not ads:
        raise Stop(
            "the ad groups that can run have no ads",
            [search.source("ads rows", 0, "ads", f"ad_group_id in {sorted(group_of)[:5]}")],
            "There is nothing to show.",
            ["create an ad in one of them: " + ", ".join(str(g) for g in sorted(group_of)[:5])],
        )
    faults: list[tuple[dict[str, Any], str, str, list[Fact]]] = []
    good: list[dict[str, Any]] = []
    for ad in ads:
        if ad["status"] != "ACTIVE":
            faults.append((ad, f"is {ad['status']}", f"UPDATE ads SET status = 'ACTIVE' WHERE id = {ad['id']}", []))
        elif ad["review_status"] != "APPROVED":
            statement = f"UPDATE ads SET review_status = 'APPROVED' WHERE id = {ad['id']}"
            faults.append((ad, f"is not approved: review is {ad['review_status']}", statement, []))
        else:
            good.append(ad)
    for ad, problem, statement, facts in _creative_faults(search, good):
        faults.append((ad, problem, statement, facts))
    bad = {ad["id"] for ad, *_ in faults}
    search.candidates = [Candidate(ad, group_of[ad["ad_group_id"]]) for ad in good if ad["id"] not in bad]
    if not search.candidates:
        first, problem, _, more = faults[0]
        raise Stop(
            f"ad {first['id']} {problem}"
            if len(faults) == 1
            else f"none of the {len(faults)} ads may be shown; ad {first['id']} {problem}",
            [
                *(
                    search.source("ads (status, review_status)", [a["status"], a["review_status"]], "ads", a["id"])
                    for a, *_ in faults[:5]
                ),
                *more,
            ],
            "Only active, reviewed ads with a complete creative may be shown to people.",
            [
                ("after review: " if "review_status" in statement else "") + sql(statement)
                for _, _, statement, _ in faults[:3]
            ],
        )
    search.note([f"ad {ad['id']} {problem}" for ad, problem, _, _ in faults])
    count = len(search.candidates)
    facts = [
        search.source("ads (status, review_status)", [c.ad["status"], c.ad["review_status"]], "ads", c.ad_id)
        for c in search.candidates[:5]
    ]
    if count > ADS_JUDGED:
        search.candidates = search.candidates[:ADS_JUDGED]
        search.notes.append(f"{count} ads may be shown; the following steps look at the first {ADS_JUDGED}")
    return Finding(True, f"{count} of {counted(len(ads), 'ad')} active and approved, with a valid creative", facts)


def _creative_faults(search: Search, ads: list[dict[str, Any]]) -> list[tuple[dict[str, Any], str, str, list[Fact]]]:
    pins = {p["id"]: p for p in search.rows("pins", "id", sorted({a["pin_id"] for a in ads if a["pin_id"]}))}
    search.images = {pin_id: str(p["image_id"]) for pin_id, p in pins.items() if p["image_id"]}
    images = {
        i["id"]: i for i in search.rows("images", "id", sorted({p["image_id"] for p in pins.values() if p["image_id"]}))
    }
    faults: list[tuple[dict[str, Any], str, str, list[Fact]]] = []
    for ad in ads:
        pin = pins.get(ad["pin_id"])
        if pin is None:
            problem = f"shows pin {ad['pin_id']}, which does not exist"
            statement = f"UPDATE ads SET pin_id = <an existing pin> WHERE id = {ad['id']}"
            faults.append((ad, problem, statement, [search.source("ads.pin_id", ad["pin_id"], "ads", ad["id"])]))
            continue
        key, image = literal(pin["id"]), images.get(pin["image_id"])
        title = pin["title"].decode(errors="replace") if isinstance(pin["title"], bytes) else pin["title"]
        facts = [
            search.source("pins (status, title, image_id)", [pin["status"], title, pin["image_id"]], "pins", pin["id"])
        ]
        problem = statement = ""
        if pin["status"] != "ACTIVE":
            problem = f"shows pin {pin['id']}, which is {pin['status']}"
            statement = f"UPDATE pins SET status = 'ACTIVE' WHERE id = {key}"
        elif not (title or "").strip():
            problem = f"shows pin {pin['id']}, which has no title"
            statement = f"UPDATE pins SET title = '<title>' WHERE id = {key}"
        elif pin["image_id"] is None:
            continue  # A pin may do without an image.
        elif image is None:
            problem = f"shows pin {pin['id']}, whose image {pin['image_id']} does not exist"
            statement = f"UPDATE pins SET image_id = <an existing image> WHERE id = {key}"
        elif image["status"] != "ACTIVE" or not image["url"]:
            state = image["status"] if image["url"] else "without a URL"
            facts.append(search.source("images (status, url)", [image["status"], image["url"]], "images", image["id"]))
            problem = f"shows pin {pin['id']}, whose image {image['id']} is {state}"
            statement = f"UPDATE images SET status = 'ACTIVE' WHERE id = {literal(image['id'])}"
        if problem:
            faults.append((ad, problem, statement, facts))
    return faults
