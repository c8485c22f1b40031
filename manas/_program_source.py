"""What a program reads of a segment, and how many ids its clauses can have, from counts alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from catalog.targeting import accept_term, any_term
from manas._bits import Bits
from manas._clauses import And, Clause, Inside, Is, Meets, Near, Not, Or, Range, Runs, Special, Targets, Term
from manas._lately import Lately
from manas._number_column import Column
from manas._postings import Posting

if TYPE_CHECKING:
    from manas._special import Found


class Source(Protocol):
    """What a program reads of a segment and of its mutable state."""

    count: int
    fragments: Lately
    """Clause -> its fragment; of this segment only."""
    live: Bits
    """Ids that are not hidden by newer layers."""
    funded: Bits
    """Ids whose budget has something left."""

    def posting(self, field: str, term: str) -> Posting | None:
        """Return the posting list of a term, None when no document has it."""

    def column(self, field: str) -> Column | None:
        """Return a numeric column."""

    def scheduled(self, starts: str, ends: str, at_us: int) -> Bits:
        """Return the ids whose schedule has the instant."""

    def with_vector(self, field: str) -> Bits:
        """Return the ids that have a vector."""

    def internal(self, document_id: str) -> int | None:
        """Return the internal id of a document."""

    def special(self, clause: Special) -> Found:
        """Return the lists of a predicate, circles, points or weekly hours."""


def estimate_ids(source: Source, clause: Clause) -> int:
    """Return an upper estimate of how many ids satisfy the clause, from counts alone."""

    def frequency(name: str, term: str) -> int:
        posting = source.posting(name, term)
        return 0 if posting is None else posting.count

    match clause:
        case Term(name, term):
            return frequency(name, term)
        case Range(name, low, high):
            column = source.column(name)
            if column is None:
                return 0
            found = column.slice(low, high)
            return int(found.stop - found.start)
        case And(parts):
            return min(estimate_ids(source, part) for part in parts)
        case Or(parts):
            return min(source.count, sum(estimate_ids(source, part) for part in parts))
        case Targets(name, dimension, values):
            terms = [any_term(dimension), *(accept_term(dimension, value) for value in values)]
            return min(source.count, sum(frequency(name, term) for term in terms))
        case Is():
            return 1
        case Not(part):
            return max(0, source.count - estimate_ids(source, part))
        case Meets() | Inside() | Near() | Runs():
            return source.special(clause).estimate
    return source.count
