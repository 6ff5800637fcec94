"""Tables of measurements, from JSON or CSV, as rows for the classifier."""

import csv
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from fastapi.exceptions import RequestValidationError

from workshop.api.errors import MAX_DETAILS, mistakes
from workshop.contracts.classifier import FloatMatrix
from workshop.contracts.errors import InvalidInputError
from workshop.contracts.tumours import FEATURES

Row = tuple[str, Sequence[Any]]
"""Where a row is, such as "line 2", and its cells."""

_MISSING = ("missing", "Field required")
_REPEATED = ("repeated", "There should be one such column")


@dataclass(frozen=True, slots=True)
class Table:
    """Measurements.

    Attributes:
        rows: shape (n, 30), n ≥ 1, columns in the order of ``FEATURES``.
        places: where each row was: "row 0", or "line 2" of a CSV text.
    """

    rows: FloatMatrix
    places: Sequence[str]

    def located(self, error: InvalidInputError) -> RequestValidationError:
        """The classifier's error, with the place of the row."""
        return mistakes((f"{self.places[error.row]}: {error.field}", "impossible_value", error.message))


def from_csv(lines: Iterable[str]) -> Table:
    """Read CSV text whose first line has the names of the columns.

    Raises:
        RequestValidationError: it is not CSV, or see ``from_rows``.
    """
    reader = csv.reader(lines, strict=True)
    try:
        header = next(filter(None, reader), [])
        return from_rows(header, ((f"line {reader.line_num}", cells) for cells in reader if cells))
    except csv.Error as error:
        raise mistakes((f"line {reader.line_num}", "csv", str(error))) from None


def from_records(records: Iterable[Mapping[str, Any]]) -> Table:
    """Read one object per row, with the cells by name. Raises RequestValidationError, see ``from_rows``."""

    def rows() -> Iterator[Row]:
        for place, record in _numbered(records):
            if missing := [name for name in FEATURES if name not in record]:
                raise mistakes(*((f"{place}: {name}", *_MISSING) for name in missing))
            yield place, [record[name] for name in FEATURES]

    return from_rows(FEATURES, rows())


def from_lists(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    """Read one list of cells per row. Raises RequestValidationError, see ``from_rows``."""
    return from_rows(columns, _numbered(rows))


def from_columns(columns: Mapping[str, Any]) -> Table:
    """Read one list of cells per column, or a single row of cells by name.

    Raises:
        RequestValidationError: the columns are not equally long, or see ``from_rows``.
    """
    lists = [column for column in columns.values() if isinstance(column, list)]
    if not lists:
        return from_records([columns])
    if len(lists) < len(columns) or len(set(map(len, lists))) > 1:
        raise mistakes(("body", "column_length", "the columns must be lists of the same length"))
    return from_lists(list(columns), zip(*lists, strict=True))


def from_rows(columns: Sequence[str], rows: Iterable[Row]) -> Table:
    """Find the features in rows of cells. Texts that are numbers count as numbers, as in CSV.

    Args:
        columns: the names of a row's cells, in any order. Others than the features are ignored.
        rows: read once, one by one.

    Raises:
        RequestValidationError: a feature is missing or appears twice, a row has not one cell for each column, a cell is
            not a number, or there is no row.
    """
    times = Counter(columns)
    if wrong := [name for name in FEATURES if times[name] != 1]:
        raise mistakes(*((name, *(_REPEATED if times[name] else _MISSING)) for name in wrong))
    indices = [columns.index(name) for name in FEATURES]
    numbers, places = [], []
    found: list[tuple[str, str, str]] = []
    for place, cells in rows:
        if len(cells) != len(columns):
            found.append((place, "row_length", f"There should be {len(columns)} values, not {len(cells)}"))
        else:
            try:
                numbers.append([_number(cells[i]) for i in indices])
            except (TypeError, ValueError, OverflowError):
                wrong = [name for name, i in zip(FEATURES, indices, strict=True) if not _is_number(cells[i])]
                found += ((f"{place}: {name}", "float_parsing", "Input should be a valid number") for name in wrong)
            places.append(place)
        if len(found) >= MAX_DETAILS:
            break
    if found:
        raise mistakes(*found)
    if not numbers:
        raise mistakes(("body", "too_short", "There should be at least one row"))
    return Table(np.array(numbers, dtype=np.float64), places)


def _numbered(items: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    return ((f"row {number}", item) for number, item in enumerate(items))


def _number(cell: Any) -> float:
    """The cell as a number. Raises TypeError, ValueError or OverflowError if it is not one."""
    if isinstance(cell, str) and "_" in cell:  # Python accepts 1_000
        raise ValueError(cell)
    return float(cell)


def _is_number(cell: Any) -> bool:
    try:
        _number(cell)
    except (TypeError, ValueError, OverflowError):
        return False
    return True
