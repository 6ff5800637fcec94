"""Two kinds of work: one waits, one computes."""

import time

_LOOPS_PER_MS = 24_000


def wait(ms: float = 100) -> None:
    """Wait, as for a database or another service. The thread sleeps; the processor is free."""
    time.sleep(ms / 1000)


def burn(ms: float = 100) -> int:
    """Compute in pure Python for roughly this long. The amount of work is fixed: a slower machine takes longer."""
    total = 0
    for number in range(int(ms * _LOOPS_PER_MS)):
        total += number
    return total
