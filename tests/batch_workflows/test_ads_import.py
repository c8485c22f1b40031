"""Loading an export: good rows go in once, bad ones are reported with line, column, value and reason."""

from __future__ import annotations

import csv
import random
import sqlite3
from collections.abc import Iterator
from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path

import pytest

from batch_workflows import BatchError, ads_import
from batch_workflows.ads_import import InvalidExport, InvalidMapping, resolve_mapping
from tests.batch_workflows.import_support import KAG_HEADER, Importer, csv_text, kag_row, signal_version

PRODUCT_HEADER = [
    "uniq_id", "product_name", "description", "brand", "product_url", "product_category_tree", "discounted_price",
    "retail_price", "image",
]  # fmt: skip


@pytest.fixture
def importer(tmp_path: Path) -> Iterator[Importer]:
    """A home to load into."""
    made = Importer(tmp_path)
    yield made
    made.close()


def product(number: int, **changes: str) -> list[str]:
    """Return a good row of a product export with some cells changed."""
    cells = (
        f"{number:032x}", f"Product {number}", "Text", "Brand", "http://x.example/p", '["A >> B"]', "379", "999",
        '["http://x.example/1.jpg", "http://x.example/2.jpg"]',
    )  # fmt: skip
    return list({**dict(zip(PRODUCT_HEADER, cells, strict=True)), **changes}.values())


def test_twice_changes_nothing(importer: Importer) -> None:
    """Loading the same file again writes no row, logs no change and sends no signal."""
    text = csv_text(KAG_HEADER, [kag_row(i, 20 + i % 3) for i in range(1, 31)])
    first = importer.load(text)
    assert (first.rows_read, first.rows_good, first.rows_bad) == (30, 30, 0)
    assert first.inserted == {
        "advertisers": 1, "campaigns": 1, "budgets": 1, "ad_groups": 3, "targeting_specs": 3, "ads": 30,
    }  # fmt: skip
    before = (importer.everything(), importer.db.last_change(), len(importer.signals()))
    second = importer.load(text)
    assert (importer.everything(), importer.db.last_change(), len(importer.signals())) == before
    assert not second.inserted
    assert not second.updated
    assert second.unchanged == first.inserted
    assert (second.performance_changed, second.paired) == (0, 0)


def test_changed_cells_update_only_these(importer: Importer) -> None:
    """A changed cell updates its column; what was changed in the ads DB since the last load stays."""
    importer.load(csv_text(KAG_HEADER, [kag_row(1, 20), kag_row(2, 21)]))
    importer.db.execute("UPDATE campaigns SET status = 'PAUSED'; UPDATE ad_groups SET bid_micros = 7 WHERE id = 21")
    before = importer.db.last_change()
    report = importer.load(csv_text(KAG_HEADER, [kag_row(1, 20, Clicks="3"), kag_row(2, 21, age="45-49")]))
    assert dict(report.updated) == {"ad_groups": 1, "targeting_specs": 1}
    changes = importer.rows(f"SELECT source_table, key FROM _adsindex_changes WHERE seq > {before} ORDER BY seq")
    assert changes == [("ad_groups", 21), ("targeting_specs", 21)]
    assert importer.one("SELECT spec FROM targeting_specs WHERE ad_group_id = 21").startswith('{"age": ["45-49"]')
    assert importer.one("SELECT bid_micros FROM ad_groups WHERE id = 21") == 7
    assert importer.one("SELECT status FROM campaigns") == "PAUSED"
    assert report.performance_changed == 1


def test_deleted_rows_stay_deleted(importer: Importer) -> None:
    """A row that was deleted in the ads DB comes back only when the export has other values for it."""
    importer.load(csv_text(KAG_HEADER, [kag_row(1), kag_row(2)]))
    importer.db.execute("DELETE FROM ads WHERE id = 1")
    importer.load(csv_text(KAG_HEADER, [kag_row(1), kag_row(2)]))
    assert importer.rows("SELECT id FROM ads") == [(2,)]
    importer.load(csv_text(KAG_HEADER, [kag_row(1, 30), kag_row(2)]))
    assert importer.rows("SELECT id, ad_group_id FROM ads ORDER BY id") == [(1, 30), (2, 20)]


def test_rows_of_an_application_are_adopted(importer: Importer) -> None:
    """Rows that were there before the first load get the export's values, and only where they differ."""
    importer.db.execute("INSERT INTO ads (id, ad_group_id, name) VALUES (1, 20, 'Ad 1'), (2, 99, 'Ad 2')")
    before = importer.db.last_change()
    report = importer.load(csv_text(KAG_HEADER, [kag_row(1), kag_row(2)]))
    assert (report.updated["ads"], report.unchanged["ads"]) == (1, 1)
    changes = importer.rows(f"SELECT key FROM _adsindex_changes WHERE source_table = 'ads' AND seq > {before}")
    assert changes == [(2,)]


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("ad_id", "", "empty"), ("ad_id", "12x", "bad_number"), ("ad_id", "0", "out_of_range"),
        ("ad_id", "9223372036854775808", "out_of_range"), ("ad_id", "1_0", "bad_number"),
        ("ad_id", "1.5", "bad_number"),
        ("age", "thirty", "no_match"), ("gender", "male?", "no_match"), ("interest", "-1", "out_of_range"),
        ("Spent", "1,5", "bad_number"), ("Spent", "$1.5", "bad_number"), ("Spent", "-0.01", "out_of_range"),
        ("Spent", "NaN", "bad_number"), ("Spent", "1e99", "out_of_range"), ("Spent", "inf", "bad_number"),
        ("Impressions", "  ", "empty"), ("Clicks", "٣", "bad_number"),
    ],
)  # fmt: skip
def test_bad_cells(importer: Importer, column: str, value: str, reason: str) -> None:
    """A bad cell is reported with line, column, value and reason; nothing of its row goes in, its neighbours do."""
    rows = [kag_row(1), kag_row(2, 77, **{column: value}), kag_row(3)]
    report = importer.load(csv_text(KAG_HEADER, rows))
    assert (report.rows_read, report.rows_good, report.rows_bad) == (3, 2, 1)
    (bad,) = report.bad
    assert (bad.line, bad.column, bad.value, bad.reason) == (3, column, value, reason)
    assert importer.rows("SELECT id FROM ads ORDER BY id") == [(1,), (3,)]
    assert importer.rows("SELECT id FROM ad_groups") == [(20,)]
    assert f"line 3, column '{column}'" in report.to_text()
    assert report.to_json()["bad"][0]["reason"] == reason


def test_bad_lines(importer: Importer) -> None:
    """Rows with invalid UTF-8 or a wrong number of cells are reported at their line; quotes may span lines."""
    good = [",".join(kag_row(i)) for i in range(1, 5)]
    lines = [
        ",".join(KAG_HEADER).encode(), good[0].encode(), good[1].replace("M", "\xff").encode("latin-1"), b"", b"5,6",
        good[2].replace("30-34", '"30-34\r\n\r\n"').encode(), good[3].encode() + b",more", good[3].encode(),
    ]  # fmt: skip
    report = importer.load(b"\xef\xbb\xbf" + b"\r\n".join(lines))
    found = [(bad.line, bad.column, bad.reason) for bad in report.bad]
    assert found == [
        (3, "gender", "invalid_utf8"), (5, "", "wrong_cell_count"), (6, "age", "no_match"), (9, "", "wrong_cell_count"),
    ]  # fmt: skip
    assert report.bad[0].value == "\\xff"
    assert importer.rows("SELECT id FROM ads ORDER BY id") == [(1,), (4,)]


def test_bad_products(importer: Importer) -> None:
    """Bad JSON, over-long text and bad keys are reported; empty prices and images are null."""
    rows = [
        product(1), product(2, product_category_tree="[oops"), product(3, product_name="x" * 1025),
        product(4, uniq_id="NOT-HEX"), product(5, image='{"a": 1}'), product(6, image="[]", discounted_price=""),
        product(7, product_category_tree='[" A >>  B >> "]', image='["ftp://x"]'),
        product(8, brand="", description=" "),
    ]  # fmt: skip
    report = importer.load(csv_text(PRODUCT_HEADER, rows), "flipkart_products")
    assert [(bad.line, bad.column, bad.reason) for bad in report.bad] == [
        (3, "product_category_tree", "bad_json"), (4, "product_name", "value_too_large"), (5, "uniq_id", "no_match"),
        (6, "image", "bad_json"),
    ]  # fmt: skip
    pins = "SELECT price_micros, list_price_micros, currency, category_path, brand, description, image_id FROM pins"
    assert importer.rows(f"{pins} ORDER BY id") == [
        (379_000_000, 999_000_000, "INR", "A >> B", "Brand", "Text", f"{1:032x}"),
        (None, 999_000_000, "INR", "A >> B", "Brand", "Text", None),
        (379_000_000, 999_000_000, "INR", "A >> B", "Brand", "Text", None),
        (379_000_000, 999_000_000, "INR", "A >> B", None, None, f"{8:032x}"),
    ]
    assert importer.rows("SELECT id, url FROM images ORDER BY id") == [
        (f"{number:032x}", "http://x.example/1.jpg") for number in (1, 8)
    ]


def test_conflicting_parents_and_duplicates(importer: Importer) -> None:
    """A row that contradicts an earlier line's parent, ad or figures is reported; an identical one is not."""
    rows = [kag_row(1, 20), kag_row(2, 20, age="35-39"), kag_row(1, 20), kag_row(3, 20, campaign=901), kag_row(4, 20),
            kag_row(4, 20, Clicks="9"), kag_row(4, 21)]  # fmt: skip
    report = importer.load(csv_text(KAG_HEADER, rows))
    assert [(bad.line, bad.column, bad.reason) for bad in report.bad] == [
        (3, "ad_groups.name", "conflict"), (5, "ad_groups.campaign_id", "conflict"),
        (7, "performance.clicks", "conflict"), (8, "ads.ad_group_id", "conflict"),
    ]  # fmt: skip
    assert "on line 2" in report.bad[0].text
    assert importer.rows("SELECT id FROM ads ORDER BY id") == [(1,), (4,)]
    assert importer.rows("SELECT id FROM campaigns") == [(900,)]
    assert importer.rows("SELECT id FROM ad_groups") == [(20,)]


def test_conflicts_across_chunks(importer: Importer, monkeypatch: pytest.MonkeyPatch) -> None:
    """What belongs together is recognised over chunk borders as well."""
    monkeypatch.setattr(ads_import, "CHUNK", 2)
    report = importer.load(csv_text(KAG_HEADER, [*(kag_row(i) for i in range(1, 8)), kag_row(8, 20, gender="F")]))
    assert [(bad.line, bad.reason) for bad in report.bad] == [(9, "conflict")]
    assert report.inserted["ad_groups"] == 1


@pytest.mark.parametrize("ads_first", [True, False])
def test_pairing_whichever_comes_first(importer: Importer, ads_first: bool) -> None:
    """Ad i gets product i modulo their number in file order, whichever file comes first; a chosen pin stays."""
    ads, pins = [kag_row(i) for i in (50, 10, 40, 30, 20)], [product(i) for i in (7, 3, 5)]
    order = [("ads", ads), ("pins", pins)] if ads_first else [("pins", pins), ("ads", ads)]
    for kind, rows in order:
        if kind == "ads":
            report = importer.load(csv_text(KAG_HEADER, rows))
            assert bool(report.warnings) == ads_first
            assert all("load a product export" in text for text in report.warnings)
        else:
            assert not importer.load(csv_text(PRODUCT_HEADER, rows), "flipkart_products").warnings
    expected = {50: 7, 10: 3, 40: 5, 30: 7, 20: 3}
    assert dict(importer.rows("SELECT id, pin_id FROM ads")) == {a: f"{p:032x}" for a, p in expected.items()}
    importer.db.execute("UPDATE ads SET pin_id = 'mine' WHERE id = 40")
    importer.load(csv_text(KAG_HEADER, ads))
    importer.load(csv_text(PRODUCT_HEADER, [*pins, product(9)]), "flipkart_products")
    assert dict(importer.rows("SELECT id, pin_id FROM ads")) == {
        a: "mine" if a == 40 else f"{p:032x}" for a, p in expected.items()
    }


def test_load_goes_on_after_a_crash(importer: Importer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A load that died between its writes is completed by the next one to what a clean load gives."""
    text = csv_text(KAG_HEADER, [kag_row(i, 20 + i % 7) for i in range(1, 61)])
    monkeypatch.setattr(ads_import, "CHUNK", 10)
    real = ads_import.announce_performance
    calls = 0

    def dies(*arguments: object) -> int:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(ads_import, "announce_performance", dies)
    with pytest.raises(KeyboardInterrupt):
        importer.load(text)
    assert (importer.one("SELECT count(*) FROM ads"), len(importer.signals())) == (30, 20)
    report = importer.load(text)
    assert (report.inserted["ads"], report.unchanged["ads"]) == (30, 30)
    assert sorted(int(s.row) for s in importer.signals()) == list(range(1, 61))
    clean = Importer(tmp_path / "clean")
    clean.load(text)
    assert importer.everything() == clean.everything()
    clean.close()


def test_signals(importer: Importer) -> None:
    """Every ad whose figures changed is signalled with a version that grows."""
    importer.load(csv_text(KAG_HEADER, [kag_row(1), kag_row(2)]))
    importer.load(csv_text(KAG_HEADER, [kag_row(1), kag_row(2, Spent="9")]))
    versions: dict[str, list[int]] = {}
    for signal in importer.signals():
        assert (signal.table, signal.source) == ("ad", "performance")
        assert signal.source_version == signal_version(signal)
        versions.setdefault(signal.row, []).append(signal.source_version)
    assert {row: len(sent) for row, sent in versions.items()} == {"1": 1, "2": 2}
    assert versions["2"][0] < versions["2"][1]


def test_micros_are_exact(importer: Importer) -> None:
    """Money is scaled in decimal and rounded half to even, whatever its digits."""
    rng = random.Random(3)
    cells = [f"{rng.randrange(10 ** rng.randrange(1, 9))}.{rng.randrange(10**12):012d}" for _ in range(200)]
    cells += ["0.0000005", "0.0000015", "1.429999948", "3e-6", ".5", "7."]
    importer.load(csv_text(KAG_HEADER, [kag_row(i, Spent=cell) for i, cell in enumerate(cells, 1)]))
    with sqlite3.connect(importer.home.performance_db) as connection:
        got = dict(connection.execute("SELECT ad_id, spend_micros FROM performance"))
    connection.close()
    assert got == {
        i: int((Decimal(cell) * 1_000_000).quantize(Decimal(1), ROUND_HALF_EVEN)) for i, cell in enumerate(cells, 1)
    }
    assert (got[201], got[202], got[203]) == (0, 2, 1_430_000)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (",".join(KAG_HEADER[:-2]).encode(), "column 'Approved_Conversion' is not in export.csv"),
        (",".join([*KAG_HEADER, "age"]).encode(), "column 'age' is there twice"),
        (",".join(KAG_HEADER).encode("utf-16"), "UTF-16"),
        (";".join(KAG_HEADER).encode(), "'ad_id' is not in export.csv"),
    ],
)
def test_unusable_files(importer: Importer, content: bytes, says: str) -> None:
    """A file without the mapping's columns is refused before anything is written, with the mapping's lines."""
    with pytest.raises(InvalidExport, match=says) as caught:
        importer.load(content)
    assert isinstance(caught.value, BatchError)
    if "not in" in says:
        assert "kag_facebook_ads.yaml:" in str(caught.value)
    assert importer.db.is_empty()
    with pytest.raises(InvalidExport, match="cannot be read"):
        importer.load(importer.root / "absent.csv")


@pytest.mark.parametrize(
    ("old", "new", "at", "says"),
    [
        ("version: 1", "version: 2", "version: 2", "version"),
        ("{type: int, min: 0}", "{type: int, minimum: 0}", "minimum", "unknown key 'minimum'"),
        ("type: micros, min: 0", "type: dollars, min: 0", "dollars", "type"),
        ("  ads:\n    values:\n", "  adz:\n    values:\n", "adz:", "no table 'adz'"),
        ("ad_group_id: {column: fb_campaign_id}\n      name", "ad_group: {column: fb_campaign_id}\n      name",
         "ad_group: ", "no column 'ad_group'"),
        ("id: {column: ad_id}", "id: {column: add_id}", "add_id", "'add_id' not one of `columns`"),
        ('"Ad {ad_id}"', '"Ad {id}"', '"Ad {id}"', "'id' not one of"),
        ("id: {column: ad_id}", "id: {column: age}", "{column: age}", "takes int, but gets string"),
        ("clicks: Clicks", "clicks: age", "clicks: age", "must be int or micros"),
        ("constant: KAG}", "constant: KAG, column: age}", "constant: KAG", "exactly one"),
        ("'^[A-Z]{1,16}$'", "'^[A-Z{1,16}$('", "'^[A-Z{1", "regular expression"),
        ("  ad_id: {type: int, min: 1}", "  ad_id: {type: int, optional: true}", "id: {column: ad_id}",
         "must not be null"),
        ("      ad_group_id: {column: fb_campaign_id}\n      name: ", "      name: ", None,
         "ads.ad_group_id is missing"),
    ],
)  # fmt: skip
def test_mapping_faults_name_file_and_line(
    importer: Importer, tmp_path: Path, old: str, new: str, at: str | None, says: str
) -> None:
    """Every fault of a mapping is found before anything is read, and names file and line."""
    text = resolve_mapping("kag_facebook_ads").read_text()
    assert old in text
    file = tmp_path / "mapping.yaml"
    file.write_text(text.replace(old, new, 1))
    with pytest.raises(InvalidMapping) as caught:
        importer.load(csv_text(KAG_HEADER, [kag_row(1)]), file)
    fault = next(f for f in caught.value.faults if says in f.text)
    assert fault.file == str(file)
    if at is not None:
        assert at in file.read_text().splitlines()[fault.line - 1]
    assert importer.db.is_empty()


def test_mapping_is_found_by_name(importer: Importer) -> None:
    """A mapping may be a path or a short name; an unknown one names those that exist."""
    with pytest.raises(InvalidMapping, match="flipkart_products, kag_facebook_ads"):
        importer.load(csv_text(KAG_HEADER, [kag_row(1)]), "kaggle")
    assert resolve_mapping(resolve_mapping("kag_facebook_ads")) == resolve_mapping("kag_facebook_ads")


def test_huge_cell_goes_in(importer: Importer) -> None:
    """A description of 10 MB is the Gateway's to judge: it goes in, and its neighbours too."""
    rows = [product(1, description="y" * 10_000_000), product(2)]
    report = importer.load(csv_text(PRODUCT_HEADER, rows), "flipkart_products")
    assert report.rows_bad == 0
    assert importer.rows("SELECT length(description) FROM pins ORDER BY id") == [(10_000_000,), (4,)]
    assert csv.field_size_limit() >= 10_000_000
