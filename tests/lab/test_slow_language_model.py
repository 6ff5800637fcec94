"""`slow_model`: its speed, and its end."""

import asyncio
import subprocess
import sys
import time

import pytest

from workshop.contracts.generator import Message, Prompt
from workshop.lab import slow_model

pytestmark = pytest.mark.slow

PROMPT = Prompt((Message("user", "What is a replica?"),))


def complete(model, times):
    async def together():
        try:
            return await asyncio.gather(*(model.complete(PROMPT) for _ in range(times)))
        finally:
            await model.aclose()

    start = time.perf_counter()
    answers = asyncio.run(together())
    return answers, time.perf_counter() - start


def test_the_speed_is_limited_and_all_answers_share_the_steps():
    model, steps = slow_model(20), []
    model._loops._model.register_forward_hook(lambda *_: steps.append("a step"))
    answers, seconds = complete(model, 3)
    tokens = answers[0].usage.completion_tokens
    assert {answer.text for answer in answers} == {answers[0].text}
    assert seconds > tokens / 20
    assert len(steps) < 2 * tokens


def test_a_second_model_stops_the_first():
    first = slow_model(1000)
    asyncio.run(first.complete(PROMPT))
    second = slow_model(1000)
    assert not first._loops._loops
    second.close()


def test_a_model_that_was_not_stopped_does_not_keep_the_process_alive():
    code = f"""
import asyncio
from workshop.contracts.generator import *
from workshop.lab import slow_model
asyncio.run(slow_model(1000).complete({PROMPT!r}))
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
