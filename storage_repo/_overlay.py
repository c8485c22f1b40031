"""What a transaction sees of its own buffered writes: laid over what is stored, in every engine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from storage_repo.api import Row


def overlay(found: Row, own: Mapping[str, bytes | None], columns: Sequence[str] | None) -> None:
    """Put a transaction's own writes to a row over what is stored."""
    for column, value in own.items():
        if columns is not None and column not in columns:
            continue
        if value is None:
            found.pop(column, None)
        else:
            found[column] = value


def merge(
    stored: Iterator[tuple[str, Row]], own: dict[str, dict[str, bytes | None]], columns: Sequence[str] | None
) -> Iterator[tuple[str, Row]]:
    """Merge own writes into stored rows, both in key order; rows left without cells are skipped."""
    pending = sorted(own, reverse=True)
    for row, cells in stored:
        while pending and pending[-1] < row:
            yield from _own_row(pending.pop(), own, columns)
        if pending and pending[-1] == row:
            overlay(cells, own[pending.pop()], columns)
        if cells:
            yield row, cells
    while pending:
        yield from _own_row(pending.pop(), own, columns)


def _own_row(
    row: str, own: dict[str, dict[str, bytes | None]], columns: Sequence[str] | None
) -> Iterator[tuple[str, Row]]:
    cells: Row = {}
    overlay(cells, own[row], columns)
    if cells:
        yield row, cells
