"""The commands besides `run`, one file each, and what they share. Nothing heavy is imported at the top of any."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from dnd.text import plain

if TYPE_CHECKING:
    from rich.console import Console


def make_console(*, quiet: bool = False) -> Console:
    """Standard output; where that is not a terminal, wide enough that no table is cut. No text steers it."""
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment

    class Plain(Console):
        def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
            for part in super().render(renderable, options):
                yield part if part.control else Segment(plain(part.text), part.style)

    console = Plain(highlight=False, quiet=quiet)
    return console if console.is_terminal else Plain(highlight=False, quiet=quiet, width=200)


def make_progress_console(*, quiet: bool = False) -> Console:
    """Standard error, for what passes: bars and notes."""
    from rich.console import Console

    return Console(stderr=True, quiet=quiet, highlight=False)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, narrow: bool = False) -> None:
    """With `narrow` one space between columns, else two."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False, collapse_padding=narrow)
    for column in columns:
        table.add_column(column, overflow="fold", justify="right" if column == "MB" else "left")
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    make_console().print(table)
