"""Measurements as CSV (RFC 4180): files of any length, read and written in batches, with bad rows by line number.

The first line names the columns: the 30 features in any order, and any others, which are passed through.
"""

import codecs
import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple, TextIO

import numpy as np

from workshop.contracts.classifier import FloatMatrix, Scores
from workshop.contracts.errors import InvalidFileError, InvalidInputError
from workshop.contracts.tumours import FEATURES, LARGEST_VALUE
from workshop.models.tumours import impossible_values

ADDED = ("prediction", "label", "confidence", "model_version")
"""The columns that the result has on top."""
MAX_ROW = 2**16
"""The most characters in a row. Real rows have a few hundred."""
MAX_BATCH = 2**20
"""About how many characters are in memory at a time, however long the rows are."""
MAX_ERRORS = 10_000
"""The most mistakes that are listed, so that a list is never much longer than its file."""


class Utf8Check:
    """Checks while a file arrives whether it is UTF-8."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._line = 1

    def feed(self, piece: bytes, *, final: bool = False) -> None:
        """Check the next piece. Raises InvalidFileError."""
        try:
            self._line += self._decoder.decode(piece, final).count("\n")
        except UnicodeDecodeError as error:
            line = self._line + error.object[: error.start].count(b"\n")
            raise InvalidFileError(f"line {line} is not UTF-8; save the file as UTF-8") from None


class Mistake(NamedTuple):
    """What is wrong with a row. ``column`` is "" if it concerns the row as a whole."""

    line: int
    column: str
    error: str


@dataclass
class Batch:
    """Some rows of a file.

    Attributes:
        lines: the line on which each good row begins, from 1.
        cells: the cells of each good row.
        values: the measurements of each good row, shape (n, 30), columns in the order of ``FEATURES``.
        mistakes: what is wrong with the other rows.
        rejected: how many others there are.
    """

    lines: list[int]
    cells: list[list[str]]
    values: FloatMatrix
    mistakes: list[Mistake]
    rejected: int

    @property
    def count(self) -> int:
        """How many rows there are, good or not."""
        return len(self.lines) + self.rejected

    def reject(self, row: int, column: str, error: str) -> None:
        """Move a row from the good ones to the others."""
        self.mistakes.append(Mistake(self.lines.pop(row), column, error))
        self.cells.pop(row)
        self.values = np.delete(self.values, row, axis=0)
        self.rejected += 1


class TumourCsvReader:
    """Reads a file of measurements.

    Args:
        file: opened with ``newline=""`` and an encoding that skips a byte order mark.

    Raises:
        InvalidFileError: the first line does not name the columns.
    """

    def __init__(self, file: TextIO) -> None:
        self._lines = _Lines(file)
        self._rows = csv.reader(self._lines, strict=True)
        self.columns = self._header()
        names = [_feature_name(column) for column in self.columns]
        _check_columns(names)
        self._places = [names.index(feature) for feature in FEATURES]
        self._column_of = {feature: self.columns[place] for feature, place in zip(FEATURES, self._places, strict=True)}

    def read(self, n: int) -> Batch | None:
        """The next ``n`` rows, or fewer if they are long, or at the end; None after it."""
        lines: list[int] = []
        cells: list[list[str]] = []
        mistakes: list[Mistake] = []
        count = 0
        end = self._lines.characters + MAX_BATCH
        for line, row in islice(self._records(), n):
            count += 1
            if isinstance(row, str):
                mistakes.append(Mistake(line, "", row))
            elif len(row) != len(self.columns):
                mistakes.append(Mistake(line, "", f"it has {len(row)} cells instead of {len(self.columns)}"))
            else:
                lines.append(line)
                cells.append(row)
            if self._lines.characters >= end:
                break
        if not count:
            return None
        values = np.array([[_number(row[place]) for place in self._places] for row in cells], dtype=np.float64)
        values = values.reshape(-1, len(FEATURES))
        out_of_range = ~((values >= 0) & (values <= LARGEST_VALUE))  # NaN too
        message = f"it must be a number from 0 to {LARGEST_VALUE:g}"
        errors = [InvalidInputError(message, row, FEATURES[place]) for row, place in np.argwhere(out_of_range).tolist()]
        values[out_of_range] = math.nan  # no other value is compared with it
        errors += impossible_values(values)
        mistakes += [Mistake(lines[error.row], self.column_of(error.field), error.message) for error in errors]
        good = np.delete(np.arange(len(lines)), [error.row for error in errors])
        return Batch(
            [lines[row] for row in good], [cells[row] for row in good], values[good], mistakes, count - len(good)
        )

    def column_of(self, feature: str) -> str:
        """What the file calls a feature."""
        return self._column_of.get(feature, feature)

    def _records(self) -> Iterator[tuple[int, list[str] | str]]:
        """Each row that is not blank: the line on which it begins, and its cells or what is wrong with it."""
        while True:
            line = self._lines.start_row()
            try:
                cells = next(self._rows)
            except StopIteration:
                return
            except csv.Error as error:
                yield line, f"it cannot be read: {error}"
            else:
                if cells:
                    yield line, cells

    def _header(self) -> list[str]:
        for _, row in self._records():
            if isinstance(row, str):
                raise InvalidFileError(f"the first line must name the columns; {row}")
            return row
        raise InvalidFileError("the file is empty")


class PredictionCsvWriter:
    """Writes the predictions of a file.

    Args:
        result: gets the good rows as they are, with their predictions.
        errors: gets the mistakes.
        columns: those of the file.
    """

    def __init__(self, result: TextIO, errors: TextIO, columns: list[str]) -> None:
        self._result = csv.writer(result)
        self._errors = csv.writer(errors)
        self._result.writerow([*columns, *ADDED])
        self._errors.writerow(Mistake._fields)
        self._room = MAX_ERRORS

    def write(self, batch: Batch, scores: Scores | None) -> None:
        """Write a batch with the scores of its good rows, or None if it has none."""
        mistakes = sorted(batch.mistakes)[: self._room]
        self._room -= len(mistakes)
        self._errors.writerows(mistakes)
        if scores is None:
            return
        best = scores.probabilities.argmax(axis=1)
        confidences = scores.probabilities.max(axis=1)
        for cells, label, confidence in zip(batch.cells, best.tolist(), confidences.tolist(), strict=True):
            self._result.writerow([*cells, label, scores.classes[label], confidence, scores.model_version])


class _Lines(Iterator[str]):
    """The lines of a file, for a CSV reader.

    Args:
        file: see ``TumourCsvReader``.

    Attributes:
        characters: how many have been read, without those of lines that are too long.
    """

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._read = 0
        self._room = MAX_ROW
        self.characters = 0

    def start_row(self) -> int:
        """Allow ``MAX_ROW`` characters until the next call. Returns the number of the next line."""
        self._room = MAX_ROW
        return self._read + 1

    def __next__(self) -> str:
        # An iterator and not a generator, which would end with the first error.
        line = self._file.readline(self._room + 1)
        if not line:
            raise StopIteration
        self._read += 1
        if len(line) > self._room:
            while line and not line.endswith("\n"):
                line = self._file.readline(MAX_ROW)
            raise csv.Error(f"a row may have at most {MAX_ROW} characters")
        self._room -= len(line)
        self.characters += len(line)
        return line


def _feature_name(column: str) -> str:
    """A column's name as in ``FEATURES``, if it is one: ``Mean radius`` is ``mean_radius``."""
    return column.strip().lower().replace(" ", "_")


def _check_columns(names: list[str]) -> None:
    missing = [feature for feature in FEATURES if feature not in names]
    if missing:
        for separator, name in {";": "semicolons", "\t": "tabs"}.items():
            if len(names) == 1 and separator in names[0]:
                raise InvalidFileError(f"the cells must be separated by commas, not by {name}")
        others = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise InvalidFileError(f"the first line must name the columns; it lacks {', '.join(missing[:3])}{others}")
    if twice := [feature for feature in FEATURES if names.count(feature) > 1]:
        raise InvalidFileError(f"the file has several columns {twice[0]}")
    if taken := [name for name in ADDED if name in names]:
        raise InvalidFileError(f"the result has a column {taken[0]} of its own; rename that of the file")


def _number(cell: str) -> float:
    """A cell's number, or NaN if it has none."""
    try:
        return math.nan if "_" in cell else float(cell)  # Python accepts 1_000
    except ValueError:
        return math.nan
