"""What the notebooks use: `from workshop.lab import check, hint, solution, run_app, service_map, start_at`."""

from importlib import import_module
from typing import Any

from workshop.lab.service_map import service_map

# The other names, with the module of each, imported at first use: a notebook pays for what it uses.
# A name that is also its module's cannot be here, since importing the module would take its place: import it above.
_HOME = {
    "bars": "pictures",
    "check": "checks",
    "columns": "pictures",
    "compare": "predictions",
    "curve": "pictures",
    "explore": "explorer",
    "hint": "checks",
    "in_parallel": "load_generator",
    "load": "load_generator",
    "marks": "pictures",
    "run_app": "app_server",
    "run_command": "commands",
    "slow_model": "slow_language_model",
    "solution": "checks",
    "start_at": "lessons",
    "start_serve": "ray_serve",
    "stop_all": "running",
    "stop_serve": "ray_serve",
    "timeline": "pictures",
    "watch_serve": "serve_panel",
    "waterfall": "pictures",
}

__all__ = ["service_map", *_HOME]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
