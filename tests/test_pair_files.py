import time
import warnings

import pytest

from helpers.models import SteeringError
from helpers.pair_files import read_pairs

ROWS = [("We love it", "We hate it"), ("So warm, so good", "So cold"), ("größer", "kleiner")]


def write(folder, text, encoding="utf-8"):
    path = folder / "own.csv"
    path.write_bytes(text.encode(encoding))
    return path


def table(rows, separator=",", head=("positive", "negative"), end="\n"):
    """Rows as text, every cell in quotes."""
    lines = (separator.join(f'"{cell}"' for cell in row) for row in [head, *rows])
    return "".join(line + end for line in lines)


def read_with_warning(path, **options):
    """The pairs, and the text of the one warning."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pairs = read_pairs(path, **options)
    [warning] = caught
    assert warning.filename == __file__  # it points to the caller
    return pairs, str(warning.message)


@pytest.fixture(autouse=True)
def no_other_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


# -- What is read


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_every_way_a_spreadsheet_saves_gives_the_same_pairs(tmp_path, encoding, separator, end):
    path = write(tmp_path, table(ROWS, separator, end=end), encoding)
    assert read_pairs(path) == read_pairs(str(path)) == ROWS


def test_both_byte_orders_of_utf_16_are_read(tmp_path):
    for mark, encoding in ((b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be")):
        (tmp_path / "own.csv").write_bytes(mark + table(ROWS).encode(encoding))
        assert read_pairs(tmp_path / "own.csv") == ROWS


@pytest.mark.parametrize(
    "text",
    [
        "Negative,note, POSITIVE \nbad,,good\n  worse ,a note,better",
        'note;negative, really;positive;negative\n"1;2";x;good;bad\n;x;better;worse',
        '\n\nnegative\tpositive\n\nbad\tgood\n"worse"\t"better"\n\n\n',
        'positive, negative\n"good", "bad"\nbetter, worse\n',
    ],
)
def test_columns_are_found_by_their_names(tmp_path, text):
    assert read_pairs(write(tmp_path, text)) == [("good", "bad"), ("better", "worse")]


def test_columns_may_have_the_names_of_the_sides(tmp_path):
    both = write(tmp_path, "cold,warm,positive,negative\nice,fire,good,bad\n")
    assert read_pairs(both, ("warm", "cold")) == [("fire", "ice")]
    assert read_pairs(both, sides=["Cold ", "WARM"]) == [("ice", "fire")]
    assert read_pairs(both) == read_pairs(both, ("up", "down")) == [("good", "bad")]


def test_a_quoted_text_may_hold_quotes_separators_and_lines(tmp_path):
    path = write(tmp_path, 'positive,negative\n"He said ""yes"", twice","two\nlines"\na,b\n')
    assert read_pairs(path) == [('He said "yes", twice', "two\nlines"), ("a", "b")]


# -- Rows that are left out


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (",cold", "an empty cell"),
        ('"  ",cold', "an empty cell"),
        (",", "an empty cell"),
        ("warm", "1 cells instead of 2"),
        ("warm,cold,lukewarm", "3 cells instead of 2"),
        ("same, same", "both sides are equal"),
        ("good,bad", "the same pair as in line 2"),
        ('"warm,cold', "a quote is not closed"),
        ('warm,"cold', "a quote is not closed"),
        ('"warm" or hot,cold', "a quote is not closed"),
    ],
)
def test_a_bad_row_is_named_by_line_and_reason_and_the_others_are_kept(tmp_path, row, problem):
    path = write(tmp_path, f"positive,negative\ngood,bad\n{row}\nbetter,worse\nbest,worst\n")
    pairs, warning = read_with_warning(path)
    assert pairs == [("good", "bad"), ("better", "worse"), ("best", "worst")]
    assert warning == f"{path}: 3 of 4 rows can be used. Left out: line 3: {problem}."


def test_lines_are_counted_as_an_editor_counts_them(tmp_path):
    text = 'positive,negative\n\n"two\nlines",one\n\nlonely\n"open,end\n"a","b"\n'
    pairs, warning = read_with_warning(write(tmp_path, text))
    assert pairs == [("two\nlines", "one"), ("a", "b")]
    assert "2 of 4 rows" in warning
    assert warning.endswith("line 6: 1 cells instead of 2; line 7: a quote is not closed.")


def test_the_first_ten_bad_rows_are_named_and_the_others_counted(tmp_path):
    for n_bad in (10, 13):
        path = write(tmp_path, "positive,negative\ngood,bad\n" + "lonely\n" * n_bad)
        pairs, warning = read_with_warning(path)
        assert pairs == [("good", "bad")] and f"1 of {1 + n_bad} rows" in warning
        assert warning.count("lonely") == 0 and warning.count("1 cells instead") == 10
        assert ("line 12: 1 cells instead of 2; and 3 more." in warning) == (n_bad == 13)


@pytest.mark.parametrize(
    "bad", ["", "lonely\n", '"open,end\n', 'q","q\n', '"""a,b\n', "the same,pair\n"]
)
def test_100000_rows_take_less_than_two_seconds_and_one_warning(tmp_path, bad):
    n = 100_000
    good = [f"text number {i},other number {i}\n" for i in range(n)]
    if bad:
        good[::2] = [bad] * (n // 2)
    path = write(tmp_path, "positive,negative\n" + "".join(good))
    start = time.process_time()
    pairs, warning = read_with_warning(path) if bad else (read_pairs(path), "")
    assert time.process_time() - start < 2
    assert len(pairs) == (n // 2 + bad.startswith("the same") if bad else n)
    assert len(warning) < 1000 and (f"{len(pairs)} of {n} rows" in warning) == bool(bad)


# -- Files that are refused


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16-le", "utf-16-be", "utf-32"])
def test_another_encoding_is_refused_with_the_way_out(tmp_path, encoding):
    with pytest.raises(SteeringError, match=r"own\.csv is not in UTF-8 .*: save it as UTF-8"):
        read_pairs(write(tmp_path, table(ROWS), encoding))


@pytest.mark.parametrize(
    ("head", "found"),
    [
        ("positive,negativ", "'positive', 'negativ'"),
        ("good;bad;note", "'good', 'bad', 'note'"),
        ("positive,negative,positive", "'positive', 'negative', 'positive'"),
        ("positive|negative", "'positive|negative'"),
        ('"positive,negative', ""),
        ("", ""),
    ],
)
def test_a_missing_column_is_named_beside_those_that_were_found(tmp_path, head, found):
    path = write(tmp_path, f"{head}\n")
    with pytest.raises(SteeringError) as error:
        read_pairs(path, ("warm", "cold"))
    assert "['warm', 'cold'] or ['positive', 'negative']" in str(error.value)
    assert f"by the first line, are [{found}]" in str(error.value)
    with pytest.raises(SteeringError, match=r"for each side: \['positive', 'negative'\]\. Its"):
        read_pairs(path)


def test_a_file_without_a_row_that_can_be_used_is_refused(tmp_path):
    with pytest.raises(SteeringError, match="0 of 0 rows can be used. Give at least one pair"):
        read_pairs(write(tmp_path, "positive,negative\n"))
    with pytest.raises(SteeringError, match="0 of 2 rows .*line 2: an empty cell; line 3: both"):
        read_pairs(write(tmp_path, "positive,negative\n,b\na,a\n"))


@pytest.mark.parametrize("path", ["absent.csv", ".", "\0", "\ud800", 5, None, ["a"]], ids=repr)
def test_what_is_no_file_is_refused(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SteeringError, match="No pairs could be read from"):
        read_pairs(path)


@pytest.mark.parametrize("sides", ["ab", ["a"], ["a", "b", "c"], ["a", "a"], None, 5, ["a", ""]])
def test_sides_are_two_names(tmp_path, sides):
    with pytest.raises(SteeringError, match="sides?|Sides?"):
        read_pairs(write(tmp_path, table(ROWS)), sides)
