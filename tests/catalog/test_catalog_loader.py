"""The built-in catalogue loads, and every fault of a catalogue file is reported with file and line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import catalog as package
from catalog import (
    DEFAULT_CATALOG,
    Catalog,
    Destination,
    Fault,
    InvalidCatalog,
    LaneName,
    Layout,
    ValueType,
    load_catalog,
)

TEXT = DEFAULT_CATALOG.read_text(encoding="utf-8")


def line_of(text: str, part: str) -> int:
    """Return the number of the only line that has `part`."""
    lines = [number for number, line in enumerate(text.splitlines(), start=1) if part in line]
    assert len(lines) == 1, f"{part!r} is on lines {lines}"
    return lines[0]


@pytest.fixture
def faults_of(tmp_path: Path) -> Callable[[str], list[Fault]]:
    """A function that writes a catalogue and returns the faults that loading it finds."""

    def load(text: str) -> list[Fault]:
        file = tmp_path / "broken.yaml"
        file.write_text(text, encoding="utf-8")
        with pytest.raises(InvalidCatalog) as caught:
            load_catalog(file)
        for fault in caught.value.faults:
            assert fault.file == str(file)
            assert str(fault) in str(caught.value)
        return list(caught.value.faults)

    return load


def replaced(old: str, new: str) -> str:
    """Return the built-in catalogue with the only `old` replaced."""
    assert TEXT.count(old) == 1, f"{old!r} occurs {TEXT.count(old)} times"
    return TEXT.replace(old, new)


def test_the_built_in_catalogue_loads() -> None:
    """Its tables, references, lanes and fields are what the file says."""
    catalog: Catalog = load_catalog()
    assert (catalog.document_table, catalog.root) == ("ad_document", "ad")
    assert list(catalog.join_path("ad")) == ["ad_group", "pin", "campaign", "image", "advertiser"]
    assert {r.index_table for r in catalog.references()} == {
        "ad_by_ad_group",
        "ad_by_pin",
        "ad_group_by_campaign",
        "campaign_by_advertiser",
        "pin_by_image",
    }
    assert catalog.tables["pin"].lane is LaneName.MEDIUM
    assert catalog.column("pin.title").cell == "content:title"
    assert catalog.column("campaign.spent_today_micros").source_table == "budgets"
    assert catalog.column("ad_group.targeting_terms").handler == "targeting"
    assert catalog.column("ad.performance_version").signal == "performance"
    assert catalog.fields["embedding"].type is ValueType.VECTOR
    assert catalog.fields["link"].index is Destination.FORWARD
    assert catalog.source_tables()["budgets"] == (catalog.tables["campaign"], "campaign_id")
    assert dict(catalog.repo_tables())["ad_document"] == ("derived", "meta", "servable")
    assert catalog.column("pin.title").line == line_of(TEXT, "from: pins.title")


def test_layouts_are_for_tables_and_for_their_indexes(tmp_path: Path) -> None:
    """A table's layout is its own; the index tables of its references have another one; others are laid out plainly."""
    file = tmp_path / "more.yaml"
    layouts = "    layout: {splits: [b, m]}\n    index_layout: {salts: 8, history: false, family_deletes: false}\n"
    file.write_text(replaced("  campaign:\n    owner: campaigns\n", f"  campaign:\n    owner: campaigns\n{layouts}"))
    catalog = load_catalog(str(file))
    assert catalog.repo_layouts()["campaign"] == Layout(splits=("b", "m"))
    assert catalog.repo_layouts()["campaign_by_advertiser"] == Layout(salts=8, history=False, family_deletes=False)
    assert catalog.repo_layouts().keys() == dict(catalog.repo_tables()).keys()
    others = catalog.repo_layouts().keys() - {"campaign", "campaign_by_advertiser"}
    assert {catalog.repo_layouts()[table] for table in others} == {Layout()}


def test_one_more_plain_column_takes_two_lines(tmp_path: Path) -> None:
    """A column under the table and a field under fields are all that a plain column needs."""
    text = replaced(
        "      brand: {type: string, from: pins.brand}\n",
        "      brand: {type: string, from: pins.brand}\n      colour: {type: string, from: pins.colour}\n",
    ).replace(
        "  brand: {from: pin.brand, index: term}\n",
        "  brand: {from: pin.brand, index: term}\n  colour: {from: pin.colour}\n",
    )
    file = tmp_path / "more.yaml"
    file.write_text(text)
    catalog = load_catalog(str(file))
    assert catalog.fields["colour"].column.source_column == "colour"
    assert catalog.fingerprint != load_catalog().fingerprint


def test_exports_are_what_all_says() -> None:
    """What the package imports for others is in __all__, once, and nothing else is."""
    modules = {"graph", "keys", "kinds", "loader", "model", "documents", "values", "text", "targeting"}
    modules |= {"hours", "places", "portable", "predicates"}
    public = {name for name in vars(package) if not name.startswith("_")} - modules
    assert sorted(package.__all__) == sorted(public)


PRICE = "      price_micros: {type: int, from: pins.price_micros}\n"
FAULTS = [
    (
        "unknown key of a column",
        PRICE,
        PRICE.replace("int,", "int, colour: red,"),
        "colour: red",
        "unknown key 'colour'",
    ),
    ("unknown key at the top", "name: ads\n", "name: ads\nowner: me\n", "owner: me", "unknown key 'owner'"),
    ("unknown key of a field", "link: {from: pin.link}", "link: {from: pin.link, boost: 2}", "boost", "'boost'"),
    (
        "missing key of a column",
        PRICE,
        PRICE.replace("type: int, ", ""),
        "price_micros: {from: pins.p",
        "'type' is missing",
    ),
    ("missing key of a table", "    owner: accounts\n", "", "  advertiser:", "'owner' is missing"),
    (
        "salts and splits",
        "    owner: accounts\n",
        "    owner: accounts\n    layout: {salts: 4, splits: [m]}\n",
        "layout: {salts",
        "salts already split a table",
    ),
    (
        "splits out of order",
        "    owner: accounts\n",
        "    owner: accounts\n    index_layout: {splits: [m, b]}\n",
        "index_layout:",
        "in ascending order",
    ),
    ("missing serving role", "  budget_key: campaign_id\n", "", "serving:", "'budget_key' is missing"),
    ("unknown type", PRICE, PRICE.replace("int", "money"), "type: money", "money"),
    ("unknown index", "index: vector", "index: magic", "index: magic", "magic"),
    (
        "unknown lane",
        "    lane: high\n    key: int\n    freshness_s: 10",
        "    lane: fast\n    key: int",
        "lane: fast",
        "fast",
    ),
    ("text for a number", "freshness_s: 10", "freshness_s: soon", "freshness_s: soon", "soon"),
    ("coverage above 1", "coverage: 0.95", "coverage: 95", "coverage: 95", "less than or equal to 1"),
    ("name that is none", "      brand: {type", "      Brand!: {type", "Brand!", "pattern"),
    ("unknown version", "version: 1", "version: 2", "version: 2", "version"),
    ("duplicate key", PRICE, PRICE + PRICE.replace("pins.price_micros", "pins.other"), "pins.other", "given twice"),
    ("YAML syntax", PRICE, PRICE.replace("}", ""), "list_price_micros", "not YAML"),
    ("YAML tag", "name: ads\n", "name: !python/object:os.system ads\n", "!python", "cannot be read"),
    ("date that does not exist", "name: ads\n", "name: 2024-13-45\n", "2024-13-45", "cannot be read"),
    ("alias of itself", "name: ads\n", "name: &me [*me]\n", "&me", "contains itself"),
    (
        "column from an unknown ads DB table",
        PRICE,
        PRICE.replace("pins.", "pans."),
        "pans.",
        "source has only ['pins']",
    ),
    ("source that is no source", PRICE, PRICE.replace("pins.price", "price"), "from: price_micros", "pattern"),
    (
        "reference to an unknown table",
        "{image: image_id}",
        "{picture: image_id}",
        "{picture",
        "unknown table 'picture'",
    ),
    ("reference by an unknown column", "{image: image_id}", "{image: img}", "{image: img}", "unknown column 'img'"),
    (
        "reference by a derived column",
        "{image: image_id}",
        "{image: category}",
        "image: category",
        "not come from the ads DB",
    ),
    (
        "reference by a column unlike the key",
        "{image: image_id}",
        "{image: price_micros}",
        "image: price",
        "key is string",
    ),
    ("vector without dims", "type: vector, dims: 64", "type: vector", "type: vector", "needs `dims`"),
    ("dims without vector", PRICE, PRICE.replace("int,", "int, dims: 3,"), "dims: 3", "needs `dims`"),
    ("values of a number", PRICE, PRICE.replace("int,", "int, values: ['1'],"), "values: ['1']", "only a string"),
    ("family of the pipeline", PRICE, PRICE.replace("int,", "int, family: meta,"), "family: meta", "pipeline's own"),
    (
        "field of an unknown column",
        "link: {from: pin.link}",
        "link: {from: pin.lnk}",
        "pin.lnk",
        "unknown column 'pin.lnk'",
    ),
    ("field of an unknown table", "link: {from: pin.link}", "link: {from: pen.link}", "pen.link", "unknown column"),
    (
        "wrong index kind",
        "link: {from: pin.link}",
        "link: {from: pin.link, index: numeric}",
        "link: {from: pin",
        "is string",
    ),
    (
        "serving role of an unknown field",
        "  bid: bid_account_micros\n",
        "  bid: bit_micros\n",
        "bit_micros",
        "no field named",
    ),
    (
        "serving role of the wrong index",
        "  bid: bid_account_micros\n",
        "  bid: title\n",
        "  bid: title",
        "index 'numeric'",
    ),
    (
        "unknown serving role",
        "  bid: bid_account_micros\n",
        "  bid: bid_account_micros\n  boss: title\n",
        "  boss: title",
        "'boss'",
    ),
    ("rate of no currency", "USD: 1, AUD", "USD: 1, usd: 1, AUD", "usd: 1", "'usd' is not an ISO 4217 code"),
    ("rate of 0", "EUR: 1.11", "EUR: 0", "EUR: 0", "greater than 0"),
    ("rate without end", "EUR: 1.11", "EUR: .inf", "EUR: .inf", "finite number"),
    ("account currency without rate", "  account: USD", "  account: NOK", "account: NOK", "'NOK' must be among"),
    ("account currency worth something else", "{USD: 1,", "{USD: 2,", "account: USD", "with rate 1"),
    ("unknown root", "    root: ad\n", "    root: adv\n", "root: adv", "root 'adv'"),
    (
        "root that is the document table",
        "    root: ad\n",
        "    root: ad_document\n",
        "root: ad_document",
        "root 'ad_document'",
    ),
    ("no document table", "    root: ad\n", "", "tables:", "exactly one table"),
    ("ads DB table of two tables", "{table: images, key: id}", "{table: pins, key: id}", "key: string\n", "belongs to"),
    ("satellite that is the main table", "{budgets: campaign_id}", "{campaigns: id}", "{campaigns: id}", "main table"),
]


@pytest.mark.parametrize("old, new, where, text", [pytest.param(*f[1:], id=f[0]) for f in FAULTS])
def test_a_fault_is_reported_with_its_line(
    faults_of: Callable[[str], list[Fault]], old: str, new: str, where: str, text: str
) -> None:
    """Each kind of fault names the line that has it and what is wrong there."""
    broken = replaced(old, new)
    found = [fault for fault in faults_of(broken) if text in fault.text]
    assert found, faults_of(broken)
    if where.endswith("\n"):
        return
    lines = {n for n, line in enumerate(broken.splitlines(), start=1) if where in line}
    assert found[0].line in lines, f"{found[0]} is not on {lines}"


def test_a_reference_cycle_is_named_once(faults_of: Callable[[str], list[Fault]]) -> None:
    """The whole cycle is spelled out, at its first table by name."""
    text = replaced(
        "    source: {table: advertisers, key: id}\n",
        "    source: {table: advertisers, key: id}\n    references: {ad_group: best_ad_group}\n",
    ).replace(
        "      name: {type: string, from: advertisers.name}\n",
        "      best_ad_group: {type: int, from: advertisers.best}\n",
    )
    cycles = [f for f in faults_of(text) if "cycle" in f.text]
    assert [f.text for f in cycles] == ["references go in a cycle: ad_group -> campaign -> advertiser -> ad_group"]
    assert cycles[0].line == line_of(text, "{campaign: campaign_id}")


def test_a_field_that_cannot_be_joined_is_a_fault(faults_of: Callable[[str], list[Fault]]) -> None:
    """A field of a table that no reference of the root leads to is refused at the field's line."""
    text = replaced("    references: {image: image_id}\n", "").replace(
        "  link: {from: pin.link}\n", "  image_width: {from: image.width}\n  link: {from: pin.link}\n"
    )
    assert [(f.line, "cannot be joined" in f.text) for f in faults_of(text)] == [(line_of(text, "image_width"), True)]


def test_an_index_table_may_not_be_named_like_a_table(faults_of: Callable[[str], list[Fault]]) -> None:
    """A declared table that would share its rows with an index is refused."""
    text = TEXT.replace("  image:\n", "  pin_by_image:\n    owner: content\n\n  image:\n")
    assert ["table's name" in f.text for f in faults_of(text)] == [True]


def test_all_faults_are_reported_at_once(faults_of: Callable[[str], list[Fault]]) -> None:
    """Faults of different parts of the file come together, in the order of their lines."""
    text = TEXT
    for old, new in (
        ("dims: 64", "dims: 0"),
        ("{from: pin.link}", "{from: pin.lnk}"),
        ("  bid: bid_account_micros", "  bid: nothing"),
        ("pins.brand", "pans.brand"),
    ):
        assert old in text
        text = text.replace(old, new)
    found = faults_of(text)
    assert [f.line for f in found] == sorted(
        line_of(text, part) for part in ("dims: 0", "pin.lnk", "bid: nothing", "pans.brand")
    )
    form = TEXT.replace("owner: accounts", "boss: accounts").replace("type: vector", "type: victor")
    assert [f.line for f in faults_of(form)] == sorted(
        [line_of(form, "  advertiser:"), line_of(form, "boss: accounts"), line_of(form, "victor")]
    )


@pytest.mark.parametrize("text", ["", "[]", "just text", "version: 1\n"])
def test_a_file_that_is_no_catalogue_is_a_fault(faults_of: Callable[[str], list[Fault]], text: str) -> None:
    """Empty files, lists and fragments are refused, not crashed on."""
    assert faults_of(text)


def test_a_file_that_cannot_be_read_is_a_fault(tmp_path: Path) -> None:
    """A missing file and one that is not UTF-8 are faults of line 1."""
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9\n")
    for name in ("missing.yaml", "latin.yaml"):
        with pytest.raises(InvalidCatalog, match=f"{name}:1: cannot be read"):
            load_catalog(tmp_path / name)
