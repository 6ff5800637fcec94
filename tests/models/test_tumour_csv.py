"""Reading and writing measurements as CSV."""

import io
from collections import deque
from itertools import chain, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.csv_files import ADDED, GOOD, csv_of
from tests.service import ROWS
from workshop.contracts.classifier import Scores
from workshop.contracts.errors import InvalidFileError
from workshop.contracts.tumours import FEATURES
from workshop.models.tumour_csv import (
    MAX_BATCH,
    MAX_ERRORS,
    MAX_ROW,
    Mistake,
    PredictionCsvWriter,
    TumourCsvReader,
    Utf8Check,
)

NUMBER = "it must be a number from 0 to 1e+12"
EXTRA = ("id", *FEATURES, "note")


def reader_of(content: bytes) -> TumourCsvReader:
    return TumourCsvReader(io.TextIOWrapper(io.BytesIO(content), "utf-8-sig", newline=""))


def whole(content: bytes):
    batch = reader_of(content).read(10**6)
    assert batch is not None
    return batch


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "byte order mark"])
@pytest.mark.parametrize("quoting", [0, 1], ids=["bare", "quoted"])
def test_every_form_of_csv_is_read(ending, mark, quoting):
    batch = whole(mark + csv_of(ROWS.tolist(), lineterminator=ending, quoting=quoting))
    assert (batch.values == ROWS).all()
    assert batch.lines == list(range(2, 571))
    assert (batch.mistakes, batch.rejected) == ([], 0)


@pytest.mark.parametrize(
    "rename", [str, str.title, str.upper, lambda name: f" {name} ", lambda name: name.replace("_", " ")]
)
def test_columns_may_be_named_and_ordered_freely(rename):
    order = np.random.default_rng(0).permutation(30)
    reader = reader_of(csv_of(ROWS[:, order].tolist(), [rename(FEATURES[place]) for place in order]))
    batch = reader.read(1000)
    assert (batch.values == ROWS).all()
    assert [reader.column_of(feature) for feature in FEATURES] == [rename(feature) for feature in FEATURES]


def test_a_file_is_read_in_batches():
    reader = reader_of(csv_of(ROWS.tolist()))
    sizes = []
    while batch := reader.read(200):
        sizes.append(batch.count)
    assert sizes == [200, 200, 169]


def test_batches_of_long_rows_are_short():
    long = "x" * 60_000
    reader = reader_of(csv_of([[number, *GOOD, long] for number in range(100)], EXTRA))
    batches = iter(lambda: reader.read(1000), None)
    lines = [batch.lines for batch in batches]
    assert list(chain.from_iterable(lines)) == list(range(2, 102))
    assert max(map(len, lines)) * len(long) <= MAX_BATCH + MAX_ROW


def test_other_columns_may_have_the_same_name_or_none():
    columns = ["note", *FEATURES, "note", ""]
    batch = whole(csv_of([["a", *GOOD, "b", "c"]], columns))
    assert batch.cells == [["a", *GOOD, "b", "c"]]


def test_blank_lines_are_skipped_but_counted():
    text = csv_of([GOOD]).replace(b"\r\n", b"\n\n\n")
    assert whole(b"\n" + text).lines == [5]


NO_NUMBERS = ["", " ", "abc", "1_000", "17,99", "0x10", "=1+1", "\0", "1 2"]
OUT_OF_RANGE = ["nan", "NaN", "inf", "-inf", "1e13", "1e400", "-0.1"]


@pytest.mark.parametrize("cell", NO_NUMBERS + OUT_OF_RANGE)
@pytest.mark.parametrize("place", [0, 7, 29])
def test_a_bad_cell_is_reported_by_line_and_column(cell, place):
    bad = [*GOOD]
    bad[place] = cell
    batch = whole(csv_of([GOOD, bad, GOOD]))
    assert batch.mistakes == [Mistake(3, FEATURES[place], NUMBER)]
    assert (batch.lines, batch.rejected, batch.count) == ([2, 4], 1, 3)


@pytest.mark.parametrize("cell", ["0", " 17.99 ", "1e12", "1E2", "+5", ".5", "5.", "-0"])
def test_numbers_may_be_written_in_different_ways(cell):
    assert whole(csv_of([[*GOOD[:10], cell, *GOOD[11:]]])).values[0, 10] == float(cell)


def test_every_bad_cell_of_a_row_is_reported():
    batch = whole(csv_of([["x", *GOOD[1:29], "y"]]))
    assert [mistake.column for mistake in batch.mistakes] == [FEATURES[0], FEATURES[29]]
    assert (batch.rejected, batch.values.shape) == (1, (0, 30))


def test_a_value_that_cannot_be_is_reported_and_compared_with_no_bad_cell():
    rows = ROWS[:4].astype(str).tolist()
    rows[1][20] = "0.5"
    rows[2][20] = rows[2][22] = "0"
    rows[3][0] = "inf"
    batch = whole(csv_of(rows))
    assert batch.mistakes == [
        Mistake(5, "mean_radius", NUMBER),
        Mistake(3, "worst_radius", "worst_radius must not be smaller than mean_radius"),
        Mistake(4, "worst_radius", "worst_radius must not be smaller than mean_radius"),
        Mistake(4, "worst_perimeter", "worst_perimeter must not be smaller than mean_perimeter"),
    ]
    assert (batch.lines, batch.rejected) == ([2], 3)
    assert (batch.values == ROWS[:1]).all()


@pytest.mark.parametrize("row", [GOOD[1:], [*GOOD, "more"], ["x"]])
def test_a_row_of_another_length_is_reported(row):
    [mistake] = whole(csv_of([row])).mistakes
    assert mistake == Mistake(2, "", f"it has {len(row)} cells instead of 30")


LONG = b"7" * 10_000_000
UNREADABLE = {
    "a very long line": LONG,
    "a very long cell": b'"' + LONG + b'"',
    "very many cells": b"7," * 5_000_000,
    "text after a quote": b'"7"7',
}


@pytest.mark.parametrize("bad", UNREADABLE.values(), ids=UNREADABLE)
def test_a_row_that_cannot_be_read_is_reported_and_the_next_is_read(bad):
    first, *_ = csv_of([GOOD]).splitlines()
    good = ",".join(GOOD).encode()
    batch = whole(b"\r\n".join([first, good, bad, good]))
    assert batch.lines == [2, 4]
    assert [mistake.line for mistake in batch.mistakes] == [3]
    assert "it cannot be read" in batch.mistakes[0].error


def test_a_quoted_cell_that_never_ends_costs_no_more_than_a_row():
    good = ",".join(GOOD) + "\r\n"
    batch = whole((",".join(FEATURES) + "\r\n" + good + '"' + good * 2000).encode())
    assert batch.mistakes[0].line == 3
    assert "at most" in batch.mistakes[0].error
    first, *others = batch.lines
    assert first == 2
    assert others == list(range(2003 - len(others), 2003))
    assert 2000 - len(others) <= MAX_ROW / len(good) + 1


def test_a_quoted_cell_that_ends_with_the_file_is_reported():
    batch = whole(csv_of([GOOD]) + b'"7')
    assert (batch.lines, batch.mistakes[0].line) == ([2], 3)


def test_line_numbers_count_the_lines_within_quoted_cells():
    rows = [["1", *GOOD, "two\nlines"], ["2", *GOOD, "three\r\n\r\nlines"], ["3", *GOOD[1:], "", "x"], ["4", *GOOD, ""]]
    batch = whole(csv_of(rows, EXTRA))
    assert batch.lines == [2, 4, 8]
    assert [mistake.line for mistake in batch.mistakes] == [7]


@given(st.lists(st.tuples(st.booleans(), st.text("ab\n\"',;", max_size=6)), max_size=30))
def test_each_mistake_is_on_the_line_that_it_names(rows):
    content = csv_of([["7", *(GOOD if good else ["?", *GOOD[1:]]), note] for good, note in rows], EXTRA)
    lines = content.decode().replace("\r\n", "\n").split("\n")
    batch = reader_of(content).read(100)
    if batch is None:
        assert rows == []
        return
    assert [note for good, note in rows if good] == [cells[-1] for cells in batch.cells]
    assert len(batch.mistakes) == batch.rejected == sum(not good for good, _ in rows)
    assert all(lines[mistake.line - 1].startswith("7,?,") for mistake in batch.mistakes)
    assert all(lines[line - 1].startswith(f"7,{GOOD[0]},") for line in batch.lines)


def without(feature: str) -> list[str]:
    return [name for name in FEATURES if name != feature]


UNUSABLE = {
    "empty": (b"", "the file is empty"),
    "only a byte order mark": (b"\xef\xbb\xbf", "the file is empty"),
    "only blank lines": (b"\n\r\n\n", "the file is empty"),
    "semicolons": (csv_of([], delimiter=";"), "separated by commas, not by semicolons"),
    "tabs": (csv_of([], delimiter="\t"), "separated by commas, not by tabs"),
    "no names": (csv_of([GOOD], GOOD), "lacks mean_radius, mean_texture, mean_perimeter and 27 more"),
    "a missing feature": (csv_of([], without("worst_area")), "it lacks worst_area"),
    "a feature twice": (csv_of([], [*FEATURES, "Mean radius"]), "several columns mean_radius"),
    "a column of the result": (csv_of([], [*FEATURES, "label"]), "column label of its own"),
    "a quote that does not end": (b'"' + csv_of([]), "the first line must name the columns; it cannot be read"),
    "a very long line": (LONG, "at most 65536 characters"),
    "a web page": (b"<!doctype html>\n<html></html>", "it lacks mean_radius"),
    "no text": (bytes(100_000), "at most 65536 characters"),
}


@pytest.mark.parametrize(("content", "reason"), UNUSABLE.values(), ids=UNUSABLE)
def test_a_file_whose_columns_cannot_be_used_is_refused(content, reason):
    with pytest.raises(InvalidFileError, match=reason):
        reader_of(content)


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16", "utf-32"])
@pytest.mark.parametrize("size", [1, 7, 10**6])
def test_another_encoding_is_refused_with_its_line(encoding, size):
    text = csv_of([["1", *GOOD, "x"], ["2", *GOOD, "é€"[: 1 + (encoding != "latin-1")]]], EXTRA).decode()
    content = text.encode(encoding)
    check = Utf8Check()
    line = 3 if encoding in ("latin-1", "cp1252") else 1
    pieces = [content[start : start + size] for start in range(0, len(content), size)]
    with pytest.raises(InvalidFileError, match=f"line {line} is not UTF-8"):
        deque(map(check.feed, pieces), maxlen=0)


def test_a_character_that_is_cut_off_is_refused():
    check = Utf8Check()
    check.feed("a\né".encode()[:-1])
    with pytest.raises(InvalidFileError, match="line 2"):
        check.feed(b"", final=True)


def test_characters_may_be_cut_by_pieces():
    check = Utf8Check()
    for byte in "a\né€😀".encode():
        check.feed(bytes([byte]))
    check.feed(b"", final=True)


def written(content: bytes, probabilities) -> list[str]:
    reader, result, errors = reader_of(content), io.StringIO(), io.StringIO()
    writer = PredictionCsvWriter(result, errors, reader.columns)
    while batch := reader.read(100):
        scores = np.tile(probabilities, (len(batch.values), 1))
        writer.write(batch, Scores(scores, ("no", "yes"), "1.2") if len(scores) else None)
    return [result.getvalue(), errors.getvalue()]


def test_the_result_has_the_cells_as_they_were_and_the_predictions():
    cells = ["007", *(f"{value}0" for value in GOOD), '=cmd|"/c calc"!A1, "q"\nx']
    result, errors = written(csv_of([cells], EXTRA), [0.25, 0.75])
    assert result == csv_of([[*cells, 1, "yes", 0.75, "1.2"]], [*EXTRA, *ADDED]).decode()
    assert errors == "line,column,error\r\n"


def test_mistakes_are_listed_in_the_order_of_the_lines():
    bad = ["x", *GOOD[1:]]
    _, errors = written(csv_of([bad, GOOD, ["y"], bad] * 40), [0.25, 0.75])
    numbers = [int(line.partition(",")[0]) for line in errors.splitlines()[1:]]
    assert len(numbers) == 120
    assert all(before < after for before, after in pairwise(numbers))


def test_a_limited_number_of_mistakes_is_listed():
    _, errors = written(csv_of([["x"]] * (MAX_ERRORS + 150)), [0.25, 0.75])
    assert len(errors.splitlines()) == MAX_ERRORS + 1


def test_a_row_that_the_model_refuses_moves_to_the_mistakes():
    batch = whole(csv_of(ROWS[:5].tolist()))
    batch.reject(2, "worst radius", "too small")
    assert batch.mistakes == [Mistake(4, "worst radius", "too small")]
    assert (batch.lines, batch.rejected, batch.count) == ([2, 3, 5, 6], 1, 5)
    assert (batch.values == ROWS[[0, 1, 3, 4]]).all()
    assert len(batch.cells) == 4
