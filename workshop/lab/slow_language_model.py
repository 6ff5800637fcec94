"""A small language model, slowed down to the speed of a useful one."""

import threading
import time
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from workshop.models.language_model import LanguageModel
from workshop.settings import Settings

_running: list[LanguageModel] = []


def slow_model(steps_per_second: float = 40) -> LanguageModel:
    """The service's main model with a pause in each of its steps. All running answers share a step.

    An earlier slow model is stopped first, so a cell can run twice.

    Args:
        steps_per_second: the maximum of tokens per second, for each answer.
    """
    _stop()
    source = Settings().main_model
    torch.set_num_threads(1)  # a model this small is faster on one thread
    network = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)

    def pause(*_: Any) -> None:
        time.sleep(1 / steps_per_second)

    network.register_forward_hook(pause)
    model = LanguageModel("slow", network, AutoTokenizer.from_pretrained(source))
    _running.append(model)
    return model


def _stop() -> None:
    while _running:
        _running.pop().close()


def _stop_at_the_end() -> None:
    # Python calls atexit functions only after all threads have ended, and a model's thread ends only when stopped.
    threading.main_thread().join()
    _stop()


threading.Thread(target=_stop_at_the_end, name="stops slow models").start()
