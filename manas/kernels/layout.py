"""Places in the kernels' parameters: shared by the source that Numba compiles and by the callers."""

from __future__ import annotations

from typing import NamedTuple

BLOCK_IDS = 1024
"""Ids per block: 16 words, two cache lines of every dense list, and a bound for every 1024 scores."""
BLOCK_WORDS = BLOCK_IDS // 64
BOUND_IDS = 128
"""Ids of a split list that share a bound for their payloads: one page of ids has eight of them, 3% more bytes."""

SAMPLE = 8
"""Blocks by which the number of matches is guessed."""
CODES = 256
"""Of a score, for comparisons of 64 at a time."""


class _Op(NamedTuple):
    """What an instruction does with the stack of block bitmaps. The order groups them: see `evaluate`."""

    PUSH_DENSE: int = 0
    OR_DENSE: int = 1
    AND_DENSE: int = 2
    ANDNOT_DENSE: int = 3
    PUSH_SPLIT: int = 4
    OR_SPLIT: int = 5
    ANDNOT_SPLIT: int = 6
    AND: int = 7
    OR: int = 8
    ANDNOT: int = 9
    NOT: int = 10
    IF_EMPTY: int = 11
    AND_RANGE_INT: int = 12
    AND_RANGE_FLOAT: int = 13
    PUSH_NONE: int = 14
    AND_PREDICATE: int = 15
    AND_RANGE_U8: int = 16
    AND_RANGE_U16: int = 17
    AND_RANGE_U32: int = 18
    AND_RANGE_F32: int = 19
    DENSE_LAST: int = 3
    SPLIT_LAST: int = 6


class _Code(NamedTuple):
    """Columns of an instruction: operation, address, and two more arguments."""

    OP: int = 0
    A: int = 1
    B: int = 2
    C: int = 3
    READ: int = 3
    """Of a split list: how far it has been read. The kernels write there."""
    WIDTH: int = 4


class _Bonus(NamedTuple):
    """Columns of a list that adds to the score of what it holds; without a PAYLOAD (0), each of its ids has 1."""

    DENSE: int = 0
    ADDRESS: int = 1
    COUNT: int = 2
    WEIGHT: int = 3
    PAYLOAD: int = 4
    CURSOR: int = 5
    RANKS: int = 6
    """Of a dense list with payloads: how many of its ids come before each block."""
    BOUNDS: int = 7
    """Largest payload of each block (dense) or of each BOUND_IDS ids (split)."""
    SUFFIX: int = 8
    """Largest payload from there on."""
    WIDTH: int = 9


class _Param(NamedTuple):
    """Places in a kernel's parameters."""

    BLOCKS: int = 0
    BLOCK: int = 1
    UNTIL: int = 2
    CODE: int = 3
    CODE_LENGTH: int = 4
    STACK: int = 6
    DRIVERS: int = 7
    DRIVER_TABLE: int = 8
    STATIC: int = 9
    TIES: int = 10
    BLOCK_MAX: int = 11
    SUFFIX_MAX: int = 12
    BONUSES: int = 13
    BONUS_TABLE: int = 14
    BONUS_BUFFER: int = 15
    AFTER: int = 16
    """Whether only candidates that rank behind (AFTER_SCORE, AFTER_TIE) are wanted: the next page."""
    K: int = 17
    HEAP_SIZE: int = 18
    HEAP_SCORES: int = 19
    HEAP_TIES: int = 20
    HEAP_IDS: int = 21
    COUNTING: int = 22
    TIES_RISE: int = 23
    MATCHED: int = 24
    EVALUATED: int = 25
    STOPPED: int = 26
    OUT: int = 27
    AFTER_SCORE: int = 28
    AFTER_TIE: int = 29
    SHORT_TIES: int = 30
    """Whether TIES are uint32 instead of int64."""
    FINISH: int = 31
    """Whether this is the last call: the best are put into order."""
    CODES: int = 32
    """A byte per id that bounds its static score, 0 where there are none; LEVELS has the bound of each code."""
    WORD_CODES: int = 33
    """The largest code of every 64 ids."""
    LEVELS: int = 34
    MASKS: int = 35
    """Room for a block's bitmap."""
    RANKS: int = 36
    """How many scores are not below the level of each code."""
    GUESS: int = 37
    """Whether the score of the worst of k may be guessed, so that less has to be looked at from the start."""
    MISSED: int = 38
    """The guess was too high: what was found is not the best; to be run again without a guess."""
    COUNT: int = 40


Op, Code, Bonus, Param = _Op(), _Code(), _Bonus(), _Param()
