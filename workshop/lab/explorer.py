"""An experiment with sliders."""

from collections.abc import Mapping

import ipywidgets
from matplotlib.figure import Figure

from workshop.lab.load_generator import load
from workshop.lab.pictures import timeline


def explore(url: str, patterns: Mapping[str, str]) -> ipywidgets.Widget:
    """Sliders for the number of requests and the delay, a menu of patterns, and the resulting timeline.

    Args:
        url: the address of an app whose endpoints take ``?seconds=``.
        patterns: the path of each pattern, by name.
    """

    def draw(pattern: str, requests: int, delay: int) -> Figure:
        return timeline({pattern: load(f"{url}{patterns[pattern]}?seconds={delay / 1000}", requests)})

    return ipywidgets.interactive(
        draw,
        {"auto_display": True},  # show the figure that `draw` returns
        pattern=ipywidgets.Dropdown(options=list(patterns)),
        requests=ipywidgets.IntSlider(10, 1, 100, continuous_update=False),
        delay=ipywidgets.IntSlider(100, 10, 500, 10, description="delay (ms)", continuous_update=False),
    )
