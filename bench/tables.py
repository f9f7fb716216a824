"""Figures as tables on the terminal."""

from collections.abc import Iterable

import numpy as np
from rich.console import Console
from rich.table import Table

console = Console(width=120)


def percentile(values: Iterable[float], percent: float) -> str:
    """In milliseconds, as text."""
    return f"{1000 * float(np.percentile(list(values), percent)):.0f}"


def show(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print a table, first column to the left, numbers to the right."""
    table = Table(title=title, title_justify="left")
    for index, name in enumerate(columns):
        table.add_column(name, justify="right" if index else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console.print(table)
