from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from helpers.tables import Table

HEAD = ["Layer", "Force", "Text"]
ROWS = [(0, 1.25, "a text"), (10, -20.5, "one | two\\"), (2, 3, "<b>5 & 6</b>")]
FORMATS = ["", ".1f", ""]


class Cells(HTMLParser):
    """The rows of an HTML table as a browser shows them: kind, side and text of each cell."""

    def __init__(self, html):
        super().__init__()
        self.rows, self.tags = [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("th", "td"):
            side = dict(attributes)["style"].removeprefix("text-align:")
            self.rows[-1].append([tag, side, ""])

    def handle_data(self, data):
        if data.strip():
            self.rows[-1][-1][2] += data


def test_text_has_its_columns_under_their_heads_and_numbers_to_the_right():
    assert repr(Table(HEAD, ROWS, FORMATS)).splitlines() == [
        "Layer  Force  Text",
        "--------------------------",
        "    0    1.2  a text",
        "   10  -20.5  one | two\\",
        "    2    3.0  <b>5 & 6</b>",
    ]


def test_html_says_the_same_and_escapes_it():
    cells = Cells(Table(HEAD, ROWS, FORMATS)._repr_html_())
    assert set(cells.tags) == {"table", "tr", "th", "td"}
    assert len(Table(HEAD, ROWS)._repr_html_().splitlines()) == 2 + 4  # a line a row
    head, *rows = cells.rows
    sides = ["right", "right", "left"]
    assert head == [["th", side, entry] for side, entry in zip(sides, HEAD, strict=True)]
    entries = [["0", "1.2", "a text"], ["10", "-20.5", "one | two\\"], ["2", "3.0", "<b>5 & 6</b>"]]
    assert rows == [
        [["td", side, entry] for side, entry in zip(sides, row, strict=True)] for row in entries
    ]


def test_markdown_says_the_same_and_keeps_its_columns():
    assert Table(HEAD, ROWS, FORMATS).markdown().splitlines() == [
        "| Layer | Force | Text |",
        "| ---: | ---: | --- |",
        "| 0 | 1.2 | a text |",
        "| 10 | -20.5 | one \\| two\\ |",
        "| 2 | 3.0 | <b>5 & 6</b> |",
    ]


@pytest.mark.parametrize(
    ("number", "spec", "written"),
    [
        (-0.04, ".1f", "0.0"),
        (-0.0, "", "0.0"),
        (-0.0, ".0f", "0"),
        (-0.001, "+.2f", "+0.00"),
        (0.001, "+.2f", "+0.00"),
        (-0.0004, ".1%", "0.0%"),
        (-0.06, ".1f", "-0.1"),
        (-10.0, ".1f", "-10.0"),
        (-100, ",d", "-100"),
        (0, "", "0"),
        (float("nan"), ".2f", "nan"),
        (float("-inf"), ".2f", "-inf"),
        (torch.tensor(-0.04), ".1f", "0.0"),
        (torch.tensor(3), "", "3"),
        (np.float32(1.25), ".1f", "1.2"),
        (1e-12, ".1e", "1.0e-12"),
        (-1e-12, ".1e", "-1.0e-12"),
    ],
)
def test_numbers_are_written_as_asked_and_none_is_a_negative_zero(number, spec, written):
    assert Table(["x"], [[number]], [spec]).rows == [[written]]


def test_text_stays_as_it_is_also_among_numbers():
    table = Table(["x"], [["-0.0"], [-0.01], ["{:.1f} "], [""]], [".1f"])
    assert table.rows == [["-0.0"], ["0.0"], ["{:.1f} "], [""]]
    assert "---:" not in table.markdown()  # a column with text stands to the left


def test_a_head_wider_than_its_entries_and_the_other_way_round():
    lines = repr(Table(["a long head", "b"], [["x", "a long entry"]])).splitlines()
    assert lines == ["a long head  b", "-" * 25, "x            a long entry"]


def test_a_table_without_rows_has_a_head():
    table = Table(["a", "b"], [])
    assert repr(table).splitlines() == ["a  b", "----"]
    assert [[cell[2] for cell in row] for row in Cells(table._repr_html_()).rows] == [["a", "b"]]
    assert table.markdown().splitlines() == ["| a | b |", "| --- | --- |"]


def test_rows_may_come_from_anything_that_can_be_gone_through_once():
    table = Table(iter("ab"), zip([1, 2], ["x", "y"], strict=True), iter(["+d", ""]))
    assert table.rows == [["+1", "x"], ["+2", "y"]] and repr(table) == repr(table)


@pytest.mark.parametrize(
    ("rows", "formats"),
    [
        ([(1, 2), (3,)], None),
        ([(1, 2, 3)], None),
        ([(1, 2)], [".1f"]),
        ([], [".1f", "", ""]),
        ([()], None),
    ],
)
def test_a_row_of_another_length_than_the_head_is_refused(rows, formats):
    with pytest.raises(ValueError, match=r"2 columns, but \d entries in "):
        Table(["a", "b"], rows, formats)
