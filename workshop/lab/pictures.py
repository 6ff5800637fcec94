"""The pictures of the lessons: each shows its point without the text around it."""

from collections.abc import Iterable, Mapping, Sequence

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from workshop.lab.load_generator import Records

WORKING = "#2563eb"
WAITING = "#cbd5e1"
FAILED = "#dc2626"
_INK = "#334155"


def timeline(loads: Mapping[str, Records]) -> Figure:
    """One panel per load: a bar per request, from its sending to its answer, all on one clock.

    Where the application reports its own time, the bar is split: grey while the request waits to get in, blue while
    it is inside the application.
    """
    tallest = max(len(records) for records in loads.values())
    longest = max(records.total_ms for records in loads.values())
    figure, axes = plt.subplots(
        len(loads),
        1,
        sharex=True,
        squeeze=False,
        figsize=(9, 0.6 + len(loads) * (0.6 + 0.11 * min(tallest, 40))),
        layout="constrained",
    )
    for axis, (name, records) in zip(axes[:, 0], loads.items(), strict=True):
        _draw(axis, records)
        axis.set_title(f"{name}: {records.total_ms:,.0f} ms", loc="left", fontsize=11, color=_INK)
    axes[-1, 0].set_xlim(0, 1.02 * longest)
    axes[-1, 0].set_xlabel("milliseconds since the load began")
    if any(record.worked_s is not None for records in loads.values() for record in records):
        _legend(figure)
    plt.close(figure)  # shown once: by the cell that ends with it
    return figure


def _draw(axis: Axes, records: Records) -> None:
    for row, record in enumerate(records):
        start, end = 1000 * record.start, 1000 * record.end
        answered = record.status is not None and record.status < 400 and not record.error
        if record.worked_s is None or not answered:
            axis.barh(row, end - start, left=start, color=WORKING if answered else FAILED, height=0.8)
        else:
            worked = min(1000 * record.worked_s, end - start)
            axis.barh(row, end - start - worked, left=start, color=WAITING, height=0.8)
            axis.barh(row, worked, left=end - worked, color=WORKING, height=0.8)
    axis.invert_yaxis()
    axis.set_yticks([])
    axis.set_ylabel(f"{len(records)} requests", color=_INK)
    _plain(axis)


def curve(
    points: Mapping[str, Mapping[float, float]],
    *,
    x: str,
    y: str,
    title: str = "",
    steps: Sequence[float] = (),
    notes: Iterable[tuple[float, float, str]] = (),
    bottom: float = 0.0,
) -> Figure:
    """A line per name through its points, with dashed vertical lines at ``steps``, and ``notes``: (x, y, text).

    The y-axis starts at ``bottom``.
    """
    figure, axis = plt.subplots(figsize=(8, 3.4), layout="constrained")
    for step in steps:
        axis.axvline(step, color=FAILED, linestyle="--", linewidth=1)
        axis.annotate(f"{step:g}", (step, 1), xycoords=("data", "axes fraction"), color=FAILED, ha="right", va="top")
    for name, line in points.items():
        axis.plot(list(line), list(line.values()), marker="o", label=name)
    for across, up, text in notes:
        axis.plot([across], [up], "o", color=_INK, zorder=3)
        axis.annotate(text, (across, up), xytext=(-6, 6), textcoords="offset points", color=_INK, ha="right")
    axis.set(xlabel=x, ylabel=y)
    if all(float(across).is_integer() for line in points.values() for across in line):
        axis.locator_params(axis="x", integer=True)
    axis.set_title(title, loc="left", fontsize=11, color=_INK)
    axis.set_ylim(bottom=bottom)
    if len(points) > 1:
        axis.legend(frameon=False)
    _plain(axis)
    plt.close(figure)  # shown once: by the cell that ends with it
    return figure


def marks(rows: Mapping[str, Iterable[float]], *, x: str = "milliseconds", title: str = "") -> Figure:
    """A row per name, with a mark at each of its values: when the pieces of an answer came, say."""
    figure, axis = plt.subplots(figsize=(9, 0.9 + 0.42 * len(rows)), layout="constrained")
    for row, values in enumerate(rows.values()):
        axis.axhline(row, color=WAITING, linewidth=1, zorder=0)
        places = list(values)
        axis.plot(places, [row] * len(places), "|", color=WORKING, markersize=16, markeredgewidth=1.6)
    axis.set_yticks(range(len(rows)), list(rows))
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.set_xlim(left=0)
    axis.set_xlabel(x)
    axis.set_title(title, loc="left", fontsize=11, color=_INK)
    _plain(axis)
    plt.close(figure)  # shown once: by the cell that ends with it
    return figure


def waterfall(rows: Mapping[str, tuple[float, float]], *, x: str = "milliseconds", title: str = "") -> Figure:
    """A row per name, with a bar from its start to its end: the spans of a trace, say."""
    figure, axis = plt.subplots(figsize=(9, 0.9 + 0.42 * len(rows)), layout="constrained")
    for row, (start, end) in enumerate(rows.values()):
        axis.barh(row, end - start, left=start, color=WORKING, height=0.6)
    axis.set_yticks(range(len(rows)), list(rows))
    axis.invert_yaxis()
    axis.set_xlim(left=0)
    axis.set_xlabel(x)
    axis.set_title(title, loc="left", fontsize=11, color=_INK)
    _plain(axis)
    plt.close(figure)  # shown once: by the cell that ends with it
    return figure


def columns(panels: Mapping[str, Iterable[tuple[str, float]]], *, y: str) -> Figure:
    """One panel per name: a narrow column for each (label, value), in their order, all on one scale."""
    drawn = {name: list(items) for name, items in panels.items()}
    figure, axes = plt.subplots(
        len(drawn), 1, sharey=True, squeeze=False, figsize=(9, 2.4 * len(drawn)), layout="constrained"
    )
    for axis, (name, items) in zip(axes[:, 0], drawn.items(), strict=True):
        axis.bar(range(len(items)), [value for _, value in items], color=WORKING)
        axis.set_xticks(range(len(items)), [label for label, _ in items], rotation=90, fontsize=8)
        axis.set_xlim(-0.6, max(map(len, drawn.values())) - 0.4)
        axis.set_ylabel(y)
        axis.set_title(name, loc="left", fontsize=11, color=_INK)
        _plain(axis)
    plt.close(figure)  # shown once: by the cell that ends with it
    return figure


def bars(groups: Mapping[str, Mapping[str, float]], *, y: str, title: str = "") -> Figure:
    """Groups of bars side by side, each bar labelled with its value."""
    figure, axis = plt.subplots(figsize=(8, 3.4), layout="constrained")
    names = list(next(iter(groups.values())))
    width = 0.8 / len(names)
    for index, name in enumerate(names):
        places = [place + (index - (len(names) - 1) / 2) * width for place in range(len(groups))]
        drawn = axis.bar(places, [group[name] for group in groups.values()], width * 0.92, label=name)
        axis.bar_label(drawn, fmt="{:,.0f}", fontsize=9, color=_INK)
    axis.set_xticks(range(len(groups)), list(groups))
    axis.set_ylabel(y)
    axis.set_title(title, loc="left", fontsize=11, color=_INK)
    if len(names) > 1:
        axis.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))  # beside the bars, never over them
    _plain(axis)
    plt.close(figure)  # shown once: by the cell that ends with it
    return figure


def _plain(axis: Axes) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(colors=_INK)


def _legend(figure: Figure) -> None:
    handles = [Patch(color=color) for color in (WAITING, WORKING)]
    figure.legend(
        handles, ["waits for the application", "inside the application"], loc="upper right", ncols=2, frameon=False
    )
