"""What the Updater cannot store becomes a dead letter that names it; everything else of the batch is stored."""

from __future__ import annotations

import pytest

from catalog import Catalog
from catalog.values import encode, refusal
from messaging.proto import adsindex_pb2 as pb
from storage_repo import Repo
from tests.updater.support import index_rows, stored, update
from updater import UpdaterCore

PIN = {"id": "p1", "title": "A lamp", "price_micros": 5_000_000, "status": "ACTIVE"}


def bad_column(name: str, value: bytes, table: str = "pin") -> pb.EntityUpdate:
    """A good pin of which one column is replaced by raw bytes."""
    good = update(table, "p1", 5, {k: v for k, v in PIN.items() if k != name})
    good.columns.add(name=name, value=value)
    return good


@pytest.mark.parametrize(
    "name, value, reason",
    [
        pytest.param("colour", encode("red"), "unknown_column", id="undeclared"),
        pytest.param("terms", encode(["a"]), "unknown_column", id="a handler's column"),
        pytest.param("price_micros", encode("dear"), "bad_type", id="text for int"),
        pytest.param("price_micros", encode(1 << 63), "out_of_range", id="too large a number"),
        pytest.param("status", encode("SLEEPING"), "value_not_allowed", id="not one of the values"),
        pytest.param("title", encode("x" * 5_000), "value_too_large", id="too long"),
        pytest.param("title", encode(b"\xff\xfe"), "invalid_utf8", id="not UTF-8, as bytes"),
        pytest.param("title", b"\xa2\xff\xfe", "bad_encoding", id="not UTF-8, as text"),
        pytest.param("title", b"\xdc\x00", "bad_encoding", id="not MessagePack"),
        pytest.param("title", b"\x91" * 5_000, "bad_encoding", id="nested without end"),
        pytest.param("title", b"\xc7\x01\x05a", "bad_type", id="extension type"),
        pytest.param("image_id", encode("x" * 398), "bad_reference", id="reference too long for an index row"),
        pytest.param("image_id", encode("a\nb"), "bad_reference", id="reference with a control character"),
        pytest.param("image_id", encode(""), "bad_reference", id="empty reference"),
    ],
)
def test_a_bad_column_is_marked_and_the_others_are_stored(
    core: UpdaterCore, repo: Repo, catalog: Catalog, name: str, value: bytes, reason: str
) -> None:
    """One bad column costs that column alone; its cell, the letter and the result say which and why."""
    result = core.apply([bad_column(name, value)])
    assert [r.outcome for r in result.results] == ["applied"]
    assert [letter.reason for letter in result.dead_letters] == [reason]
    letter = result.dead_letters[0]
    assert name in letter.error
    assert "p1" in letter.error
    assert letter.error == result.results[0].error
    assert (letter.table, letter.row, letter.payload_type) == ("pin", "p1", "EntityUpdate")
    assert result.letter_of == [0]
    assert stored(repo, catalog, "pin", "p1") == {k: v for k, v in PIN.items() if k != name}
    assert index_rows(repo, catalog)["pin_by_image"] == set()
    if reason != "unknown_column":
        cell = catalog.column(f"pin.{name}").cell
        assert refusal(repo.snapshot().get("pin", "p1")[cell]) == reason


def test_an_explicit_null_reference_is_no_fault(core: UpdaterCore, repo: Repo, catalog: Catalog) -> None:
    """MessagePack nil is null like the empty value."""
    result = core.apply([bad_column("image_id", b"\xc0")])
    assert not result.dead_letters
    assert stored(repo, catalog, "pin", "p1") == PIN


def test_every_bad_column_gets_its_letter(core: UpdaterCore) -> None:
    """Several faults of one update are all reported."""
    bad = update("pin", "p1", 5, {"price_micros": "dear", "colour": "red", "status": "SLEEPING"})
    letters = core.apply([bad]).dead_letters
    assert sorted(letter.reason for letter in letters) == ["bad_type", "unknown_column", "value_not_allowed"]


def test_a_redelivered_update_reports_its_faults_again(core: UpdaterCore) -> None:
    """A crash between commit and letter loses no letter: the duplicate is reported once more."""
    core.apply([bad_column("price_micros", encode("dear"))])
    again = core.apply([bad_column("price_micros", encode("dear"))])
    assert [r.outcome for r in again.results] == ["duplicate"]
    assert [letter.reason for letter in again.dead_letters] == ["bad_type"]


@pytest.mark.parametrize(
    "bad, reason",
    [
        pytest.param(update("brand", "1", 5, {}), "unknown_table", id="unknown table"),
        pytest.param(update("ad_document", "1", 5, {}), "unknown_table", id="the document table"),
        pytest.param(update("pin", "p2", 0, PIN), "bad_version", id="version zero"),
        pytest.param(update("pin", "p2", -1, PIN), "bad_version", id="negative version"),
        pytest.param(update("pin", "x" * 401, 5, PIN), "bad_row_key", id="row key too long"),
        pytest.param(update("pin", "x" * 5_000_000, 5, PIN), "bad_row_key", id="row key of megabytes"),
        pytest.param(update("pin", "", 5, PIN), "bad_row_key", id="no row key"),
        pytest.param(update("pin", "a\x1fb", 5, PIN), "bad_row_key", id="separator in a row key"),
        pytest.param(update("pin", "p2", 5, PIN, source="rumours"), "unknown_source", id="unknown signal"),
        pytest.param(
            pb.EntityUpdate(
                table="pin", row="p2", source="ads_db", source_version=5, header=pb.Header(trace_id="t" * 100_000)
            ),
            "bad_header",
            id="huge header",
        ),
    ],
)
def test_an_update_that_cannot_be_stored_is_refused_alone(
    core: UpdaterCore, repo: Repo, catalog: Catalog, bad: pb.EntityUpdate, reason: str
) -> None:
    """The refused update becomes one bounded letter; its neighbours in the batch are stored."""
    result = core.apply([bad, update("pin", "p1", 5, PIN)])
    assert [r.outcome for r in result.results] == ["dead_letter", "applied"]
    assert [letter.reason for letter in result.dead_letters] == [reason]
    assert result.letter_of == [0]
    assert result.results[0].error
    assert result.dead_letters[0].ByteSize() < 1 << 20
    assert stored(repo, catalog, "pin", "p1") == PIN


def test_a_bad_update_does_not_take_a_good_one_of_the_same_row_with_it(
    core: UpdaterCore, repo: Repo, catalog: Catalog
) -> None:
    """Updates are admitted one by one, not by row."""
    result = core.apply([update("pin", "p1", 0, PIN), update("pin", "p1", 5, PIN)])
    assert [r.outcome for r in result.results] == ["dead_letter", "applied"]
    assert stored(repo, catalog, "pin", "p1") == PIN
