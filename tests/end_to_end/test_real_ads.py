"""Real ads in, servable documents out: everything is compared with what the CSV files alone say."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests.end_to_end.command import (
    adsindex,
    answers,
    as_json,
    documents,
    readable_documents,
    running,
    stage_pids,
    until_idle,
)
from tests.end_to_end.oracle import Combination, RealAds, micros, request_of, top_category

pytestmark = pytest.mark.timeout(900)

PAUSED_CAMPAIGN = "916"
KILLABLE = ("gateway-0", "updater-0", "wal_proxy-0", "argus-0", "argus-0", "argus-1", "argus-1", "manas-0")
BIG_CAMPAIGN = "1178"
"""625 ads: more than Argus takes of one fan-out, or of all of a batch."""
BIG_FAN_OUTS = (
    f"UPDATE campaigns SET status = 'PAUSED' WHERE id = {BIG_CAMPAIGN}",
    "UPDATE ad_groups SET bid_micros = bid_micros + 1000000",
    f"UPDATE campaigns SET status = 'ACTIVE' WHERE id = {BIG_CAMPAIGN}",
    "UPDATE ad_groups SET bid_micros = bid_micros - 1000000",
)
"""They come to nothing in the end, so the documents are those of the clean run."""


def load(home: Path, real: RealAds) -> None:
    """Load both exports as the README says."""
    adsindex("load", real.products_csv, "--mapping", "flipkart_products", home=home)
    adsindex("load", real.ads_csv, "--mapping", "kag_facebook_ads", home=home)


class Changes:
    """A day of an advertiser, as SQL, and what it means for the answers, derived from the CSV rows."""

    def __init__(self, real: RealAds) -> None:
        self.real = real
        live = [a for a in real.ads if a["xyz_campaign_id"] != PAUSED_CAMPAIGN]
        self.raised_group = live[0]["fb_campaign_id"]
        self.deleted_ad = live[1]["ad_id"]
        self.swapped_ad = live[2]["ad_id"]
        self.swapped_to = real.products[500]
        self.retargeted_group = live[30]["fb_campaign_id"]
        groups: dict[str, list[str]] = {}
        for ad in live[100:]:
            groups.setdefault(ad["fb_campaign_id"], []).append(ad["ad_id"])
        self.moved_groups: list[str] = []
        moved = 0
        for group, ads in groups.items():  # groups whose ads add up to exactly 100
            if group != self.retargeted_group and moved + len(ads) <= 100:
                self.moved_groups.append(group)
                moved += len(ads)
        assert moved == 100
        self.moved_interest = "999"

    def statements(self) -> list[str]:
        """Return what the advertiser's applications send."""
        group_list = ", ".join(self.moved_groups)
        return [
            f"UPDATE campaigns SET status = 'PAUSED' WHERE id = {PAUSED_CAMPAIGN}",
            f"UPDATE ad_groups SET bid_micros = 99000000 WHERE id = {self.raised_group}",
            f"""UPDATE targeting_specs SET spec = '{{"age": ["18-24"], "gender": ["F"], "interests": [7]}}' """
            f"WHERE ad_group_id = {self.retargeted_group}",
            f"UPDATE ads SET pin_id = '{self.swapped_to['uniq_id']}' WHERE id = {self.swapped_ad}",
            f"DELETE FROM ads WHERE id = {self.deleted_ad}",
            "UPDATE targeting_specs SET spec = json_set(spec, '$.interests', json('["
            f"{self.moved_interest}]')) WHERE ad_group_id IN ({group_list})",
        ]

    def targeting_after(self) -> dict[str, Combination]:
        """Return ad -> combination of the ads that may still serve."""
        after: dict[str, Combination] = {}
        for ad in self.real.ads:
            if ad["xyz_campaign_id"] == PAUSED_CAMPAIGN or ad["ad_id"] == self.deleted_ad:
                continue
            age, gender, interest = ad["age"], ad["gender"], ad["interest"]
            if ad["fb_campaign_id"] == self.retargeted_group:
                age, gender, interest = "18-24", "F", "7"
            elif ad["fb_campaign_id"] in self.moved_groups:
                interest = self.moved_interest
            after[ad["ad_id"]] = (age, gender, interest)
        return after


def check_answers(home: Path, folder: Path, real: RealAds, targeting: dict[str, Combination]) -> None:
    """Every combination that ever occurs must be answered with exactly the ads that demand it."""
    wanted = real.by_combination(targeting)
    combinations = sorted({*real.combinations(), *wanted})
    found = answers(home, [request_of(c) for c in combinations], folder)
    assert dict(zip(combinations, found, strict=True)) == {c: wanted.get(c, set()) for c in combinations}


@pytest.fixture(scope="module")
def real(data: Path) -> RealAds:
    """The real ads and products."""
    return RealAds(data)


@pytest.fixture(scope="module")
def clean(real: RealAds, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with the real ads, served, before any change."""
    home = tmp_path_factory.mktemp("clean") / "home"
    load(home, real)
    report = until_idle(home)
    assert report["documents"] == len(real.ads)
    assert report["dead_lettered"] == {}
    return home


@pytest.fixture(scope="module")
def changed(clean: Path, real: RealAds) -> Path:
    """The same home after a day of changes, made while the service was down and taken up when it came back."""
    before = readable_documents(clean)
    changes = Changes(real)
    for statement in changes.statements():
        adsindex("sql", statement, home=clean)
    until_idle(clean)
    after = readable_documents(clean)
    touched = set(before) ^ set(after) | {ad for ad in after if after[ad] != before.get(ad)}
    expected = {
        ad["ad_id"]
        for ad in real.ads
        if ad["xyz_campaign_id"] == PAUSED_CAMPAIGN
        or ad["ad_id"] in (changes.deleted_ad, changes.swapped_ad)
        or ad["fb_campaign_id"] in (changes.raised_group, changes.retargeted_group, *changes.moved_groups)
    }
    assert touched == expected, "something else changed as well"
    return clean


def test_every_combination_is_answered_with_exactly_the_ads_of_the_csv(
    clean: Path, real: RealAds, tmp_path: Path
) -> None:
    """For every (age, gender, interest) that occurs, search returns exactly the ads that the CSV says."""
    check_answers(clean, tmp_path, real, real.targeting)


def test_every_document_has_the_title_price_category_and_spend_of_the_csv(clean: Path, real: RealAds) -> None:
    """The served document of every ad carries what its rows in both files say."""
    served = readable_documents(clean)
    assert set(served) == set(real.targeting)
    for position, ad in enumerate(real.ads):
        product, document = real.product_of(position), served[ad["ad_id"]]
        assert document["ad_id"] == int(ad["ad_id"])
        assert document["campaign_id"] == int(ad["xyz_campaign_id"])
        assert document["title"] == product["product_name"].strip()
        assert document.get("price_micros") == (micros(product["discounted_price"]) or micros(product["retail_price"]))
        assert document["category"] == top_category(product)
        assert document["spend_micros"] == micros(ad["Spent"])
        assert document["impressions"] == int(ad["Impressions"])
        assert document["clicks"] == int(ad["Clicks"])


def test_loading_twice_changes_nothing(clean: Path, real: RealAds) -> None:
    """A second load of both files writes nothing to the ads DB, so the change feed does not move."""
    count = ("sql", "SELECT seq FROM sqlite_sequence WHERE name = '_adsindex_changes'")
    before = as_json(*count, home=clean)["rows"]
    load(clean, real)
    assert as_json(*count, home=clean)["rows"] == before


def test_sql_changes_change_exactly_those_answers(changed: Path, real: RealAds, tmp_path: Path) -> None:
    """Pause, bid, targeting, creative, delete, a hundred interests in one transaction: answered, and nothing else."""
    changes = Changes(real)
    check_answers(changed, tmp_path, real, changes.targeting_after())
    served = readable_documents(changed)
    raised = [a["ad_id"] for a in real.ads if a["fb_campaign_id"] == changes.raised_group]
    assert all(served[ad]["bid_micros"] == 99_000_000 for ad in raised if ad != changes.deleted_ad)
    assert served[changes.swapped_ad]["title"] == changes.swapped_to["product_name"].strip()


@pytest.mark.stress
def test_documents_are_byte_equal_after_random_kills(changed: Path, real: RealAds, tmp_path: Path) -> None:
    """Loading and changing while random stages are killed with -9 ends in the very bytes of the clean run.

    What serving has is compared as well as what is stored, among two Argus workers and fan-outs over their budget.
    """
    home = tmp_path / "killed" / "home"
    home.parent.mkdir()
    rng = random.Random(20261122)
    kills = 0

    def kill_some(count: int) -> None:
        nonlocal kills
        done = kills + count
        while kills < done:  # a stage that is being started again cannot be killed
            time.sleep(rng.uniform(0.05, 0.4))  # the schedule of the killer, not a wait for something to happen
            pids = stage_pids(home)
            name = rng.choice(KILLABLE)
            if name in pids:
                try:
                    os.kill(pids[name], signal.SIGKILL)
                    kills += 1
                except ProcessLookupError:
                    continue

    assert sum(ad["xyz_campaign_id"] == BIG_CAMPAIGN for ad in real.ads) == 625
    with running(home, "--sample", "0", "--argus-workers", "2"):
        adsindex("load", real.products_csv, "--mapping", "flipkart_products", home=home)
        kill_some(6)
        adsindex("load", real.ads_csv, "--mapping", "kag_facebook_ads", home=home)
        kill_some(6)
        for statement in Changes(real).statements():
            adsindex("sql", statement, home=home)
            kill_some(2)
        for statement in BIG_FAN_OUTS * 3:
            adsindex("sql", statement, home=home)
            kill_some(3)
    report = until_idle(home, "--sample", "0", "--argus-workers", "2")
    assert kills >= 40
    clean = documents(changed)
    assert documents(changed, "--served") == clean
    for killed in (documents(home), documents(home, "--served")):
        assert {ad for ad in killed.keys() | clean.keys() if killed.get(ad) != clean.get(ad)} == set()
    assert report["documents"] == len(clean)
    check_answers(home, tmp_path, real, Changes(real).targeting_after())


def test_base_and_deltas_answer_like_deltas_alone_and_like_a_later_base(
    changed: Path, real: RealAds, tmp_path: Path
) -> None:
    """Answers, scores and order are equal from deltas alone, from base + deltas, and from a base built afterwards."""
    requests = [request_of(c) for c in real.combinations()[::7]]
    requests += [{**r, "text": "women cotton"} for r in requests[:5]]
    requests += [{**r, "similar_to": int(real.ads[400]["ad_id"])} for r in requests[:5]]
    file = tmp_path / "requests.jsonl"
    file.write_text("".join(json.dumps(request) + "\n" for request in requests))

    def ask() -> list[str]:
        return adsindex("search", "--requests", file, "-k", "0", "--json", home=changed).stdout.splitlines()

    adsindex("sql", "UPDATE campaigns SET status = 'ACTIVE'", home=changed)
    until_idle(changed)
    alone = ask()
    built = as_json("workflow", "run", "base-index", home=changed)
    assert built["differing"] == 0
    assert ask() == alone
    changes = Changes(real)
    adsindex("sql", f"UPDATE ad_groups SET bid_micros = 77000000 WHERE id = {changes.retargeted_group}", home=changed)
    adsindex("sql", f"UPDATE campaigns SET status = 'PAUSED' WHERE id = {PAUSED_CAMPAIGN}", home=changed)
    until_idle(changed)
    base_and_deltas = ask()
    assert base_and_deltas != alone
    assert as_json("workflow", "run", "base-index", home=changed)["differing"] == 0
    assert ask() == base_and_deltas
    for directory in (changed / "base").iterdir():
        if directory.name == "CURRENT":
            directory.unlink()
    assert ask() == base_and_deltas
