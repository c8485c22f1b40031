"""Predicates: targeting as nested Boolean expressions over what a request says about itself.

    (age in [25..34] and interest in {golf, tennis}) or (country = UK and not device = tablet)

Conditions are `name = value`, `name != value`, `name < 5` (also <=, >, >=), `name in {a, b}`, `name not in {a, b}`,
`name in [1..5]` (either end may be left out); they nest with `and`, `or`, `not` and parentheses. `true` and `false`
stand for themselves. A value is a bare word, a whole number, or quoted text with backslash escapes. Names are the
catalogue's dimensions.

Three truth values (Kleene): a condition on a dimension that the request leaves out is unknown, `not` of unknown is
unknown, and an unknown predicate does not hold (STRONG "not in" of "Indexing Boolean Expressions", VLDB 2009). Of many
values of the request, one that fits is enough, and `not` means that none fits. A request value "*" browses: every
condition on that dimension, denied or not, counts as met.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from catalog.kinds import ValueType
from catalog.portable import Portable
from catalog.targeting import ANY

if TYPE_CHECKING:
    from catalog.model import Dimension

MAX_DEPTH = 100
"""Of parentheses and `not`: the parser calls itself, and nobody writes more by hand."""
MAX_CONDITIONS = 2_000
_MAX_VALUE = 128
_INT64 = (-(1 << 63), (1 << 63) - 1)
_TOKEN = re.compile(
    r"""\s*(?:
        (?P<dots>\.\.)
      | (?P<sign><=|>=|!=|=|<|>|[(){}\[\],])
      | (?P<quoted>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")
      | (?P<number>-?\d+(?=\.\.|[\s(){}\[\],<>=!]|$))
      | (?P<word>[\w*+/:@\#%&$~-](?:[\w*+/:@\#%&$~-]|\.(?!\.))*)
    )""",
    re.VERBOSE | re.DOTALL,
)
_BARE = re.compile(r"[^\W\d][\w:/@-]*")
_KEYWORDS = frozenset({"and", "or", "not", "in", "true", "false"})


class PredicateError(Portable, ValueError):
    """Raised for text that is no predicate; the sentence begins with the place of the fault, counted from 1."""

    def __init__(self, at: int, problem: str) -> None:
        self.at = at
        super().__init__(f"at character {at + 1}: {problem}")


@dataclass(frozen=True, slots=True)
class OneOf:
    """The request's dimension has one of the values (sorted, each once)."""

    dimension: str
    values: tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Between:
    """The request's dimension has a number in the closed interval."""

    dimension: str
    low: int
    high: int


@dataclass(frozen=True, slots=True)
class Always:
    """True, or with `holds` false, false."""

    holds: bool


@dataclass(frozen=True, slots=True)
class All:
    """All parts hold."""

    parts: tuple[Predicate, ...]


@dataclass(frozen=True, slots=True)
class Some:
    """Some part holds."""

    parts: tuple[Predicate, ...]


@dataclass(frozen=True, slots=True)
class No:
    """The part is false."""

    part: Predicate


Predicate = OneOf | Between | Always | All | Some | No

Said = Mapping[str, tuple[str | int, ...] | None]
"""What a request says: dimension -> its values, None for "*"; dimensions that are left out are unknown."""


def parse(text: str, dimensions: Mapping[str, Dimension]) -> Predicate:
    """Return the predicate that a text means. Raises PredicateError."""
    parser = _Parser(text, dimensions)
    found = parser.either(0)
    parser.expect_end()
    return found


def canonical(predicate: Predicate) -> str:
    """Return the one text of a predicate; parsing it gives the same predicate again."""
    return _text(predicate, 0)


def truth(predicate: Predicate, said: Said) -> bool | None:
    """Return whether a predicate holds: True, False, or None for unknown.

    With a dimension that is browsed, True and False mean: all its conditions counted as met.
    """
    holds, fails = _truths(predicate, said)
    return True if holds else False if fails else None


def _truths(node: Predicate, said: Said) -> tuple[bool, bool]:
    """Return whether the predicate, and whether its denial, holds; neither when unknown, both where it is browsed."""
    match node:
        case Always(holds):
            return holds, not holds
        case No(part):
            holds, fails = _truths(part, said)
            return fails, holds
        case All(parts):
            found = [_truths(part, said) for part in parts]
            return all(h for h, _ in found), any(f for _, f in found)
        case Some(parts):
            found = [_truths(part, said) for part in parts]
            return any(h for h, _ in found), all(f for _, f in found)
        case OneOf(dimension, values):
            if dimension not in said:
                return False, False
            given = said[dimension]
            if given is None:
                return True, True
            hit = not frozenset(values).isdisjoint(given)
            return hit, not hit
        case Between(dimension, low, high):
            if dimension not in said:
                return False, False
            given = said[dimension]
            if given is None:
                return True, True
            hit = any(low <= int(value) <= high for value in given)
            return hit, not hit


# ---- writing ----

_LOOSEST, _IN_OR, _IN_AND, _IN_NOT = range(4)


def _text(node: Predicate, around: int) -> str:
    match node:
        case Always(holds):
            return "true" if holds else "false"
        case OneOf(dimension, values):
            shown = [_value(value) for value in values]
            return f"{dimension} = {shown[0]}" if len(shown) == 1 else f"{dimension} in {{{', '.join(shown)}}}"
        case Between(dimension, low, high):
            left, right = "" if low == _INT64[0] else str(low), "" if high == _INT64[1] else str(high)
            return f"{dimension} in [{left}..{right}]"
        case No(part):
            return f"not {_text(part, _IN_NOT)}"
        case All(parts):
            joined = " and ".join(_text(part, _IN_AND) for part in parts)
            return f"({joined})" if around > _IN_OR else joined
        case Some(parts):
            joined = " or ".join(_text(part, _IN_OR) for part in parts)
            return f"({joined})" if around > _LOOSEST else joined


def _value(value: str | int) -> str:
    if isinstance(value, int):
        return str(value)
    if _BARE.fullmatch(value) and value.lower() not in _KEYWORDS:
        return value
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


# ---- reading ----


class _Token(NamedTuple):
    kind: str
    text: str
    at: int


class _Parser:
    """Recursive descent: either = every, or ...; every = one, and ...; one = not, parentheses, condition."""

    def __init__(self, text: str, dimensions: Mapping[str, Dimension]) -> None:
        self._dimensions = dimensions
        self._tokens = _tokens(text)
        self._next = 0
        self._conditions = 0

    def either(self, depth: int) -> Predicate:
        """Read parts joined by `or`."""
        parts = [self._every(depth)]
        while self._word("or"):
            parts.append(self._every(depth))
        return _joined(Some, parts)

    def expect_end(self) -> None:
        """Raise PredicateError when something is left."""
        token = self._peek()
        if token.kind != "end":
            raise PredicateError(token.at, f"expected 'and', 'or' or the end, found {token.text!r}")

    def _every(self, depth: int) -> Predicate:
        parts = [self._one(depth)]
        while self._word("and"):
            parts.append(self._one(depth))
        return _joined(All, parts)

    def _one(self, depth: int) -> Predicate:
        token = self._take()
        if depth > MAX_DEPTH:
            raise PredicateError(token.at, f"nested deeper than {MAX_DEPTH}")
        word = token.text.lower() if token.kind == "word" else ""
        if word == "not":
            return No(self._one(depth + 1))
        if word in ("true", "false"):
            return Always(word == "true")
        if token.text == "(" and token.kind == "sign":
            inner = self.either(depth + 1)
            self._expect(")")
            return inner
        if token.kind != "word" or word in _KEYWORDS:
            raise PredicateError(token.at, f"expected a condition, 'not' or '(', found {_shown(token)}")
        dimension = self._dimensions.get(token.text)
        if dimension is None:
            known = ", ".join(self._dimensions) or "none"
            raise PredicateError(token.at, f"{token.text!r} is not a dimension; there are {known}")
        self._conditions += 1
        if self._conditions > MAX_CONDITIONS:
            raise PredicateError(token.at, f"more than {MAX_CONDITIONS} conditions")
        return self._condition(dimension)

    def _condition(self, dimension: Dimension) -> Predicate:
        token = self._take()
        if token.kind == "sign" and token.text in ("=", "!="):
            found: Predicate = OneOf(dimension.name, (self._value(dimension),))
            return found if token.text == "=" else No(found)
        if token.kind == "sign" and token.text in ("<", "<=", ">", ">="):
            return self._compared(dimension, token)
        word = token.text.lower() if token.kind == "word" else ""
        if word == "in":
            return self._within(dimension)
        if word == "not" and self._word("in"):
            return No(self._within(dimension))
        raise PredicateError(token.at, f"expected =, !=, <, <=, >, >=, in or not in, found {_shown(token)}")

    def _compared(self, dimension: Dimension, token: _Token) -> Predicate:
        limit = self._number(dimension)
        low, high = _INT64
        if token.text in ("<", "<="):
            high = limit - (token.text == "<")
        else:
            low = limit + (token.text == ">")
        if low > high or high < _INT64[0] or low > _INT64[1]:
            raise PredicateError(token.at, f"no number of 64 bits is {token.text} {limit}")
        return Between(dimension.name, low, high)

    def _within(self, dimension: Dimension) -> Predicate:
        token = self._take()
        if token.kind != "sign" or token.text not in ("{", "["):
            raise PredicateError(token.at, f"expected {{ with values or [ with a range, found {_shown(token)}")
        if token.text == "[" and self._is_range():
            return self._range(dimension)
        closing = "}" if token.text == "{" else "]"
        values = {self._value(dimension)}
        while self._sign(","):
            values.add(self._value(dimension))
        self._expect(closing)
        return OneOf(dimension.name, tuple(sorted(values, key=_order)))

    def _is_range(self) -> bool:
        return any(token.kind == "dots" for token in self._tokens[self._next : self._next + 2])

    def _range(self, dimension: Dimension) -> Predicate:
        at = self._peek().at
        low = _INT64[0] if self._peek().kind == "dots" else self._number(dimension)
        dots = self._take()
        if dots.kind != "dots":
            raise PredicateError(dots.at, f"expected '..', found {_shown(dots)}")
        high = _INT64[1] if self._peek().text == "]" else self._number(dimension)
        if dimension.type is not ValueType.INT:
            raise PredicateError(
                at, f"{dimension.name} has {dimension.type.value} values, and only numbers have ranges"
            )
        self._expect("]")
        if low > high:
            raise PredicateError(at, f"the range from {low} to {high} is empty")
        return Between(dimension.name, low, high)

    def _number(self, dimension: Dimension) -> int:
        token = self._peek()
        if dimension.type is not ValueType.INT:
            name, kind = dimension.name, dimension.type.value
            raise PredicateError(token.at, f"{name} has {kind} values, and only numbers are compared or have ranges")
        value = self._value(dimension)
        return int(value)

    def _value(self, dimension: Dimension) -> str | int:
        token = self._take()
        if token.kind not in ("word", "number", "quoted"):
            raise PredicateError(token.at, f"expected a value of {dimension.name}, found {_shown(token)}")
        if dimension.type is ValueType.INT:
            if token.kind != "number":
                raise PredicateError(token.at, f"{dimension.name} takes whole numbers, found {_shown(token)}")
            number = int(token.text) if len(token.text) <= 20 else _INT64[1] + 1
            if not _INT64[0] <= number <= _INT64[1]:
                raise PredicateError(token.at, f"{token.text} does not fit 64 bits")
            return number
        text = re.sub(r"\\(.)", r"\1", token.text[1:-1], flags=re.DOTALL) if token.kind == "quoted" else token.text
        if token.kind == "word" and text.lower() in _KEYWORDS:
            raise PredicateError(token.at, f"expected a value, found the keyword {text!r}; put it in quotes")
        if not text.strip() or text == ANY or len(text) > _MAX_VALUE:
            raise PredicateError(token.at, f"{dimension.name} cannot have the value {text[:40]!r}")
        if dimension.values and text not in dimension.values:
            known = ", ".join(dimension.values)
            raise PredicateError(token.at, f"{dimension.name} has no value {text!r}; there are {known}")
        return text

    # ---- tokens ----

    def _peek(self) -> _Token:
        return self._tokens[self._next]

    def _take(self) -> _Token:
        token = self._tokens[self._next]
        if token.kind != "end":
            self._next += 1
        return token

    def _word(self, word: str) -> bool:
        token = self._peek()
        if token.kind == "word" and token.text.lower() == word:
            self._next += 1
            return True
        return False

    def _sign(self, sign: str) -> bool:
        token = self._peek()
        if token.kind == "sign" and token.text == sign:
            self._next += 1
            return True
        return False

    def _expect(self, sign: str) -> None:
        token = self._peek()
        if not self._sign(sign):
            raise PredicateError(token.at, f"expected {sign!r}, found {_shown(token)}")


def _tokens(text: str) -> list[_Token]:
    tokens: list[_Token] = []
    at, end = 0, len(text.rstrip())
    while at < end:
        found = _TOKEN.match(text, at)
        if found is None or found.lastgroup is None:
            start = at + len(text[at:]) - len(text[at:].lstrip())
            problem = "a quote is not closed" if text[start] in "'\"" else f"unexpected {text[start]!r}"
            raise PredicateError(start, problem)
        tokens.append(_Token(found.lastgroup, found[found.lastgroup], found.start(found.lastgroup)))
        at = found.end()
    tokens.append(_Token("end", "the end", end))
    return tokens


def _order(value: str | int) -> tuple[int, str]:
    """Return what values of one dimension, all numbers or all texts, are sorted by."""
    return (value, "") if isinstance(value, int) else (0, value)


def _shown(token: _Token) -> str:
    return "the end" if token.kind == "end" else repr(token.text[:40])


def _joined(kind: type[All] | type[Some], parts: list[Predicate]) -> Predicate:
    """Join parts, those of the same kind flattened."""
    if len(parts) == 1:
        return parts[0]
    flat: list[Predicate] = []
    for part in parts:
        flat += part.parts if isinstance(part, kind) else (part,)
    return kind(tuple(flat))
