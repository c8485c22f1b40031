"""Which language is a text in? By script where the script tells, else by its commonest words; None when unsure."""

from __future__ import annotations

import re
import unicodedata

_STOP_WORDS = {
    "de": "der die das und ist nicht ein eine mit für auf von dem den zu im des sich auch wird bei aus oder sie wir "
    "ihre sind einen einer als zum zur ihr",
    "en": "the and of to in is for with on this that are from by your it you at be or as an not all our has have can "
    "will its which more their",
    "es": "el los las y es una con para por que del su en se al como más pero sus este esta son sin sobre muy un "
    "también nuestra tu",
    "fr": "le les et est une dans pour avec des sur que qui au du ce pas vous plus votre sont cette nous ou ses aux "
    "être un par nos",
    "it": "il gli e è una con per che del della di nel sono non un questo questa dei alla più anche come dal nella "
    "delle suo tuo nostro",
    "nl": "de het een en van is met voor op niet dat zijn te aan ook bij uit deze dit naar door wordt je onze of om "
    "worden uw heeft",
    "pt": "o os as e é uma com para por que do da em não se ao como mais dos das um no na sua seu este esta são "
    "também você",
    "sv": "och att det en som på är av för med den till inte ett har om du vi från kan din eller ska denna detta",
}
_LANGUAGES_OF: dict[str, list[str]] = {}
for _language, _words in _STOP_WORDS.items():
    for _word in _words.split():
        _LANGUAGES_OF.setdefault(_word, []).append(_language)

_SCRIPTS = {
    "ARABIC": "ar",
    "DEVANAGARI": "hi",
    "GREEK": "el",
    "HANGUL": "ko",
    "HEBREW": "he",
    "HIRAGANA": "ja",
    "KATAKANA": "ja",
    "THAI": "th",
    "CYRILLIC": "ru",
    "CJK": "zh",
}
_WORD = re.compile(r"[^\W\d_]+")
_PLAIN = {code: char.lower() if (char := chr(code)).isalpha() else " " for code in range(128)}
_MAX_CHARS = 4_000
"""The language of a text shows in its first paragraphs."""
_MIN_HITS = 2
_MIN_SHARE = 0.08
"""Of all words; running text has 20 to 50 %, a list of brand names next to nothing."""
_MARGIN = 1.5
"""How far the best must lead: Spanish, Portuguese and Italian share many small words."""


def detect_language(text: str) -> str | None:
    """Return the ISO 639-1 code of the language of `text`, None when there is too little to tell."""
    if text.isascii():  # the same words, several times faster
        words = text[:_MAX_CHARS].translate(_PLAIN).split()
    else:
        words = _WORD.findall(unicodedata.normalize("NFC", text[:_MAX_CHARS]).casefold())
    if not words:
        return None
    if foreign := _by_script("".join(words)):
        return foreign
    hits: dict[str, int] = {}
    for word in words:
        for language in _LANGUAGES_OF.get(word, ()):
            hits[language] = hits.get(language, 0) + 1
    ranked = sorted(hits.items(), key=lambda item: (-item[1], item[0]))
    if not ranked or ranked[0][1] < _MIN_HITS or ranked[0][1] < _MIN_SHARE * len(words):
        return None
    if len(ranked) > 1 and ranked[0][1] < _MARGIN * ranked[1][1]:
        return None
    return ranked[0][0]


def _by_script(letters: str) -> str | None:
    if letters.isascii():
        return None
    counts: dict[str, int] = {}
    for letter in letters:
        if letter > "\u036f":  # above the Latin blocks and their combining marks
            script = unicodedata.name(letter, "").split(" ", 1)[0]
            if language := _SCRIPTS.get(script):
                counts[language] = counts.get(language, 0) + 1
    if counts.get("ja"):  # Japanese mixes kana with Chinese characters
        counts["ja"] += counts.pop("zh", 0)
    if not counts:
        return None
    best = max(counts, key=lambda language: (counts[language], language))
    if counts[best] * 2 <= len(letters):
        return None
    return "uk" if best == "ru" and any(letter in "іїєґ" for letter in letters) else best
