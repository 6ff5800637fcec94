"""The environment of a process that starts: the file ``.env``, and the variables of the earlier services.

The command line calls this first. Nothing else in the service knows of it.
"""

import json
import os
from collections.abc import Callable, Mapping, MutableMapping
from pathlib import Path

from dotenv import dotenv_values

from workshop.contracts.errors import StartError

ENV_FILE = Path(".env")
"""In the current folder."""


def _same(value: str) -> str:
    return value


def _per_minute(value: str) -> str:
    if not value.strip().isdecimal():
        raise StartError(f"RATE_LIMIT should be a number of requests per minute, not {value!r}")
    return json.dumps({"/": f"{value.strip()}/minute"})


_SUCCESSORS: Mapping[str, tuple[str, Callable[[str], str]]] = {
    "DAILY_BUDGET": ("WORKSHOP_DAILY_BUDGET", _same),
    "RATE_LIMIT": ("WORKSHOP_RATE_LIMITS", _per_minute),
    "LOG_LEVEL": ("WORKSHOP_LOG_LEVEL", _same),
    "MODEL_PATH": ("WORKSHOP_ARTIFACT", _same),
}
"""For each variable of the earlier services, in capitals, ours and how its value is made."""


def load() -> None:
    """Add to the environment what ``.env`` says, and what the earlier services' variables mean. Keep MLflow quiet.

    A variable that is set in the environment comes before the same in the file, in small letters or capitals.

    Raises:
        StartError: the file cannot be read, or a value is wrong.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # it would send statistics of its use
    translate(os.environ)
    if not os.environ.get("PYTHON_DOTENV_DISABLED"):  # python-dotenv's own switch, for the tests
        given = {name.upper() for name in os.environ}
        try:
            for name, value in dotenv_values(ENV_FILE).items():
                if value is not None and name.upper() not in given:
                    os.environ[name] = value
        except (OSError, ValueError) as error:
            raise StartError.because(f"cannot read {ENV_FILE}", error) from error
        translate(os.environ)


def translate(variables: MutableMapping[str, str]) -> None:
    """Set our variables as those of the earlier services say. One of ours that is set already stays as it is."""
    ours_set = {name.upper() for name in variables}
    for name, value in list(variables.items()):
        if name.upper() in _SUCCESSORS:
            ours, convert = _SUCCESSORS[name.upper()]
            if ours not in ours_set:
                variables[ours] = convert(value)


def container_arguments(variables: Mapping[str, str]) -> list[str]:
    """The command line of a container that was started without one: what its variables ask for, or nothing.

    Raises:
        StartError: they ask for a server of MLflow.
    """
    if _is_true(variables, "SERVE_API"):
        return ["api", "--host", "0.0.0.0", "--port", variables.get("API_PORT", "8000")]
    if _is_true(variables, "SERVE_MODEL"):
        path = variables.get("SERVE_MODEL_PATH", "…")
        raise StartError(
            f"SERVE_MODEL=true asks for MLflow's model server; run: mlflow models serve --model-uri {path}; "
            "or set SERVE_API=true"
        )
    if {"SERVE_API", "SERVE_MODEL"} & variables.keys():
        raise StartError(
            "neither SERVE_API nor SERVE_MODEL is true, which asks for MLflow's tracking server; run: mlflow server; "
            "or set SERVE_API=true"
        )
    return []


def _is_true(variables: Mapping[str, str], name: str) -> bool:
    return variables.get(name, "").strip().lower() in ("true", "1")
