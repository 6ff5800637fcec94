"""One entry point: ``python -m workshop api | serve | deploy-file | models | registry | model-server | users | …``."""

import os
import re
import signal
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from threading import Event
from typing import Annotated, Any

import typer

from workshop import environment
from workshop.contracts.errors import StartError
from workshop.contracts.principals import Role
from workshop.integration.observability import observe
from workshop.logs import set_up_logs
from workshop.machine import bound_socket, listen, url_of
from workshop.settings import PREFIX, WEIGHTS, Placement, Settings, read_settings, settings_in, variable_of

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

users_app = typer.Typer(help="Users, who log in with a password.", no_args_is_help=True)
app.add_typer(users_app, name="users")

models_app = typer.Typer(
    help="Registered models, which the service runs as MLflow's registry says.", no_args_is_help=True
)
app.add_typer(models_app, name="models")

Host = Annotated[str, typer.Option(help="Address to listen on.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="0 picks a free one.")]
Config = Annotated[
    Path | None,
    typer.Option(help="A YAML file with settings by name. Environment variables override it.", metavar="FILE"),
]
RootPath = Annotated[str, typer.Option(help="Path prefix that a proxy in front removes.")]


@app.command()
def api(
    host: Host = "127.0.0.1",
    port: Port = 8000,
    root_path: RootPath = "",
    config: Config = None,
    workers: Annotated[int, typer.Option(min=1, max=1000, help="Processes, each with models of its own.")] = 1,
) -> None:
    """Run the service on uvicorn alone, with the models in its process."""
    settings = _read(config)
    observe(settings)
    with bound_socket(host, port) as listener:  # a port in use is reported before anything is loaded
        _prepare(settings, host, processes=workers)
        url = url_of(host, listener.getsockname()[1])
        print("Loading the models", flush=True)
        from workshop.api.app import create_app
        from workshop.integration.preflight import check_models
        from workshop.integration.services import build_services
        from workshop.integration.uvicorn_server import run, run_workers

        if workers > 1:
            check_models(settings)
            listen(listener)
            print(f"Serving on {url} with {workers} workers. Ctrl-C stops it.", flush=True)
            run_workers("workshop.integration.services:app", listener, workers, root_path)
            return
        application = create_app(build_services(settings), settings)
        listen(listener)
        print(f"Serving on {url}. Ctrl-C stops it.", flush=True)
        run(application, listener, root_path)


@app.command()
def serve(
    host: Host = "127.0.0.1",
    port: Port = 8000,
    root_path: RootPath = "",
    config: Config = None,
    placement: Annotated[Placement | None, typer.Option(help="Where models run.")] = None,
    name: Annotated[
        str, typer.Option(help="Of the application. Another name serves it below /NAME, beside others on one Ray.")
    ] = "workshop",
) -> None:
    """Run the service on Ray Serve: on a small Ray of its own, or on the one that RAY_ADDRESS names."""
    if not re.fullmatch("[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", name):
        raise StartError(f"--name {name!r}: it should have 1 to 63 letters from a to z, digits and hyphens")
    settings = _read(config, **({} if placement is None else {"placement": placement}))
    set_up_logs(settings.log_format, settings.log_level)
    if not os.environ.get("RAY_ADDRESS"):  # there, Serve may already be running, at another address
        bound_socket(host, port).close()  # a port in use is reported before anything is loaded
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
    service = running_service(settings, host=host, port=port, root_path=root_path, name=name)
    with suppress(KeyboardInterrupt), service as url:
        print(f"Serving on {url} ({settings.placement} placement). Ctrl-C stops it.", flush=True)
        Event().wait()


@app.command()
def deploy_file(
    config: Annotated[Path, typer.Option(help="A YAML file with settings by name.", metavar="FILE")],
    port: Annotated[int, typer.Option(min=1, max=65535, help="Where the proxies of the cluster listen.")] = 8000,
) -> None:
    """Print what `serve deploy` takes, for the service that a settings file describes."""
    _read(config)
    from workshop.integration.serve_app import deploy_file  # imports Ray, which takes a while

    arguments, secrets = settings_in(config)
    print(deploy_file(arguments, port), end="")
    for name in secrets:
        print(f"{name} may be secret and is left out: set {variable_of(name)} on the cluster", file=sys.stderr)


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


@models_app.command("add")
def add_model(
    location: Annotated[str, typer.Argument(help="A folder or a URL, where the trained model is.")],
    activate: Annotated[bool, typer.Option("--activate", help="Let it answer all callers.")] = False,
) -> None:
    """Register a model as a new version."""
    from workshop.integration.registry import add

    settings = read_settings()
    number = add(settings, location)
    print(f"Version {number} is registered.")
    if activate:
        activate_model(number)


@models_app.command("list")
def list_models() -> None:
    """List the versions, the newest first."""
    from workshop.integration.registry import find_all

    for version in find_all(read_settings()):
        share = f"{version.share:.0%} of the callers" if version.share else ""
        withdrawn = f"withdrawn: {version.withdrawn}" if version.withdrawn else ""
        print("\t".join(filter(None, (version.number, *version.aliases, share, withdrawn))))


@models_app.command("activate")
def activate_model(version: str) -> None:
    """Let a version answer all callers. A running service follows within seconds."""
    from workshop.integration.registry import activate

    activate(read_settings(), version)
    print(f"Version {version} answers all callers.")


@models_app.command("canary")
def try_out_model(
    version: str, share: Annotated[float, typer.Option(min=0.0, max=1.0, help="Of the callers, from 0 to 1.")] = 0.1
) -> None:
    """Try a version out: it answers some callers, always the same ones. It is withdrawn if it fails too often."""
    from workshop.integration.registry import try_out

    try_out(read_settings(), version, share)
    print(f"Version {version} answers {share:.0%} of the callers.")


@models_app.command("withdraw")
def withdraw_model() -> None:
    """End the trial of a version."""
    from workshop.integration.registry import withdraw

    number = withdraw(read_settings())
    print("No version is on trial." if number is None else f"Version {number} answers nobody any more.")


@app.command()
def registry(host: Host = "127.0.0.1", port: Annotated[int, typer.Option(min=1, max=65535)] = 5000) -> None:
    """Run MLflow's own server, which shows and changes the registered models."""
    settings = read_settings()
    from workshop.integration.preflight import check_access
    from workshop.integration.registry import server_command

    if not settings.unverified_names:  # MLflow checks no keys
        check_access(settings.model_copy(update={"api_keys": None, "token_keys": None}), host)
    bound_socket(host, port).close()  # a port in use is reported in one line
    command, environment = server_command(settings, host, port)
    os.execve(command[0], command, environment)


@app.command()
def model_server(host: Host = "127.0.0.1", port: Port = 8000) -> None:
    """Serve the same classifier with MLflow's own scoring server."""
    settings = read_settings()
    set_up_logs(settings.log_format, settings.log_level)
    with bound_socket(host, port) as listener:
        _prepare(settings, host, processes=1)
        from workshop.integration.registry import mlflow_app
        from workshop.integration.uvicorn_server import run

        with mlflow_app(settings) as application:
            listen(listener)
            print(f"Serving on {url_of(host, listener.getsockname()[1])}. Ctrl-C stops it.", flush=True)
            run(application, listener)


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


def _read(config: Path | None, **values: Any) -> Settings:
    """The settings; Serve's processes read them too, and find the file by the variable."""
    if config is not None:
        os.environ[f"{PREFIX}SETTINGS_FILE"] = str(config.absolute())
    return read_settings(**values)
