"""Values: what each type accepts and refuses, encoding, canonical documents and text analysis."""

from __future__ import annotations

import math
import struct
import unicodedata
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalog import Column, Family, InvalidValue, ValueType, load_catalog
from catalog.documents import decode_document, encode_document, readable_document
from catalog.targeting import accept_term, any_term, exclude_term
from catalog.text import MAX_TERM_LENGTH, analyze, unique_terms
from catalog.values import check, datetime_of, decode, encode, micros_of

T = ValueType
NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
NOON_US = 1_769_860_800_000_000
VECTOR = struct.pack("<3f", 0.5, -1.0, 2.0)


def column(kind: ValueType, **more: Any) -> Column:
    """Make a column of a type."""
    return Column("t", "c", kind, Family.CONTENT, "ts.c", 1, dims=3 if kind is T.VECTOR else 0, **more)


@pytest.mark.parametrize(
    "kind, given_value, expected",
    [
        *((kind, None, None) for kind in T),
        (T.STRING, "é", "é"),
        (T.STRING, "é".encode(), "é"),
        (T.STRING, memoryview(b"x"), "x"),
        (T.STRING, 12, "12"),
        (T.JSON, '{"a": 1}', '{"a": 1}'),
        (T.INT, 5, 5),
        (T.INT, "-5", -5),
        (T.INT, b"5", 5),
        (T.INT, 5.0, 5),
        (T.INT, True, 1),
        (T.INT, (1 << 63) - 1, (1 << 63) - 1),
        (T.INT, -(1 << 63), -(1 << 63)),
        (T.FLOAT, 2, 2.0),
        (T.FLOAT, 2.5, 2.5),
        (T.BOOL, 0, False),
        (T.BOOL, True, True),
        (T.TIME, NOON_US, NOON_US),
        (T.TIME, NOON, NOON_US),
        (T.TIME, NOON.replace(tzinfo=None), NOON_US),
        (T.TIME, NOON.astimezone(timezone(timedelta(hours=5))), NOON_US),
        (T.TIME, "2026-01-31 12:00:00", NOON_US),
        (T.TIME, "2026-01-31T14:00:00+02:00", NOON_US),
        (T.TIME, b"2026-01-31T12:00:00Z", NOON_US),
        (T.BYTES, bytearray(b"\xff"), b"\xff"),
        (T.STRING_LIST, ("a", "b"), ["a", "b"]),
        (T.INT_LIST, (1, -2), [1, -2]),
        (T.VECTOR, VECTOR, VECTOR),
        (T.VECTOR, bytearray(VECTOR), VECTOR),
    ],
)
def test_accepted_values_are_converted_without_loss(kind: ValueType, given_value: Any, expected: Any) -> None:
    """Each type takes what databases and JSON give, and the result has exactly the type declared."""
    checked = check(column(kind), given_value)
    assert checked == expected
    assert type(checked) is type(expected)
    assert decode(encode(checked)) == expected


@pytest.mark.parametrize(
    "kind, value, reason",
    [
        (T.STRING, b"\xff", "invalid_utf8"),
        (T.STRING, "\ud800", "invalid_utf8"),
        (T.JSON, b"{\xc3}", "invalid_utf8"),
        (T.INT, b"\xff", "invalid_utf8"),
        (T.STRING_LIST, ["\ud800"], "invalid_utf8"),
        (T.STRING, True, "bad_type"),
        (T.STRING, ["a"], "bad_type"),
        (T.STRING, {"a": 1}, "bad_type"),
        (T.INT, "five", "bad_type"),
        (T.INT, "1_000", "bad_type"),
        (T.INT, "", "bad_type"),
        (T.INT, 1.5, "bad_type"),
        (T.INT, math.nan, "bad_type"),
        (T.INT, math.inf, "bad_type"),
        (T.INT, 1 << 63, "out_of_range"),
        (T.INT, "9223372036854775808", "out_of_range"),
        (T.INT, 1e300, "out_of_range"),
        pytest.param(T.INT, 10**5_000, "out_of_range", id="int of 5001 digits"),
        pytest.param(T.STRING, 10**5_000, "out_of_range", id="string of 5001 digits"),
        (T.FLOAT, math.nan, "out_of_range"),
        (T.FLOAT, -math.inf, "out_of_range"),
        pytest.param(T.FLOAT, 10**5_000, "out_of_range", id="float of 5001 digits"),
        (T.FLOAT, "1.5", "bad_type"),
        (T.FLOAT, True, "bad_type"),
        (T.BOOL, 2, "bad_type"),
        (T.BOOL, "true", "bad_type"),
        (T.TIME, "yesterday", "bad_type"),
        (T.TIME, "2026-02-30", "bad_type"),
        (T.TIME, True, "bad_type"),
        (T.TIME, 1.5, "bad_type"),
        (T.TIME, 1 << 62, "out_of_range"),
        (T.TIME, 1 << 70, "out_of_range"),
        (T.BYTES, "text", "bad_type"),
        (T.STRING_LIST, "abc", "bad_type"),
        (T.STRING_LIST, ["a", 1], "bad_type"),
        (T.INT_LIST, [1, "2"], "bad_type"),
        (T.INT_LIST, [True], "bad_type"),
        (T.INT_LIST, [1 << 64], "out_of_range"),
        (T.VECTOR, VECTOR[:-1], "bad_type"),
        (T.VECTOR, [0.5, -1.0, 2.0], "bad_type"),
        (T.VECTOR, struct.pack("<3f", 0, math.nan, 0), "out_of_range"),
        (T.VECTOR, struct.pack("<3f", 0, math.inf, 0), "out_of_range"),
        pytest.param(T.STRING, "x" * 70_000, "value_too_large", id="large string 12"),
        pytest.param(T.STRING, "é" * 40_000, "value_too_large", id="large string 12"),
        pytest.param(T.JSON, "x" * 10_000_000, "value_too_large", id="large json 16"),
        pytest.param(T.BYTES, b"x" * 70_000, "value_too_large", id="large bytes 13"),
        pytest.param(T.STRING_LIST, ["x" * 1_000] * 100, "value_too_large", id="large string_list 19"),
        pytest.param(T.INT_LIST, [1 << 40] * 10_000, "value_too_large", id="large int_list 18"),
    ],
)
def test_refused_values_name_column_and_reason(kind: ValueType, value: Any, reason: str) -> None:
    """What would lose something or does not fit is refused by a short sentence that names the column."""
    with pytest.raises(InvalidValue) as caught:
        check(column(kind), value)
    assert (caught.value.reason, caught.value.column) == (reason, "t.c")
    assert str(caught.value).startswith("t.c: ")
    assert len(str(caught.value)) < 250


def test_only_declared_values_are_allowed() -> None:
    """A column with a list of values takes no other, and says which there are."""
    status = column(T.STRING, values=("ON", "OFF"))
    assert check(status, "ON") == "ON"
    with pytest.raises(InvalidValue, match="'on' is none of ON, OFF") as caught:
        check(status, "on")
    assert caught.value.reason == "value_not_allowed"
    with pytest.raises(InvalidValue) as caught:
        check(status, "x" * 60_000)
    assert len(str(caught.value)) < 250


def test_the_size_limit_is_the_columns_own() -> None:
    """A value of exactly max_bytes fits, one byte more does not."""
    small = column(T.STRING, max_bytes=4)
    assert check(small, "abcd") == "abcd"
    with pytest.raises(InvalidValue, match="5 bytes, but the catalogue allows 4"):
        check(small, "abcde")


scalars = st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 63) - 1) | st.floats(allow_nan=False) | st.binary()
texts = st.text(st.characters(codec="utf-8"))


@given(scalars | texts | st.lists(texts) | st.lists(st.integers(-(1 << 63), (1 << 63) - 1)))
def test_values_survive_encoding(value: Any) -> None:
    """Decoding gives back value and type."""
    again = decode(encode(value))
    assert again == value
    assert type(again) is type(value)


@given(
    st.sampled_from(list(T)),
    st.recursive(scalars | texts | st.floats(), lambda x: st.lists(x) | st.dictionaries(texts, x)),
)
def test_check_returns_what_can_be_stored_or_refuses(kind: ValueType, value: Any) -> None:
    """Whatever comes in, the answer is InvalidValue or a value that encodes and passes the check unchanged."""
    try:
        checked = check(column(kind), value)
    except InvalidValue:
        return
    assert decode(encode(checked)) == checked
    assert check(column(kind), checked) == checked


@given(st.binary(max_size=60))
def test_bytes_decode_or_raise_one_error(data: bytes) -> None:
    """Foreign bytes give a value or DecodeError, and no other error."""
    try:
        decode(data)
    except msgspec.DecodeError:
        return


def test_absent_bytes_are_null() -> None:
    """None and the empty byte string are null."""
    assert decode(None) is None
    assert decode(b"") is None


@given(st.datetimes(timezones=st.just(UTC)))
def test_times_round_trip(moment: datetime) -> None:
    """Microseconds name every moment of years 1 to 9999 exactly."""
    assert datetime_of(micros_of(moment)) == moment
    assert check(column(T.TIME), micros_of(moment)) == micros_of(moment)


documents = st.dictionaries(texts, scalars | texts | st.lists(texts), max_size=8)


@given(documents, st.randoms(use_true_random=False))
def test_equal_documents_have_equal_bytes(fields: dict[str, Any], rng: Any) -> None:
    """The order of fields and those without a value leave no trace in the bytes."""
    shuffled = list(fields.items())
    rng.shuffle(shuffled)
    body = encode_document(fields)
    assert encode_document(dict(shuffled)) == body
    assert encode_document({**dict(shuffled), "no such field": None}) == body
    assert decode_document(body) == {name: value for name, value in fields.items() if value is not None}


def test_canonical_bytes_are_fixed() -> None:
    """The encoding is MessagePack with sorted names: bytes on disk stay comparable over releases."""
    assert encode_document({"b": 1, "a": "x", "c": None}) == b"\x82\xa1a\xa1x\xa1b\x01"


def test_a_document_can_be_shown() -> None:
    """Vectors become lists of numbers, other bytes hex, and the rest is as it is."""
    vector = struct.pack("<64f", *([0.25] * 64))
    body = encode_document({"embedding": vector, "title": "A lamp", "old_field": b"\x01\xff"})
    assert readable_document(load_catalog(), body) == {
        "embedding": [0.25] * 64,
        "title": "A lamp",
        "old_field": "01ff",
    }


@pytest.mark.parametrize(
    "text, terms",
    [
        ("", []),
        ("  ... !? ", []),
        ("Red LAMP, 40W", ["red", "lamp", "40w"]),
        ("naïve Café", ["naive", "cafe"]),
        ("nai\u0308ve", ["naive"]),
        ("Straße", ["strasse"]),
        ("ΣΊΣΥΦΟΣ σίσυφος", ["σισυφοσ", "σισυφοσ"]),
        ("ﬁne ２０％ x²", ["fine", "20", "x2"]),
        ("İstanbul", ["istanbul"]),
        ("women's women’s don't O’Neill's", ["women", "women", "don't", "o'neill"]),
        ("snake_case a-b", ["snake", "case", "a", "b"]),
        ("co\u00adoperate", ["cooperate"]),
        ("日本語 テスト", ["日本語", "テスト"]),
        ("हिन्दी", ["हनद"]),
        ("x" * 100, ["x" * MAX_TERM_LENGTH]),
    ],
)
def test_text_is_analysed(text: str, terms: list[str]) -> None:
    """Case, marks, compatibility forms and possessives fall away; words stay whole."""
    assert analyze(text) == terms


@given(st.text())
def test_analysis_of_terms_changes_nothing(text: str) -> None:
    """Terms are fixed points, never empty and never too long: queries made of terms match."""
    terms = analyze(text)
    assert analyze(" ".join(terms)) == terms
    assert all(0 < len(term) <= MAX_TERM_LENGTH for term in terms)


@given(st.text())
def test_analysis_does_not_depend_on_the_normal_form(text: str) -> None:
    """Composed and decomposed text, however cased, gives the same terms."""
    forms = {tuple(analyze(unicodedata.normalize(form, text))) for form in ("NFC", "NFD", "NFKC", "NFKD")}
    assert forms == {tuple(analyze(text))}
    assert analyze(text.casefold()) == analyze(text)


def test_unique_terms_pass_over_what_is_missing() -> None:
    """Several texts give one sorted set."""
    assert unique_terms("b a", None, "", "A c") == ["a", "b", "c"]


def test_targeting_terms() -> None:
    """The three kinds of targeting terms are spelled as documents and requests expect."""
    assert (accept_term("age", "30-34"), any_term("age"), exclude_term("country", "FR")) == (
        "age=30-34",
        "age=*",
        "!country=FR",
    )
