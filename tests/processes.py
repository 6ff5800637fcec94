"""What can be seen of processes, any of which may end at any moment."""

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TypeVar

import psutil

Seen = TypeVar("Seen")


def of_each(processes: Iterable[psutil.Process], look: Callable[[psutil.Process], Seen]) -> dict[psutil.Process, Seen]:
    """What ``look`` sees of each process, without those that have ended."""
    seen = {}
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            seen[process] = look(process)
    return seen


def descendants(name: str) -> list[psutil.Process]:
    """The processes that this test run has started, such as those of its Ray, with this in their names."""
    names = of_each(psutil.Process().children(recursive=True), psutil.Process.name)
    return [process for process, found in names.items() if name in found]
