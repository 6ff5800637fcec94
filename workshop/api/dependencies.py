"""What endpoints ask for, as annotated types, so that their signatures read like sentences.

All are ``async def``, even those that await nothing: FastAPI runs a plain ``def`` dependency in a thread, which costs
more than the rest of the request.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, cast

from fastapi import Depends, Request
from fastapi.exceptions import RequestValidationError

from workshop.api.clock import Clock
from workshop.contracts.cases import Cases
from workshop.contracts.classifier import Classifier, ModelCard
from workshop.contracts.errors import UnavailableError
from workshop.contracts.services import Services

PROBE_TIMEOUT_S = 3.0


async def get_services(request: Request) -> Services:
    """The ports. Tests override this one to replace what is behind them."""
    return cast(Services, request.app.state.services)


async def get_clock(request: Request) -> Clock:
    return cast(Clock, request.app.state.clock)


async def get_classifier(services: Annotated[Services, Depends(get_services)]) -> Classifier:
    return services.classifier


async def get_model_card(classifier: Annotated[Classifier, Depends(get_classifier)]) -> ModelCard:
    """The card, soon or not at all: a probe must not wait for a model that is being replaced."""
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            return await classifier.card()
    except TimeoutError:
        raise UnavailableError("the model does not answer") from None


async def open_cases(services: Annotated[Services, Depends(get_services)]) -> AsyncIterator[Cases]:
    """The cases, in a transaction that ends before the response is sent: who gets an answer knows it is kept."""
    async with services.cases.transaction() as cases:
        yield cases


async def require_json(request: Request) -> None:
    """Turn away a body that does not say it is JSON, with an error that says so."""
    content_type = request.headers.get("content-type", "")
    kind = content_type.partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        message = f"Input should be application/json, not {content_type or 'nothing'}"
        raise RequestValidationError([{"loc": ("header", "content-type"), "type": "json_content_type", "msg": message}])


ClockDep = Annotated[Clock, Depends(get_clock)]
ClassifierDep = Annotated[Classifier, Depends(get_classifier)]
ModelCardDep = Annotated[ModelCard, Depends(get_model_card)]
CasesDep = Annotated[Cases, Depends(open_cases, scope="function")]
