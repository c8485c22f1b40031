"""Tables on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table


def table_of(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print rows under column names."""
    table = Table(*columns)
    for row in rows:
        table.add_row(*("" if value is None else str(value) for value in row))
    Console(width=None if sys.stdout.isatty() else 160).print(table)
