"""A learner's predictions, printed beside what was measured."""

from collections.abc import Mapping


def compare(guess: object, measured: object, unit: str = "") -> None:
    """Print each prediction beside the measured value: two mappings with the same keys, or two single values.

    A guess that is still ``...`` is printed as "no prediction". Floats are rounded. ``unit`` follows what was measured.
    A unit such as "lines" loses its last letter after a 1.
    """
    if not isinstance(measured, Mapping):
        guess, measured = {"": guess}, {"": measured}
    guesses = guess if isinstance(guess, Mapping) else {}
    width = max((len(str(name)) for name in measured), default=0)
    for name, value in measured.items():
        guessed = guesses.get(name, ...)
        said = "no prediction" if guessed is ... else f"you said {_rounded(guessed)}"
        counted = unit[:-1] if value == 1 and isinstance(value, int) and unit != "ms" else unit
        line = f"{name!s:{width}}  {said}, it was {_rounded(value)} {counted}"
        print(line.strip())


def _rounded(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 10 else f"{value:.1f}"
