"""Places in the parameters of the nearest-neighbour kernels: shared by their source and by the callers."""

from __future__ import annotations

from typing import NamedTuple

NO_ROW = 0xFFFF_FFFF
"""Where a table of rows or links has none."""
GROUP = 16
"""Rows whose codes are kept and compared together; also centroids, and bounds of lists."""
RING = 16
"""Rows between asking for a vector from memory and comparing it, a power of two: as many as a processor waits for."""
PAUSED = 3
"""A status: see `STATUS`."""


class _Near(NamedTuple):
    """Places in a kernel's parameters. Everything ending in _AT is an address."""

    DIMS: int = 0
    QUERY_AT: int = 1
    """float32."""
    MATRIX_AT: int = 2
    """Rows of float32."""
    WORDS_AT: int = 3
    """Bitmap of the ids that may be answered."""
    WORDS: int = 4
    ROWS_AT: int = 5
    """uint32 row by id; 0: the row is the id."""
    IDS_AT: int = 6
    """uint32 id by row."""
    TIES_AT: int = 7
    """int64 by id: the smaller one wins between equal similarities; 0: the id."""
    K: int = 8
    SIZE: int = 9
    """Candidates in the heap."""
    SCORES_AT: int = 10
    """float64."""
    HEAP_TIES_AT: int = 11
    HEAP_IDS_AT: int = 12
    LISTS: int = 13
    STARTS_AT: int = 14
    """int64, first row of each list, and the end."""
    CENTROIDS_AT: int = 15
    """float32, for every `GROUP` centroids and every dimension those of the group."""
    SPREAD_AT: int = 16
    """float32 by list: typical distance of a similarity within the list from its centroid's."""
    REACH: int = 17
    """Bits of a float64: how many spreads above its centroid's similarity a list is trusted to reach."""
    BOUNDS_AT: int = 18
    """float32, scratch: the bound of every list, the greatest of every `GROUP` bounds, the greatest of every `GROUP`
    of these; each part filled up to a whole number of groups."""
    TOPS: int = 19
    """Groups in the last part."""
    BUFFER_AT: int = 20
    """int64 rows, scratch: as long as the longest list, or what one step of a walk can meet."""
    LINKS_AT: int = 21
    """uint32, `DEGREE` rows by row."""
    DEGREE: int = 22
    VISITED_AT: int = 23
    """Bitmap by row, zero at the start."""
    QUEUE_SCORES_AT: int = 24
    QUEUE_ROWS_AT: int = 25
    BUDGET: int = 26
    """Comparisons after which a walk gives up; the queue has room for so many and one step more."""
    TWO_HOPS: int = 27
    """Compare rows that pass only, and look for them behind those that do not."""
    SEEDS: int = 28
    """Lists that a walk takes its first candidates from."""
    LEAST_LOCAL: int = 29
    """Bits of a float64: a walk does not start when a smaller share of the query's surroundings passes."""
    LOOKED: int = 30
    """Rows met: tested, or compared by their codes."""
    COMPARED: int = 31
    """Vectors compared with the query."""
    VISITS: int = 32
    """Lists scanned, or steps of the walk."""
    STATUS: int = 33
    """0: done. 1: too little of the surroundings passes. 2: out of budget. 3: paused, to be called again as it is."""
    FURTHER: int = 34
    """Bits of a float64: the reach where the filter turns out to depend on the vectors."""
    EXPECTED: int = 35
    """Bits of a float64: share of all vectors that passes."""
    UNTIL: int = 36
    """Pause when so many rows were met (by `scan_near`: compared), at the end of a list, a word or a step."""
    AT: int = 37
    """Where it paused: the next word, or how many are queued."""
    TESTED: int = 38
    PASSED: int = 39
    """How many of those tested pass: tells filters that depend on the vectors."""
    RAISED: int = 40
    """The bounds are those of the further reach."""
    CODES_AT: int = 41
    """Bytes, for every `GROUP` rows and every four dimensions those of the group, dimensions filled up to whole eights;
    0: do not use them."""
    FOURS: int = 42
    """Fours of dimensions in the codes."""
    SCALES_AT: int = 43
    """float32 by dimension: what one step of a code is."""
    POWER: int = 44
    """Bits of a float64: mean sum of squares of a row's codes, counted from the middle."""
    WEIGHTS_AT: int = 45
    """Scratch: the query's own codes."""
    NUMBERS_AT: int = 46
    """float64, scratch: similarity per unit of a sum of codes, and the error to allow for."""
    OFFSET: int = 47
    """What sums of codes have too much, because codes are not negative."""
    ORDERED: int = 48
    """Whether `score_near` puts the heap into order, best first; else it leaves everything where it is."""
    COUNT: int = 49


Near = _Near()
