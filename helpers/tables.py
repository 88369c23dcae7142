"""Tables that show as HTML in a notebook and as text everywhere else."""

from html import escape


class Table:
    """Rows under a head: text in a terminal, HTML in a notebook, Markdown for a file.

    Parameters
    ----------
    head : list of str
    rows : list of sequences, one entry for each column
    formats : list of str, optional
        How to write the numbers of each column, such as ``".2f"`` or ``"+.1f"``. Entries that
        are text stay as they are. Columns of numbers stand to the right.

    Raises ValueError if a row has more or fewer entries than the head.
    """

    def __init__(self, head, rows, formats=None):
        self.head = list(head)
        rows = [list(row) for row in rows]
        formats = [""] * len(self.head) if formats is None else list(formats)
        for row in [formats, *rows]:
            if len(row) != len(self.head):
                raise ValueError(f"{len(self.head)} columns, but {len(row)} entries in {row}.")
        self.numeric = [
            bool(rows) and not any(isinstance(row[i], str) for row in rows)
            for i in range(len(self.head))
        ]
        self.rows = [
            [_write(entry, spec) for entry, spec in zip(row, formats, strict=True)] for row in rows
        ]

    def __repr__(self):
        columns = zip(self.head, *self.rows, strict=True)
        widths = [max(map(len, column)) for column in columns]
        lines = []
        for row in [self.head, *self.rows]:
            entries = [
                f"{entry:>{width}}" if right else f"{entry:<{width}}"
                for entry, width, right in zip(row, widths, self.numeric, strict=True)
            ]
            lines.append("  ".join(entries).rstrip())
        return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])

    def _repr_html_(self):
        # A line a row: diffs stay readable, and JupyterLab shows the first line of folded output.
        lines = []
        for row, tag in zip([self.head, *self.rows], ["th", *["td"] * len(self.rows)], strict=True):
            cells = (
                f'<{tag} style="text-align:{"right" if right else "left"}">{escape(entry)}</{tag}>'
                for entry, right in zip(row, self.numeric, strict=True)
            )
            lines.append(f"<tr>{''.join(cells)}</tr>")
        return "\n".join(["<table>", *lines, "</table>"])

    def markdown(self) -> str:
        """The table in Markdown."""
        rule = ["---:" if right else "---" for right in self.numeric]
        rows = [[entry.replace("|", "\\|") for entry in row] for row in [self.head, *self.rows]]
        return "\n".join("| " + " | ".join(row) + " |" for row in [rows[0], rule, *rows[1:]])


def _write(entry, spec):
    """An entry as text; no minus sign before a number that is written as zero."""
    if isinstance(entry, str):
        return entry
    text = format(entry, spec)
    digits = text.strip("-+ %")
    zero = text.startswith("-") and not digits.strip("0.")
    return text.replace("-", "+" if "+" in spec else "", 1) if zero else text
