"""The lines of an error or a stack that the learner wrote."""

import re
import sys
import sysconfig
import threading
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import CodeType

_NOT_THE_LEARNERS = (
    *{sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")},
    f"{Path(__file__).parents[1]}/",
    "<frozen",
)
_LONGEST_LAST_LINE = 1500  # characters


def is_learners_file(filename: str) -> bool:
    return not filename.startswith(_NOT_THE_LEARNERS)


def codes(error: BaseException) -> list[CodeType]:
    """The code of each frame that the error came through, the outermost first."""
    return [frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)]


def without_ray(error: BaseException) -> BaseException:
    """The error as a Ray task or replica raised it; any other error itself."""
    while _is_of_ray(error) and isinstance(getattr(error, "cause", None), BaseException):
        error = error.cause  # type: ignore[attr-defined]
    return error


def trace(error: BaseException) -> str:
    """The learner's frames, in this process and then in a Ray process, one or two lines each."""
    frames = list(traceback.StackSummary.extract(traceback.walk_tb(error.__traceback__)))
    if _is_of_ray(error):
        # The lines of the code are looked up here: a replica has no copy of the notebook's cells.
        remote = re.findall(r'File "([^"]+)", line (\d+), in (\S+)', str(error))
        frames += [traceback.FrameSummary(file, int(line), function) for file, line, function in remote]
    return _learners(frames)


def last_line(error: BaseException) -> str:
    """The error's type and message. Of a long message, both ends."""
    text = "".join(traceback.format_exception_only(without_ray(error))).strip()
    if len(text) <= _LONGEST_LAST_LINE:
        return text
    return f"{text[: _LONGEST_LAST_LINE // 3]} … {text[-_LONGEST_LAST_LINE * 2 // 3 :]}"


def stack(thread: threading.Thread) -> str:
    """The learner's frames of a running thread."""
    frame = sys._current_frames().get(thread.ident or 0)
    frames = traceback.StackSummary.extract(traceback.walk_stack(frame)) if frame else traceback.StackSummary()
    frames.reverse()
    return _learners(frames)


def _learners(frames: Iterable[traceback.FrameSummary]) -> str:
    """The learner's own frames, one or two lines each; the last ten if there are more."""
    own = [frame for frame in frames if is_learners_file(frame.filename)]
    return "".join(
        f"line {frame.lineno}, in {frame.name}\n" + (f"    {frame.line}\n" if frame.line else "") for frame in own[-10:]
    )


def _is_of_ray(error: BaseException) -> bool:
    ray = sys.modules.get("ray.exceptions")  # if it was never imported, no error is Ray's
    return ray is not None and isinstance(error, ray.RayTaskError)
