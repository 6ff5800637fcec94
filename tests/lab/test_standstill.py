"""A check's verdict counts only if the machine did not stand still meanwhile."""

import os
import re
import subprocess
import time

import pytest

from workshop.lab.expectations import NotYet
from workshop.lab.registry import Exercise
from workshop.lab.runner import RUNS, judge
from workshop.lab.standstill import STANDSTILL_S, StandstillWatch
from workshop.lab.verdicts import Outcome


def stand_still(seconds: float = 1.5) -> None:
    """Stop this process, as a machine that is paused does."""
    command = f"kill -STOP {os.getpid()}; sleep {seconds}; kill -CONT {os.getpid()}"
    with subprocess.Popen(["/bin/sh", "-c", command]) as process:
        process.wait()


def compute() -> None:
    until = time.thread_time() + 1
    while time.thread_time() < until:
        re.fullmatch("(a|aa)+b", "a" * 24)  # keeps Python's lock for a tenth of a second and more


def test_a_machine_that_stands_still_is_noticed():
    with StandstillWatch() as watch:
        stand_still()
    assert watch.longest_s > STANDSTILL_S


@pytest.mark.parametrize("work", [lambda: time.sleep(1), compute], ids=["waiting", "computing"])
def test_waiting_and_computing_are_no_standstill(work):
    for _ in range(5):  # the machine may really stand still
        with StandstillWatch() as watch:
            work()
        if watch.longest_s < STANDSTILL_S:
            return
    pytest.fail(f"longest {watch.longest_s:.2f} s")


def hurried(standstills: int) -> tuple[Exercise, list[float]]:
    """A check that wants a tenth of a second to last less than one. The machine stands still in its first runs."""
    runs: list[float] = []

    def check(_: object) -> None:
        started = time.monotonic()
        if len(runs) < standstills:
            stand_still()
        time.sleep(0.1)
        runs.append(time.monotonic() - started)
        if runs[-1] > 1:
            raise NotYet("Too slow.")

    return Exercise("90.1", check, hints=("First.", "Second."), right="In time.", seconds=10), runs


def test_a_check_runs_again_after_a_standstill():
    task, runs = hurried(standstills=1)
    assert judge(task, 1).outcome is Outcome.RIGHT
    assert len(runs) >= 2


def test_on_a_machine_that_always_stands_still_the_last_run_counts():
    task, runs = hurried(standstills=10)
    assert judge(task, 1).outcome is Outcome.NOT_YET
    assert len(runs) == RUNS


def test_a_check_otherwise_runs_once():
    for _ in range(5):
        task, runs = hurried(standstills=0)
        judge(task, 1)
        if len(runs) == 1:
            return
    pytest.fail(f"{len(runs)} runs")
