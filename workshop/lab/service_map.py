"""The map of the service at the top of each lesson: what is built, what this lesson builds, what comes later."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Literal

State = Literal["built", "lit", "later"]

LAST_LESSON = 16


@dataclass(frozen=True)
class Part:
    """A box of the map: its name, the lesson that builds it, and its place in pixels."""

    name: str
    lesson: int
    x: int
    y: int
    width: int = 100
    height: int = 40


PARTS = [
    # The path of a request, left to right. It forks where a model is either in the process or behind a handle.
    Part("client", 0, 16, 84, width=84),
    Part("HTTP server", 1, 136, 84),
    Part("middleware", 7, 258, 84),
    Part("routers", 4, 380, 84),
    Part("contracts", 2, 516, 84),
    Part("in-process", 3, 652, 54),
    Part("handle", 9, 652, 114),
    Part("deployment", 9, 788, 114),
    Part("model", 3, 924, 54, height=100),
    # What hangs on it.
    Part("streaming", 5, 136, 174, height=30),
    Part("WebSockets", 6, 136, 210, height=30),
    Part("logs, metrics", 7, 258, 174, height=30),
    Part("auth, limits", 8, 258, 210, height=30),
    Part("dependencies", 3, 380, 174, height=30),
    Part("errors", 4, 380, 210, height=30),
    Part("two runtimes", 10, 652, 174, height=30),
    Part("replicas", 11, 788, 174, height=30),
    Part("GPU", 12, 788, 210, height=30),
    Part("registry", 13, 924, 174, height=30),
    Part("cascade, RAG", 14, 924, 210, height=30),
]

# Who owns what: the name of the package over the boxes of one team.
LANES = [("api", 126, 364), ("contracts", 506, 120), ("integration", 642, 120), ("deployments", 778, 120)]
LANES += [("models", 914, 120)]

ARROWS = [
    "M100 104H132",
    "M236 104H254",
    "M358 104H376",
    "M480 104H512",
    "M616 104H632V74H648",
    "M632 104V134H648",
    "M752 134H784",
    "M888 134H920",
    "M752 74H920",
]

ACCENT = "#0b7d73"
_BOXES: dict[State, str] = {
    "built": 'fill="currentColor" fill-opacity=".09" stroke="currentColor" stroke-opacity=".75" stroke-width="1.4"',
    "lit": f'fill="{ACCENT}" stroke="{ACCENT}" stroke-width="1.4"',
    "later": 'fill="none" stroke="currentColor" stroke-opacity=".4" stroke-dasharray="4 4"',
}
_TEXTS: dict[State, str] = {
    "built": 'fill="currentColor"',
    "lit": 'fill="#fff"',
    "later": 'fill="currentColor" fill-opacity=".62"',
}


@dataclass(frozen=True)
class ServiceMap:
    """The map for one lesson. A notebook shows it as a drawing."""

    lesson: int

    def state(self, part: Part) -> State:
        if part.lesson == self.lesson:
            return "lit"
        return "built" if part.lesson < self.lesson else "later"

    def _names(self, state: State) -> str:
        return ", ".join(part.name for part in PARTS if self.state(part) == state) or "nothing"

    def __repr__(self) -> str:
        return f"built: {self._names('built')}\nthis lesson: {self._names('lit')}\nlater: {self._names('later')}"

    def _repr_html_(self) -> str:
        lanes = "".join(
            f'<rect x="{x}" y="26" width="{width}" height="226" rx="8" fill="currentColor" fill-opacity=".045"/>'
            f'<text x="{x + width / 2}" y="43" font-size="11" fill="currentColor" fill-opacity=".65" '
            f'font-family="ui-monospace,Menlo,Consolas,monospace">{name}/</text>'
            for name, x, width in LANES
        )
        arrows = "".join(f'<path d="{path}" marker-end="url(#map-arrow)"/>' for path in ARROWS)
        boxes = "".join(self._box(part) for part in PARTS)
        label = escape(f"Map of the service. This lesson: {self._names('lit')}.")
        return f"""<div style="max-width:1050px">
<svg viewBox="0 20 1050 264" width="100%" role="img" aria-label="{label}" text-anchor="middle"
 font-family="system-ui,-apple-system,Segoe UI,Roboto,Helvetica,Arial,sans-serif" font-size="13">
<defs><marker id="map-arrow" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="7" markerHeight="7" orient="auto">
<path d="M0 0L8 4L0 8z" fill="currentColor" fill-opacity=".6"/></marker></defs>
{lanes}<g fill="none" stroke="currentColor" stroke-opacity=".6" stroke-width="1.3">{arrows}</g>{boxes}
{self._legend()}</svg></div>"""

    def _box(self, part: Part) -> str:
        return _box(part, self.state(part)) + (
            f'<text x="{part.x + part.width / 2}" y="{part.y + part.height / 2}" dy=".35em" '
            f"{_TEXTS[self.state(part)]}>{escape(part.name)}</text>"
        )

    def _legend(self) -> str:
        words: list[tuple[State, str]] = [("built", "built so far"), ("lit", "this lesson"), ("later", "later")]
        return "".join(
            _box(Part(text, 0, x, 266, width=22, height=12), state)
            + f'<text x="{x + 30}" y="276" font-size="11" text-anchor="start" fill="currentColor" '
            f'fill-opacity=".75">{text}</text>'
            for x, (state, text) in zip((136, 246, 350), words, strict=True)
        )


def _box(part: Part, state: State) -> str:
    place = f'x="{part.x}" y="{part.y}" width="{part.width}" height="{part.height}"'
    return f'<rect {place} rx="5" {_BOXES[state]}/>'


def service_map(lesson: str) -> ServiceMap:
    """The map for lesson "NN". Raises LookupError if there is no such lesson."""
    if lesson not in {f"{number:02}" for number in range(LAST_LESSON + 1)}:
        raise LookupError(f'There is no lesson {lesson!r}; the lessons are "00" to "{LAST_LESSON}".')
    return ServiceMap(int(lesson))
