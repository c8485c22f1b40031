"""Scoring expressions: a small language over numbers of candidates, parsed once and evaluated on whole arrays.

    bid * pow(quality, 0.5) + 2 * match(interests)

* Numbers (`2`, `0.5`, `1e-3`), parentheses, `+ - * /`, a sign, and one comparison (`< <= > >= == !=`, 1 or 0).
* Names: every numeric field as it is; `bid` and `price` in currency units, `quality` and `score` by their roles in
  serving; `light`, the score of the first phase; `at_us`, the request's instant in microseconds.
* A missing number is 0, a missing quality 1; `default(NAME, x)` has x instead, and `has(NAME)` is 1 or 0.
* `match(NAME)`: what the request's words and boosts of the field NAME add to the light score, and, where NAME is a
  targeting dimension, the payloads (1 without) of the request's own values that the document asks for.
* Functions: pow min max abs sqrt exp log log1p log10 floor ceil, clamp(x, low, high), if(condition, then, else).

There are no loops, no attributes and no calls of anything else. What is not a number (log(-1)) ranks last; infinities
become the largest float of their sign.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn, Protocol

import numpy as np
import numpy.typing as npt

from manas._exceptions import InvalidRequest

Numbers = npt.NDArray[np.float64]
Value = Numbers | float

MAX_LENGTH = 2_000
"""Characters: a longer expression is a mistake, and evaluating it would hold the index for too long."""
MAX_DEPTH = 50
"""Of nesting: keeps the parser and the evaluation within the interpreter's stack."""
_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)|(?P<name>[A-Za-z_]\w*)|(?P<op><=|>=|==|!=|[-+*/(),<>]))"
)
_LARGEST = float(np.finfo(np.float64).max)


class Columns(Protocol):
    """What an expression reads of its candidates."""

    def number(self, name: str, missing: float | None = None) -> Numbers:
        """Return a numeric field or role; `missing` (None: the name's own) where a candidate has none."""

    def has(self, name: str) -> Numbers:
        """Return 1 where a candidate has the number, else 0."""

    def match(self, name: str) -> Numbers:
        """Return how well each candidate matches the request in a field or dimension."""

    @property
    def light(self) -> Numbers:
        """The score of the first phase."""

    @property
    def at_us(self) -> int:
        """The request's instant, microseconds since the epoch."""

    def __len__(self) -> int:
        """Return the number of candidates."""


class Vocabulary(NamedTuple):
    """Names that an expression may use."""

    numbers: frozenset[str]
    matches: frozenset[str]


class _Token(NamedTuple):
    kind: str
    text: str
    at: int


Evaluate = Callable[[Columns], Value]


@dataclass(frozen=True, slots=True)
class Expression:
    """A parsed expression."""

    text: str
    _evaluate: Evaluate

    def __call__(self, columns: Columns) -> Numbers:
        """Return the score of every candidate: finite numbers."""
        with np.errstate(all="ignore"):
            found = np.broadcast_to(np.asarray(self._evaluate(columns), np.float64), (len(columns),))
        return finite(found)


def finite(scores: Numbers) -> Numbers:
    """Return scores with what is not a number or infinite replaced, so that they can be ordered and sent as JSON."""
    return np.nan_to_num(scores, nan=-_LARGEST, posinf=_LARGEST, neginf=-_LARGEST)


def parse_expression(text: Any, vocabulary: Vocabulary) -> Expression:
    """Parse an expression. Raises InvalidRequest with the character where it stops making sense."""
    if not isinstance(text, str) or not text.strip():
        raise InvalidRequest(f"score: an expression like 'bid * quality', got {str(text)[:60]!r}")
    if len(text) > MAX_LENGTH:
        raise InvalidRequest(f"score: {len(text)} characters; at most {MAX_LENGTH}")
    return Expression(text, _Parser(text, vocabulary).parse())


def _if(condition: Value, then: Value, otherwise: Value) -> Value:
    return np.where(np.asarray(condition) != 0, then, otherwise)


def _as_number(compare: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Value]:
    return lambda left, right: np.asarray(compare(left, right)).astype(np.float64)


def _clamp(value: Value, low: Value, high: Value) -> Value:
    return np.minimum(np.maximum(value, low), high)


_FUNCTIONS: Mapping[str, tuple[int, Callable[..., Value]]] = {
    "pow": (2, np.power),
    "min": (2, np.minimum),
    "max": (2, np.maximum),
    "abs": (1, np.abs),
    "sqrt": (1, np.sqrt),
    "exp": (1, np.exp),
    "log": (1, np.log),
    "log1p": (1, np.log1p),
    "log10": (1, np.log10),
    "floor": (1, np.floor),
    "ceil": (1, np.ceil),
    "clamp": (3, _clamp),
    "if": (3, _if),
}
_OPERATORS: Mapping[str, Callable[[Any, Any], Value]] = {
    "+": np.add,
    "-": np.subtract,
    "*": np.multiply,
    "/": np.divide,
    "<": _as_number(np.less),
    "<=": _as_number(np.less_equal),
    ">": _as_number(np.greater),
    ">=": _as_number(np.greater_equal),
    "==": _as_number(np.equal),
    "!=": _as_number(np.not_equal),
}
_LEVELS = (("<", "<=", ">", ">=", "==", "!="), ("+", "-"), ("*", "/"))
_OF_NAMES = ("match", "has", "default")


class _Parser:
    """Recursive descent; every node becomes a closure over arrays."""

    def __init__(self, text: str, vocabulary: Vocabulary) -> None:
        self._text = text
        self._vocabulary = vocabulary
        self._tokens = self._tokenize()
        self._place = 0
        self._depth = 0

    def parse(self) -> Evaluate:
        found = self._level(0)
        if self._next.kind != "end":
            self._fail(f"unexpected {self._next.text!r}; an operator or the end is expected")
        return found

    # ---- tokens ----

    def _tokenize(self) -> list[_Token]:
        tokens: list[_Token] = []
        at, end = 0, len(self._text.rstrip())
        while at < end:
            match = _TOKEN.match(self._text, at)
            if match is None:
                at += len(self._text[at:]) - len(self._text[at:].lstrip())
                raise InvalidRequest(f"score, character {at + 1}: {self._text[at]!r} means nothing here")
            kind = match.lastgroup or ""
            tokens.append(_Token(kind, match[kind], match.start(kind)))
            at = match.end()
        return [*tokens, _Token("end", "the end", end)]

    @property
    def _next(self) -> _Token:
        return self._tokens[self._place]

    def _take(self) -> _Token:
        token = self._next
        self._place += 1
        return token

    def _expect(self, text: str) -> None:
        if self._next.text != text or self._next.kind != "op":
            self._fail(f"{text!r} is expected, got {self._next.text!r}")
        self._place += 1

    def _fail(self, problem: str, token: _Token | None = None) -> NoReturn:
        raise InvalidRequest(f"score, character {(token or self._next).at + 1}: {problem}")

    # ---- grammar ----

    def _level(self, level: int) -> Evaluate:
        if level == len(_LEVELS):
            return self._unary()
        first = self._level(level + 1)
        rest: list[tuple[Callable[[Any, Any], Value], Evaluate]] = []
        while self._next.kind == "op" and self._next.text in _LEVELS[level]:
            operator = _OPERATORS[self._take().text]
            rest.append((operator, self._level(level + 1)))
            if level == 0 and self._next.text in _LEVELS[0]:
                self._fail("comparisons cannot be chained; put one into parentheses")
        return _chain(first, rest) if rest else first

    def _unary(self) -> Evaluate:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            self._fail(f"nested deeper than {MAX_DEPTH}")
        negative = False
        while self._next.kind == "op" and self._next.text in ("-", "+"):
            negative ^= self._take().text == "-"
        inner = self._primary()
        self._depth -= 1
        return (lambda columns: np.negative(inner(columns))) if negative else inner

    def _primary(self) -> Evaluate:
        token = self._take()
        if token.kind == "number":
            number = float(token.text)
            return lambda columns: number
        if token.kind == "name":
            if self._next.kind == "op" and self._next.text == "(":
                return self._call(token)
            return self._number(token)
        if token.text == "(" and token.kind == "op":
            inner = self._level(0)
            self._expect(")")
            return inner
        self._fail(f"a number, a name or '(' is expected, got {token.text!r}", token)

    def _number(self, token: _Token) -> Evaluate:
        name = token.text
        if name == "light":
            return lambda columns: columns.light
        if name == "at_us":
            return lambda columns: float(columns.at_us)
        self._check_number(token)
        return lambda columns: columns.number(name)

    def _check_number(self, token: _Token) -> None:
        if token.text not in self._vocabulary.numbers:
            known = ", ".join(sorted({"at_us", "light", *self._vocabulary.numbers}))
            hint = f"; {token.text} is a function, write {token.text}(...)" if token.text in _FUNCTIONS else ""
            self._fail(f"no number {token.text!r}; there are {known}{hint}", token)

    def _call(self, function: _Token) -> Evaluate:
        self._expect("(")
        if function.text in _OF_NAMES:
            return self._call_of_name(function.text)
        if function.text not in _FUNCTIONS:
            known = ", ".join(sorted([*_FUNCTIONS, *_OF_NAMES]))
            self._fail(f"no function {function.text!r}; there are {known}", function)
        count, compute = _FUNCTIONS[function.text]
        arguments = [self._level(0)]
        while self._next.kind == "op" and self._next.text == ",":
            self._place += 1
            arguments.append(self._level(0))
        self._expect(")")
        if len(arguments) != count:
            self._fail(f"{function.text} takes {count} arguments, got {len(arguments)}", function)
        return lambda columns: compute(*(argument(columns) for argument in arguments))

    def _call_of_name(self, function: str) -> Evaluate:
        token = self._take()
        if token.kind != "name":
            self._fail(f"{function} takes a name, got {token.text!r}", token)
        name = token.text
        if function == "match":
            if name not in self._vocabulary.matches:
                known = ", ".join(sorted(self._vocabulary.matches))
                self._fail(f"no field or dimension {name!r} to match; there are {known}", token)
            self._expect(")")
            return lambda columns: columns.match(name)
        self._check_number(token)
        if function == "has":
            self._expect(")")
            return lambda columns: columns.has(name)
        self._expect(",")
        sign = -1.0 if self._next.text == "-" else 1.0
        if sign < 0:
            self._place += 1
        given = self._take()
        if given.kind != "number":
            self._fail(f"default takes a number to stand for what is missing, got {given.text!r}", given)
        missing = sign * float(given.text)
        self._expect(")")
        return lambda columns: columns.number(name, missing)


def _chain(first: Evaluate, rest: list[tuple[Callable[[Any, Any], Value], Evaluate]]) -> Evaluate:
    """Return operations one after the other, in a loop: a long sum must not go as deep as it is long."""

    def evaluate(columns: Columns) -> Value:
        value = first(columns)
        for operator, operand in rest:
            value = operator(value, operand(columns))
        return value

    return evaluate
