"""Carrying one more plain column from the ads DB to the served document is an edit of the catalogue alone."""

from __future__ import annotations

from pathlib import Path

from catalog import DEFAULT_CATALOG, load_catalog
from catalog.documents import decode_document
from cli.backends import close_backends, open_backends
from cli.inprocess import InProcess
from messaging.home import Home

AD = """
INSERT INTO advertisers (id, name, currency) VALUES (1, 'A', 'USD');
INSERT INTO campaigns (id, advertiser_id, name) VALUES (1, 1, 'C');
INSERT INTO budgets (campaign_id, daily_micros, currency) VALUES (1, 1000000000, 'USD');
INSERT INTO ad_groups (id, campaign_id, name, bid_micros) VALUES (1, 1, 'G', 500000);
INSERT INTO pins (id, title) VALUES ('p1', 'Green tea'), ('p2', 'Black tea');
INSERT INTO ads (id, ad_group_id, pin_id, name) VALUES (1, 1, 'p1', 'one'), (2, 1, 'p2', 'two');
"""


def edited_catalog(folder: Path) -> Path:
    """Copy the built-in catalogue and add two lines: a column of ads, and a field of the document."""
    text = DEFAULT_CATALOG.read_text()
    text = text.replace(
        "      review_status: {type: string, from: ads.review_status",
        "      tracking_code: {type: string, from: ads.tracking_code}\n"
        "      review_status: {type: string, from: ads.review_status",
    )
    text = text.replace(
        "  link: {from: pin.link}\n", "  link: {from: pin.link}\n  tracking: {from: ad.tracking_code, index: term}\n"
    )
    file = folder / "ads.yaml"
    file.write_text(text)
    return file


def served(pipeline: InProcess, ad: str) -> dict[str, object]:
    """Return the fields that serving has of an ad."""
    found = pipeline.backends.serving.get([ad])[0]
    assert found.found
    return decode_document(found.body)


def test_a_new_column_reaches_the_served_document_by_an_edit_of_the_catalogue(tmp_path: Path) -> None:
    """ALTER TABLE and two lines of the catalogue bring the values that are there already, and follow later changes."""
    home = Home.open(tmp_path / "home")
    with InProcess(home, load_catalog()) as pipeline:
        pipeline.backends.ads_db.execute(AD)
        pipeline.until_idle()
        assert "tracking" not in served(pipeline, "1")
        pipeline.backends.ads_db.execute("ALTER TABLE ads ADD COLUMN tracking_code VARCHAR(64)")
        pipeline.backends.ads_db.execute("UPDATE ads SET tracking_code = 'spring' WHERE id = 1")
        pipeline.until_idle()
        assert "tracking" not in served(pipeline, "1"), "the old catalogue does not know the column"
    with InProcess(home, load_catalog(edited_catalog(tmp_path))) as pipeline:
        pipeline.until_idle()
        assert served(pipeline, "1")["tracking"] == "spring"
        assert "tracking" not in served(pipeline, "2")
        pipeline.backends.ads_db.execute("UPDATE ads SET tracking_code = 'autumn'")
        pipeline.until_idle()
        assert served(pipeline, "1")["tracking"] == served(pipeline, "2")["tracking"] == "autumn"
        found = pipeline.backends.serving.search({"filter": {"term": {"field": "tracking", "value": "autumn"}}}, 0)
        assert found["total"] == 2


def test_an_edit_while_the_service_runs_with_the_old_catalogue_loses_no_row(tmp_path: Path) -> None:
    """A command with the new catalogue beside a Gateway with the old one: after the restart all rows have the field."""
    home, edited = Home.open(tmp_path / "home"), load_catalog(edited_catalog(tmp_path))
    with InProcess(home, load_catalog()) as pipeline:
        pipeline.backends.ads_db.execute(AD)
        pipeline.backends.ads_db.execute("ALTER TABLE ads ADD COLUMN tracking_code VARCHAR(64) DEFAULT 'spring'")
        pipeline.until_idle()
        close_backends(open_backends(home, edited))  # what every command does
        pipeline.backends.ads_db.ensure_capture(edited)  # and what none does any more
        pipeline.until_idle()
    with InProcess(home, edited) as pipeline:
        pipeline.until_idle()
        assert served(pipeline, "1")["tracking"] == served(pipeline, "2")["tracking"] == "spring"
