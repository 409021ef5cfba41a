"""Tables in a terminal: columns stay whole, and a table that is too wide is split into parts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.table import Table
    from rich.text import Text

HEAD = 24  # characters of a column's name that need not be wrapped


@dataclass(frozen=True)
class WideTable:
    """Rows of a label and cells; the first `repeated` columns stand in every part, as the labels do."""

    title: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[str]]]
    repeated: int = 0

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "Iterator[Text | Table | str]":
        from rich.text import Text

        if self.title:
            yield Text(self.title, "bold")
        for place, part in enumerate(self._parts(options.max_width)):
            if place:
                yield ""
            yield self._table(part)

    def _parts(self, width: int) -> list[list[int]]:
        """Columns of each part."""
        from rich.cells import cell_len

        def widest(texts: Sequence[str]) -> int:
            return max((cell_len(line) for text in texts for line in text.splitlines()), default=0)

        widths = [
            max(widest([cells[place] for _, cells in self.rows]), min(widest([name]), max(HEAD, widest(name.split()))))
            for place, name in enumerate(self.columns)
        ]
        always = list(range(self.repeated))
        room = width - widest([label for label, _ in self.rows]) - sum(widths[place] + 1 for place in always)
        parts, left = [list(always)], room
        for place in range(self.repeated, len(self.columns)):
            if widths[place] + 1 > left and len(parts[-1]) > self.repeated:
                parts.append(list(always))
                left = room
            parts[-1].append(place)
            left -= widths[place] + 1
        return parts

    def _table(self, part: Sequence[int]) -> "Table":
        from rich.box import SIMPLE_HEAD
        from rich.table import Table

        table = Table(box=SIMPLE_HEAD, show_edge=False, padding=0, pad_edge=False)
        table.add_column("", no_wrap=True)
        for place in part:
            table.add_column(self.columns[place], justify="right", overflow="fold")
        for label, cells in self.rows:
            table.add_row(label, *(cells[place] for place in part))
        return table
