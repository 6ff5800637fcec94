"""One entry point: ``python -m workshop api | serve | users | train | doctor``."""

import os
import signal
import socket
import sys
from contextlib import suppress
from importlib import import_module
from threading import Event
from typing import Annotated

import typer

from workshop import environment
from workshop.contracts.errors import StartError
from workshop.contracts.principals import Role
from workshop.integration.observability import observe
from workshop.logs import set_up_logs
from workshop.machine import bound_socket, listen
from workshop.settings import WEIGHTS, Placement, Settings, read_settings

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

users_app = typer.Typer(help="Users, who log in with a password.", no_args_is_help=True)
app.add_typer(users_app, name="users")

Host = Annotated[str, typer.Option(help="Address to listen on.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="0 picks a free one.")]
RootPath = Annotated[str, typer.Option(help="Path prefix that a proxy in front removes.")]


@app.command()
def api(
    host: Host = "127.0.0.1",
    port: Port = 8000,
    root_path: RootPath = "",
    workers: Annotated[int, typer.Option(min=1, max=1000, help="Processes, each with models of its own.")] = 1,
) -> None:
    """Run the service on uvicorn alone, with the models in its process."""
    settings = read_settings()
    observe(settings)
    with bound_socket(host, port) as listener:  # a port in use is reported before anything is loaded
        _prepare(settings, host, processes=workers)
        print("Loading the models", flush=True)
        from workshop.api.app import create_app
        from workshop.integration.preflight import check_models
        from workshop.integration.services import build_services
        from workshop.integration.uvicorn_server import run, run_workers

        if workers > 1:
            check_models(settings)
            listen(listener)
            print(f"Serving on {_url(host, listener)} with {workers} workers. Ctrl-C stops it.", flush=True)
            run_workers("workshop.integration.services:app", listener, workers, root_path)
            return
        application = create_app(build_services(settings), settings)
        listen(listener)
        print(f"Serving on {_url(host, listener)}. Ctrl-C stops it.", flush=True)
        run(application, listener, root_path)


@app.command()
def serve(
    host: Host = "127.0.0.1",
    port: Port = 8000,
    root_path: RootPath = "",
    placement: Annotated[Placement | None, typer.Option(help="Where models run.")] = None,
) -> None:
    """Run the service on Ray Serve."""
    settings = read_settings() if placement is None else read_settings(placement=placement)
    set_up_logs(settings.log_format, settings.log_level)
    with bound_socket(host, port) as listener:
        url, port = _url(host, listener), listener.getsockname()[1]
    _prepare(settings, host, processes=settings.deployments.api.max_replicas)
    from workshop.integration.preflight import check_models

    check_models(settings)
    print("Starting Ray and the service on it", flush=True)
    from workshop.integration.serve_cluster import running_service  # imports Ray, which takes a while
    from workshop.integration.stopping import SIGNALS, begin_stop

    def stop(*_: object) -> None:
        begin_stop()
        raise KeyboardInterrupt

    for number in SIGNALS:  # SIGINT too: a program started in the background by a script ignores it by default
        signal.signal(number, stop)
    with suppress(KeyboardInterrupt), running_service(settings, host=host, port=port, root_path=root_path):
        print(f"Serving on {url} ({settings.placement} placement). Ctrl-C stops it.", flush=True)
        Event().wait()


@app.command()
def train(
    language_models: Annotated[
        bool, typer.Option("--language-models", help="The shipped language models instead; takes minutes.")
    ] = False,
) -> None:
    """Train the tumour classifier and index the passages of the retriever."""
    settings = read_settings()
    if language_models:
        from workshop.models.language_model_training import RECIPES
        from workshop.models.language_model_training import train as train_language_model

        for name, recipe in RECIPES.items():
            card = train_language_model(recipe, WEIGHTS / name)
            print(
                f"{name}: {card['parameters']} parameters, {card['exact_answers']:.1%} of held-out questions answered"
            )
        return
    from workshop.integration.training import train_all

    train_all(settings)


@users_app.command("add")
def add_user(
    name: str,
    role: Role = Role.MEMBER,
    password: Annotated[str, typer.Option(prompt=True, confirmation_prompt=True, hide_input=True)] = "",
) -> None:
    """Add a user, or give one a new role and password. Ends the sessions of the user."""
    from workshop.integration.users import add

    settings = read_settings()
    add(settings, name, role, password)
    print(f"{name} may log in as {role}.")
    if settings.token_keys is None:
        print("First start the service with WORKSHOP_TOKEN_KEYS: docs/security.md says how to make a key.")


@users_app.command("list")
def list_users() -> None:
    """List the users and their roles."""
    from workshop.integration.users import find_all

    for user in find_all(read_settings()):
        print(f"{user.name}\t{user.role}")


@users_app.command("remove")
def remove_user(name: str) -> None:
    """Remove a user. Ends the sessions of the user."""
    from workshop.integration.users import remove

    remove(read_settings(), name)
    print(f"{name} may no longer log in.")


@app.command()
def doctor() -> None:
    """Check this machine for what the workshop needs."""
    from workshop.lab.doctor import main as examine

    examine()


def main() -> None:
    """Run the command line. A start that fails for a known reason prints one line and exits with status 1."""
    try:
        environment.load()
        app(sys.argv[1:] or environment.container_arguments(os.environ))
    except StartError as error:
        sys.exit(f"workshop: {error}")
    except ModuleNotFoundError as error:
        sys.exit(f"workshop: this needs {error.name}, which is not installed: see the extras in pyproject.toml")


def _prepare(settings: Settings, host: str, *, processes: int) -> None:
    """Check the settings, the database and where files are, and train the models if they are missing.

    Raises:
        StartError: anyone could use the service, a rate limit has no route or does not hold, a model cannot be saved,
            the database cannot be used, or there is no such storage for files.
    """
    from workshop.api.app import check_rate_limits
    from workshop.integration.prediction_jobs import folder_at
    from workshop.integration.preflight import check_access, check_database, check_shared_limits
    from workshop.integration.training import make_missing

    check_access(settings, host)
    if settings.redis_url:
        import_module("redis")  # an extra: if it is missing, say so now rather than at the first request
    check_rate_limits(settings)
    check_shared_limits(settings, processes)
    folder_at(settings.files_url)
    make_missing(settings)
    check_database(settings)


def _url(host: str, listener: socket.socket) -> str:
    return f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
