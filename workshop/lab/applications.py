"""Run the Serve application that a learner has written."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

import psutil
import ray
from ray import serve
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ApplicationStatus

from workshop.lab.expectations import CheckFailed, NotYet, show

START_S = 6.0
"""How long replicas may take to start. Time in which the machine is busy does not count."""

POLL_S = 0.25

_names = (f"check-{number}" for number in count(1))


def need_serve() -> None:
    """Raises CheckFailed if the notebook has not started Serve."""
    if not ray.is_initialized():
        raise CheckFailed("Ray Serve is not running. `start_serve()` starts it; then check again.")


@contextmanager
def running(application: object) -> Iterator[str]:
    """Run the application for the length of the block, and yield its name. Its route prefix is the name after a slash.

    Raises:
        NotYet: it is something else, or it does not start.
        CheckFailed: Serve is not running.
    """
    need_serve()
    if isinstance(application, serve.Deployment):
        raise NotYet("This is a deployment. `.bind(…)` makes an application of it.", got=show(application))
    if isinstance(application, type):
        raise NotYet("This is a class. `serve.deployment(…)` makes a deployment of it.", got=show(application))
    if isinstance(application, DeploymentHandle):
        raise NotYet("This is the handle of a running application. An application is what you pass to `serve.run`.")
    if application is None:
        raise NotYet("This is None: is a `return` missing?")
    if not isinstance(application, serve.Application):
        raise NotYet("A bound application is needed here.", got=show(application))
    name = next(_names)
    target = serve.RunTarget(application, name=name, route_prefix=f"/{name}")
    try:
        # Not `serve.run`: it starts a replica whose constructor fails again and again before it gives up.
        serve.run_many([target], wait_for_applications_running=False)
        _wait_until_running(name)
        yield name
    finally:
        # Waiting for the end takes seconds, and nothing that follows needs it.
        serve.delete(name, _blocking=False)


def _wait_until_running(name: str) -> None:
    patience_s = START_S
    while (application := serve.status().applications[name]).status is not ApplicationStatus.RUNNING:
        for deployment, status in application.deployments.items():
            if "failed to start" in status.message:
                raise NotYet(f"No replica of `{deployment}` starts.", got=_last_line(status.message))
        if application.status is ApplicationStatus.DEPLOY_FAILED:
            raise NotYet("The application does not start.", got=_last_line(application.message))
        if psutil.cpu_percent(interval=POLL_S) < 90:
            patience_s -= POLL_S
        if patience_s < 0:
            names = " and ".join(application.deployments)
            raise NotYet(f"{names} did not start within {START_S:.0f} s. Does a constructor wait for something?")


def _last_line(text: str) -> str:
    return text.strip().splitlines()[-1].strip()
