"""What `check`, `hint` and `solution` show: plain text and plain HTML, legible on light and dark pages."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from html import escape


class Outcome(StrEnum):
    RIGHT = "right"
    NOT_YET = "not yet"
    NOT_ATTEMPTED = "not attempted"
    COULD_NOT_CHECK = "could not check"
    """The learner's code stopped with an error."""
    CHECK_FAILED = "check failed"
    """The fault is in the check or the machine, not in the answer."""


_MARKS = {
    Outcome.RIGHT: ("✓", "#2a9d5c"),
    Outcome.NOT_YET: ("→", "#c8811a"),
    Outcome.NOT_ATTEMPTED: ("○", "#8a8f98"),
    Outcome.COULD_NOT_CHECK: ("✗", "#d2544f"),
    Outcome.CHECK_FAILED: ("?", "#8a8f98"),
}


@dataclass(frozen=True)
class Verdict:
    """The result of a check. `given`, `expected` and `got` are texts; an empty one is not shown."""

    exercise: str
    outcome: Outcome
    message: str = ""
    given: str = ""
    expected: str = ""
    got: str = ""
    traceback: str = ""
    printed: str = ""
    next_step: str = ""
    error: BaseException | None = field(default=None, repr=False, compare=False)

    @property
    def _facts(self) -> list[tuple[str, str]]:
        facts = [("given", self.given), ("expected", self.expected), ("got", self.got)]
        return [(name, text) for name, text in facts if text]

    def __repr__(self) -> str:
        lines = [f"{self.exercise} {self.outcome}. {self.message}".rstrip()]
        lines += [f"  {name:<9}{text}" for name, text in self._facts]
        lines += [_indent(self.traceback)] if self.traceback else []
        lines += ["  your code printed:", _indent(self.printed)] if self.printed else []
        lines += [self.next_step] if self.next_step else []
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        mark, colour = _MARKS[self.outcome]
        outcome = self.outcome.capitalize()
        parts = [f'<b style="color:{colour}">{mark} {escape(self.exercise)} {outcome}.</b> {_prose(self.message)}']
        if self._facts:
            parts.append(_rows(self._facts))
        if self.traceback:
            parts.append(_code(self.traceback))
        if self.printed:
            parts.append("<div>Your code printed:</div>" + _code(self.printed))
        if self.next_step:
            parts.append(f'<div style="opacity:.75">{_prose(self.next_step)}</div>')
        return card(colour, *parts)


@dataclass(frozen=True)
class Hint:
    """One hint. Asking again shows the next one."""

    exercise: str
    number: int
    of: int
    text: str

    def __repr__(self) -> str:
        return f"{self.exercise} hint {self.number} of {self.of}. {self.text}"

    def _repr_html_(self) -> str:
        title = f"<b>{escape(self.exercise)} hint {self.number} of {self.of}.</b>"
        return card("#4c7fd0", f"{title} {_prose(self.text)}")


@dataclass(frozen=True)
class Solution:
    """The answer's code, or how many more tries unlock it."""

    exercise: str
    code: str = ""
    tries_left: int = 0

    @property
    def _message(self) -> str:
        if self.code:
            return "One way to do it:"
        tries = "1 more try" if self.tries_left == 1 else f"{self.tries_left} more tries"
        return f"The solution opens after {tries}, or a right answer."

    def __repr__(self) -> str:
        return f"{self.exercise} solution. {self._message}\n{_indent(self.code)}".rstrip()

    def _repr_html_(self) -> str:
        parts = [f"<b>{escape(self.exercise)} solution.</b> {_prose(self._message)}"]
        if self.code:
            parts.append(_code(self.code))
        return card("#4c7fd0", *parts)


def card(colour: str, *parts: str) -> str:
    """A box with a coloured edge. The text keeps the page's own colour, so it suits any theme."""
    style = (
        f"border-left:4px solid {colour};background:rgba(128,128,128,.09);padding:.5em .9em;margin:.3em 0;"
        "line-height:1.5;border-radius:2px"
    )
    return f'<div style="{style}">{"".join(parts)}</div>'


def _rows(facts: list[tuple[str, str]]) -> str:
    name = "font:inherit;opacity:.7;padding:0 1em 0 0;text-align:left;vertical-align:top;background:transparent"
    text = "font:inherit;text-align:left;white-space:pre-wrap;overflow-wrap:anywhere;background:transparent"
    rows = "".join(
        f'<tr style="background:transparent"><td style="{name}">{escape(label)}</td>'
        f'<td style="{text}"><code style="background:transparent;color:inherit">{escape(value)}</code></td></tr>'
        for label, value in facts
    )
    return f'<table style="margin:.4em 0 0;border:0;border-collapse:collapse;color:inherit">{rows}</table>'


def _code(text: str) -> str:
    style = "margin:.4em 0 0;padding:0;background:transparent;color:inherit;white-space:pre-wrap"
    return f'<pre style="{style}">{escape(text)}</pre>'


def _prose(text: str) -> str:
    return re.sub(r"`([^`]+)`", r'<code style="background:transparent;color:inherit">\1</code>', escape(text))


def _indent(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())
