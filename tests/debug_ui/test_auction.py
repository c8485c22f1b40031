"""The last step of the diagnosis, with catalogues that name and score otherwise than the built-in one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from catalog import DEFAULT_CATALOG, load_catalog
from debug_ui import BadInput
from debug_ui.diagnosis import diagnose_ad, diagnose_campaign
from tests.debug_ui.pipeline import Pipeline, fill

Open = Callable[[dict[str, str]], Pipeline]


@pytest.fixture
def opened(homes: Path, tmp_path: Path) -> Iterator[Open]:
    """Return a function that opens a filled pipeline, with some lines of the built-in catalogue replaced."""
    made: list[Pipeline] = []

    def open_with(changed: dict[str, str]) -> Pipeline:
        text = DEFAULT_CATALOG.read_text()
        for old, new in changed.items():
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        file = tmp_path / "catalog.yaml"
        file.write_text(text)
        pipeline = Pipeline.open(homes / f"auction-{len(made)}-{tmp_path.name}", load_catalog(file))
        made.append(pipeline)
        fill(pipeline)
        for i in range(4, 14):
            pipeline.sql(f"INSERT INTO ads (id, ad_group_id, pin_id) VALUES ({1000 + i}, 20, 'pin-200')")
        pipeline.sql("UPDATE ad_groups SET bid_micros = 7000000 WHERE id = 20")
        pipeline.run()
        return pipeline

    yield open_with
    for pipeline in made:
        pipeline.close()


def test_fields_of_other_names_are_understood(opened: Open) -> None:
    """Where the document calls its bid something else and has no currency, the advice is still the ads DB's column."""
    pipeline = opened(
        {
            "  bid_micros: {from: ad_document.bid_micros,": "  asked: {from: ad_document.bid_micros,",
            "  bid_currency: {from: ad_document.bid_currency}\n": "",
            "  bid_account_micros: {from: ad_document": "  offer: {from: ad_document",
            "  bid: bid_account_micros": "  bid: offer",
        }
    )
    diagnosis = diagnose_campaign(pipeline.backends, "1")
    assert diagnosis.cause == "auction"
    assert (
        diagnosis.summary.startswith("outbid") and "it bids 1.00 USD and would need 7.000001 USD" in diagnosis.summary
    )
    statement = diagnosis.steps[-1].fix[0].partition('sql "')[2].removesuffix('"')
    assert statement == "UPDATE ad_groups SET bid_micros = 7000001 WHERE id = 10"
    pipeline.sql(statement)
    pipeline.run()
    assert diagnose_campaign(pipeline.backends, "1").healthy


def test_a_score_that_is_no_bid_is_called_by_its_name(opened: Open) -> None:
    """Where a number ranks documents instead of a bid, nobody is told to raise a bid."""
    pipeline = opened({"  bid: bid_account_micros": "  score: bid_account_micros"})
    diagnosis = diagnose_campaign(pipeline.backends, "1")
    assert diagnosis.cause == "auction"
    assert diagnosis.summary.startswith("outranked")
    assert "its bid_account_micros is 1e+06 and would need 7e+06" in diagnosis.summary
    assert "UPDATE" not in " ".join(diagnosis.steps[-1].fix)


def test_a_schema_without_advertisers_is_told_what_to_use(homes: Path) -> None:
    """`why` on films is a sentence with the commands that help there."""
    catalog = load_catalog(Path(__file__).parents[2] / "examples" / "sakila" / "sakila.yaml")
    pipeline = Pipeline.open(homes / "films", catalog, capture=False)
    for diagnose in (diagnose_campaign, diagnose_ad):
        with pytest.raises(BadInput, match=r"no table advertiser, campaign, ad_group, ad; .*`show film ID"):
            diagnose(pipeline.backends, "1")
    pipeline.close()
