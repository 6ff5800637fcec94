"""What the pictures draw, read back from the figure."""

import pytest
from matplotlib.colors import to_hex

from workshop.lab import bars, columns, curve, marks, timeline, waterfall
from workshop.lab.load_generator import Records, RequestRecord
from workshop.lab.pictures import FAILED, WAITING, WORKING


def record(number=0, start=0.0, end=0.1, status=200, worked_s=None, error=""):
    return RequestRecord(number, start, end, status, worked_s, error)


def spans(axis):
    """(left, width) in milliseconds of each bar, by row."""
    return [(round(bar.get_x(), 3), round(bar.get_width(), 3)) for bar in axis.patches]


def colours(figure):
    return {to_hex(bar.get_facecolor()) for axis in figure.axes for bar in axis.patches}


def test_a_bar_reaches_from_sending_to_answer():
    figure = timeline({"a": Records([record(0, 0.0, 0.1), record(1, 0.02, 0.3)])})
    assert spans(figure.axes[0]) == [(0, 100), (20, 280)]
    assert figure.axes[0].get_title(loc="left") == "a: 300 ms"


def test_the_bar_is_split_where_the_application_reports_its_time():
    figure = timeline({"a": Records([record(0, 0.0, 0.5, worked_s=0.1)])})
    assert spans(figure.axes[0]) == [(0, 400), (400, 100)]
    assert colours(figure) == {WAITING, WORKING}
    assert figure.legends


@pytest.mark.parametrize(
    "failed", [record(status=500), record(status=None), record(status=404, worked_s=0.1), record(error="ReadError")]
)
def test_a_failed_request_is_red(failed):
    assert colours(timeline({"a": Records([failed])})) == {FAILED}


def test_all_panels_share_one_clock():
    figure = timeline({"fast": Records([record(end=0.1)]), "slow": Records([record(end=1.0)])})
    assert figure.axes[0].get_xlim() == figure.axes[1].get_xlim()


def test_a_curve_goes_through_its_points():
    figure = curve({"a": {1: 10.0, 2: 30.0}}, x="users", y="ms", steps=[40])
    line = next(line for line in figure.axes[0].lines if line.get_label() == "a")
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([1, 2], [10, 30])


def test_whole_numbers_have_whole_ticks():
    axis = curve({"a": {1: 10.0, 2: 30.0}}, x="users", y="ms").axes[0]
    assert all(float(tick).is_integer() for tick in axis.get_xticks())


def test_a_curve_has_notes_beside_points():
    axis = curve({"a": {1: 10.0, 2: 30.0}}, x="users", y="ms", notes=[(2, 30.0, "best")], bottom=5).axes[0]
    (note,) = axis.texts
    assert axis.get_ylim()[0] == 5
    assert (note.get_text(), note.xy) == ("best", (2, 30.0))


def test_a_panel_has_a_column_for_each_value():
    figure = columns({"sure": [("a", 1.0), ("b", 0.9)], "unsure": iter([("a", 0.2)])}, y="probability")
    heights = [[column.get_height() for column in axis.patches] for axis in figure.axes]
    labels = [[label.get_text() for label in axis.get_xticklabels()] for axis in figure.axes]
    assert (heights, labels) == ([[1.0, 0.9], [0.2]], [["a", "b"], ["a"]])
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()


def test_bars_carry_their_values():
    figure = bars({"x": {"wait": 12.0, "burn": 34.0}, "y": {"wait": 56.0, "burn": 78.0}}, y="ms")
    assert {text.get_text() for text in figure.axes[0].texts} == {"12", "34", "56", "78"}


def test_a_row_has_a_mark_at_each_value():
    axis = marks({"whole": [100.0], "in pieces": iter([10.0, 50.0])}).axes[0]
    drawn = [(list(line.get_xdata()), set(line.get_ydata())) for line in axis.lines if line.get_marker() == "|"]
    assert drawn == [([100.0], {0}), ([10.0, 50.0], {1})]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["whole", "in pieces"]


def test_waterfall_has_a_bar_from_each_start_to_its_end():
    figure = waterfall({"GET /traced": (0, 40), "GET /draft": (5, 15)}, title="One trace")
    [axis] = figure.axes
    assert [(bar.get_x(), bar.get_width()) for bar in axis.patches] == [(0, 40), (5, 10)]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["GET /traced", "GET /draft"]
    assert axis.yaxis_inverted()
