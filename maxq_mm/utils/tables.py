"""Plain text tables."""

import io
from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A plain text table, columns as wide as they need."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    grid = Table(*head, box=box.SIMPLE)
    for row in rows:
        grid.add_row(*row)
    console = Console(file=io.StringIO(), width=200, color_system=None)
    console.print(grid, markup=False)
    return '\n'.join(line.rstrip() for line in console.file.getvalue().splitlines() if line.strip())
