"""A language model with the speed of one of a useful size."""

import threading
import time
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from workshop.models.language_model import LanguageModel
from workshop.settings import Settings

_running: list[LanguageModel] = []


def slow_model(steps_per_second: float = 40) -> LanguageModel:
    """The service's main model with a pause in each of its steps. All answers under way share a step.

    A model that was made before is stopped first, so a cell can run twice.

    Args:
        steps_per_second: the most tokens that each answer gets in a second.
    """
    _stop()
    source = Settings().main_model
    torch.set_num_threads(1)  # what computes this little is faster so
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
    # Python runs atexit's functions only after the threads have ended, and a model's thread ends only when stopped.
    threading.main_thread().join()
    _stop()


threading.Thread(target=_stop_at_the_end, name="stops slow models").start()
