"""Text analysis, the same for documents and for queries: a term matches only what was analysed alike."""

from __future__ import annotations

import re
import unicodedata

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_POSSESSIVE = re.compile(r"(?:'s?)+$")
_DROPPED = frozenset({"Mn", "Mc", "Me", "Cf"})
"""Marks, and format characters such as the soft hyphen: neither may split a word."""
_REMEMBERED = 1 << 16
"""Characters whose category is remembered: those of all living languages."""


class _Kept(dict[int, int | None]):
    """Character -> itself, or None for one that is dropped, as `str.translate` takes it."""

    def __missing__(self, code: int) -> int | None:
        if len(self) >= _REMEMBERED:
            self.clear()
        kept = self[code] = None if unicodedata.category(chr(code)) in _DROPPED else code
        return kept


_KEPT = _Kept()
_PLAIN = {code: char.lower() if (char := chr(code)).isalnum() else " " for code in range(128)}
"""For ASCII without apostrophes, which alone can stand inside a word: letters and digits make words, all else parts."""
MAX_TERM_LENGTH = 64
"""Longer runs of letters are identifiers or noise, and would bloat the term dictionary."""


def analyze(text: str) -> list[str]:
    """Return the terms of `text` in order: compatibility-normalised, case-folded, without marks.

    Analysing terms again changes nothing. Vowel signs of Indic scripts are marks too, and fall away with accents.
    """
    if text.isascii():  # nothing to decompose or to drop: the same answer, many times faster
        if "'" not in text:
            return [word[:MAX_TERM_LENGTH] for word in text.translate(_PLAIN).split()]
        stripped = text.lower()
    else:
        folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
        stripped = folded.translate(_KEPT)
    words = (word.replace("’", "'") for word in _WORD.findall(stripped))
    return [_POSSESSIVE.sub("", word[:MAX_TERM_LENGTH]) for word in words]


def unique_terms(*texts: str | None) -> list[str]:
    """Return the sorted set of terms of some texts, missing ones passed over."""
    return sorted({term for text in texts if text for term in analyze(text)})
