"""Predicates and weekly hours as values: what they mean, their one canonical text, and what is refused, and where."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from catalog import Dimension, InvalidCatalog, InvalidValue, ValueType, hours, load_catalog, predicates
from catalog.hours import HoursError
from catalog.predicates import All, Always, Between, No, OneOf, Predicate, PredicateError, Some
from catalog.values import check
from tests.support import ROOT

FILE = ROOT / "examples" / "audience" / "audience.yaml"
CATALOG = load_catalog(FILE)
DIMENSIONS = {
    "age": Dimension("age", ValueType.INT),
    "interest": Dimension("interest", ValueType.STRING, multi=True),
    "country": Dimension("country", ValueType.STRING),
    "device": Dimension("device", ValueType.STRING, values=("phone", "tablet")),
}
EXAMPLE = "(age in [25..34] and interest in {golf, tennis}) or (country = UK and not device = tablet)"


def test_the_example_reads_as_it_is_meant() -> None:
    """Nesting, ranges, sets, equality and negation become the tree that they say."""
    assert predicates.parse(EXAMPLE, DIMENSIONS) == Some(
        (
            All((Between("age", 25, 34), OneOf("interest", ("golf", "tennis")))),
            All((OneOf("country", ("UK",)), No(OneOf("device", ("tablet",))))),
        )
    )


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("age=3", "age = 3"),
        ("AGE_not_a_dim = 1 or true", None),
        ("age != 3", "not age = 3"),
        ("age < 3", "age in [..2]"),
        ("age>=3", "age in [3..]"),
        ("age not in [1..2]", "not age in [1..2]"),
        ("age in [1, 2,2]", "age in {1, 2}"),
        ("interest in ['a b', \"it's\"]", "interest in {'a b', 'it\\'s'}"),
        ("interest = 18-24", "interest = '18-24'"),
        ("((age = 1)) AND (age = 2 and age = 3)", "age = 1 and age = 2 and age = 3"),
        ("age = 1 or age = 2 and age = 3", "age = 1 or age = 2 and age = 3"),
        ("(age = 1 or age = 2) and age = 3", "(age = 1 or age = 2) and age = 3"),
        ("not not age = -5", "not not age = -5"),
        ("not (age = 1 or False)", "not (age = 1 or false)"),
        ("country = 'and'", "country = 'and'"),
        ("interest in {golf, 'golf'}", "interest = golf"),
        ("age in [..]", "age in [..]"),
    ],
)
def test_one_text_for_one_meaning(text: str, canonical: str | None) -> None:
    """However it is written, a predicate is kept as one text, and that text means the same."""
    if canonical is None:
        with pytest.raises(PredicateError, match="is not a dimension"):
            predicates.parse(text, DIMENSIONS)
        return
    found = predicates.parse(text, DIMENSIONS)
    assert predicates.canonical(found) == canonical
    assert predicates.parse(canonical, DIMENSIONS) == found


def _trees() -> st.SearchStrategy[Predicate]:
    words = st.text(min_size=1, max_size=6).filter(lambda t: t.strip() and t != "*") | st.sampled_from(
        ["in", "a.b", "-"]
    )
    leaves: st.SearchStrategy[Predicate] = st.one_of(
        st.lists(words, min_size=1, max_size=3, unique=True).map(lambda v: OneOf("interest", tuple(sorted(v)))),
        st.lists(st.integers(-(1 << 63), (1 << 63) - 1), min_size=1, max_size=3, unique=True).map(
            lambda v: OneOf("age", tuple(sorted(v)))
        ),
        st.tuples(st.integers(-9, 9), st.integers(10, 20)).map(lambda p: Between("age", *p)),
        st.booleans().map(Always),
    )

    def flat(kind: Any, parts: list[Predicate]) -> Predicate:
        joined = [p for part in parts for p in (part.parts if isinstance(part, kind) else (part,))]
        return kind(tuple(joined)) if len(joined) > 1 else joined[0]  # type: ignore[no-any-return]

    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            inner.map(No),
            st.lists(inner, min_size=1, max_size=3).map(lambda p: flat(All, p)),
            st.lists(inner, min_size=1, max_size=3).map(lambda p: flat(Some, p)),
        ),
        max_leaves=10,
    )


@given(_trees())
@settings(max_examples=200, deadline=None)
def test_canonical_text_reads_back(tree: Predicate) -> None:
    """Whatever values and nesting a predicate has, its text is read as that very predicate."""
    assert predicates.parse(predicates.canonical(tree), DIMENSIONS) == tree


@given(st.text(alphabet="agein tresco=<>!{}[]()'\",.0123*-\\", max_size=40) | st.text(max_size=20))
@example("age in [1..")
@example("(" * 300 + "age = 1")
@example("not " * 5_000 + "age = 1")
@example("age = 99999999999999999999999999")
@settings(max_examples=300, deadline=None)
def test_no_text_breaks_the_parser(text: str) -> None:
    """Text is a predicate or is refused with a place inside of it; nothing else happens."""
    try:
        predicates.parse(text, DIMENSIONS)
    except PredicateError as error:
        assert 0 <= error.at <= len(text)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "at character 1: expected a condition, 'not' or '(', found the end"),
        ("age in [25..", "at character 13: expected a value of age, found the end"),
        ("age = 1 and foo = 1", "at character 13: 'foo' is not a dimension; there are age, interest, country, device"),
        ("device = car", "at character 10: device has no value 'car'; there are phone, tablet"),
        ("age = 1)", "at character 8: expected 'and', 'or' or the end, found ')'"),
        ("country > 3", "at character 11: country has string values, and only numbers are compared or have ranges"),
        ("age in [34..25]", "at character 9: the range from 34 to 25 is empty"),
        ("age < -9223372036854775808", "at character 5: no number of 64 bits is < -9223372036854775808"),
        ("country = 'a", "at character 11: a quote is not closed"),
        ("country = *", "at character 11: country cannot have the value '*'"),
    ],
)  # fmt: skip
def test_faults_have_their_place(text: str, sentence: str) -> None:
    """A bad predicate is refused with the character where it goes wrong, counted from 1."""
    with pytest.raises(PredicateError) as caught:
        predicates.parse(text, DIMENSIONS)
    assert str(caught.value) == sentence


def test_unknown_is_neither_true_nor_false() -> None:
    """Kleene's logic: unknown stays unknown under not, and only what decides anyway decides."""
    read = lambda text: predicates.parse(text, DIMENSIONS)  # noqa: E731
    assert predicates.truth(read("age = 1"), {}) is None
    assert predicates.truth(read("not age = 1"), {}) is None
    assert predicates.truth(read("age = 1 or country = UK"), {"country": ("UK",)}) is True
    assert predicates.truth(read("age = 1 and country = UK"), {"country": ("US",)}) is False
    assert predicates.truth(read("age = 1 and country = UK"), {"country": ("UK",)}) is None
    assert predicates.truth(read("interest = golf"), {"interest": ("chess", "golf")}) is True
    assert predicates.truth(read("not interest = golf"), {"interest": ("chess", "golf")}) is False
    assert predicates.truth(read("age = 1 and not age = 1"), {"age": None}) is True


def test_a_refused_value_says_why() -> None:
    """The column's check gives the reason that is counted, and the sentence with the place for the dead letter."""
    audience, area = CATALOG.column("ad.audience"), CATALOG.column("ad.area")
    assert check(audience, "age=3 or country!=UK") == "age = 3 or not country = UK"
    for column, value, reason, words in (
        (audience, "age in (3)", "bad_predicate", "at character 8: expected { with values"),
        (audience, "x" * 70_000, "value_too_large", "70000 characters"),
        (audience, 5, "bad_type", "expected predicate"),
        (area, "[1]", "bad_circles", "circle 1"),
        (CATALOG.column("ad.place"), "100, 0", "bad_point", "latitude 100"),
        (CATALOG.column("ad.hours"), "mon 8-18", "bad_hours", "no time zone"),
    ):
        with pytest.raises(InvalidValue, match=words) as caught:
            check(column, value)
        assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("lane: high # control", "lane: medium # control", "null lifts the condition"),
        ("{from: ad.audience, index: predicate}", "{from: ad.area, index: predicate}", r"takes \['predicate'\]"),
        ("hours: hours", "hours: area", "hours: field 'area' must have index 'hours'"),
        ("{from: ad.place, index: point}", "{from: ad.hours, index: point}", r"takes \['point'\]"),
        ("  age: {type: int}", "  age: {type: float}", "dimensions.age.type"),
    ],
)
def test_a_catalogue_that_could_lift_a_condition_does_not_load(tmp_path: Path, old: str, new: str, words: str) -> None:
    """Special fields come from control columns and have their own types; anything else is a fault at start."""
    text = FILE.read_text(encoding="utf-8")
    place = text.rindex(old)
    file = tmp_path / "audience.yaml"
    file.write_text(text[:place] + new + text[place + len(old) :])
    with pytest.raises(InvalidCatalog, match=words):
        load_catalog(file)


# ---- weekly hours ----


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("mon-fri 8-18; sat,sun 10-14 @ Europe/Paris", "mon,tue,wed,thu,fri 8-18; sat,sun 10-14 @ Europe/Paris"),
        ("daily 22:00-6:00@user", f"{','.join(hours.DAYS)} 0-6; {','.join(hours.DAYS)} 22-24 @ user"),
        ("Fri-Mon @ UTC", "mon,fri,sat,sun 0-24 @ UTC"),
        ("sun 23-1 @ UTC", "mon 0-1; sun 23-24 @ UTC"),
        ("daily @ UTC", "always"),
        ("always", "always"),
    ],
)
def test_hours_have_one_text(text: str, canonical: str) -> None:
    """Windows may overlap, run over midnight and over the week's end; the text says each hour once."""
    found = hours.parse(text)
    assert hours.canonical(found) == canonical
    assert hours.canonical(hours.parse(canonical)) == canonical


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("mon 8-18", "no time zone; end with"), ("mon 8-8 @ user", "hours 8-8"), ("moo 1-2 @ UTC", "'moo'"),
        ("mon 1-2 @ Mars/Phobos", "no time zone 'Mars/Phobos'"), ("mon 1-25 @ UTC", "hours 1-25"),
        ("mon 1:30-2 @ UTC", "is not days and hours"), ("mon 1-2 @ ../../etc/passwd", "no time zone"),
        ("@ UTC", "is not days"), ("mon-moo 1-2 @ UTC", "'mon-moo'"), ("mon 1-2 @", "no time zone"),
    ],
)  # fmt: skip
def test_what_names_no_hours_is_refused(text: str, words: str) -> None:
    """The sentence names the part that is not understood and what is valid."""
    with pytest.raises(HoursError, match=words):
        hours.parse(text)


@given(st.integers(0, (1 << 168) - 1), st.sampled_from(["UTC", "Europe/Paris", "user"]))
@settings(max_examples=100, deadline=None)
def test_any_hours_read_back(mask: int, zone: str) -> None:
    """Whatever hours of the week there are, their text is read as those very hours."""
    given_hours = hours.Hours(mask, zone)
    if mask:
        again = hours.parse(hours.canonical(given_hours))
        assert again.mask == mask
        assert again.zone == zone or again.mask == (1 << 168) - 1


def test_clocks_that_change() -> None:
    """In the night to summer time the missing hour never runs; in the night back the repeated hour runs twice."""
    paris, at = ZoneInfo("Europe/Paris"), lambda text: datetime.fromisoformat(text).replace(tzinfo=UTC)
    two = hours.parse("sun 2-3 @ Europe/Paris")
    spring = [two.at(at(f"2026-03-29T{hour:02}:30:00"), paris) for hour in range(4)]
    assert spring == [False, False, False, False]  # 1:30, then 3:30
    autumn = [two.at(at(f"2026-10-25T{hour:02}:30:00"), paris) for hour in range(4)]
    assert autumn == [True, True, False, False]  # 2:30 summer time, 2:30 winter time, 3:30
