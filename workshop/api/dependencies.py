"""What endpoints ask for, as annotated types, so that their signatures read like sentences.

All are ``async def``, even those that await nothing: FastAPI runs a plain ``def`` dependency in a thread, which costs
more than the rest of the request.
"""

from collections.abc import Mapping
from typing import Annotated, cast

from fastapi import Depends, HTTPException, Request, WebSocket, WebSocketException, status
from fastapi.exceptions import RequestValidationError
from fastapi.security.utils import get_authorization_scheme_param
from starlette.requests import HTTPConnection

from workshop.api.clock import Clock
from workshop.api.errors import explain
from workshop.api.health import HealthCheck
from workshop.contracts.cascade import Cascade
from workshop.contracts.cases import CaseStore
from workshop.contracts.classifier import Classifier, ModelCard
from workshop.contracts.errors import NotFoundError, UnavailableError
from workshop.contracts.generator import TextGenerator
from workshop.contracts.rag import QuestionAnswerer
from workshop.contracts.services import Health, LanguageServices, Services
from workshop.contracts.usage import UsageStore
from workshop.settings import Settings

ANONYMOUS = "anonymous"
NO_KEY = "this service wants a known key"
SUBPROTOCOL = "workshop.chat"
KEY_PREFIX = "bearer."


def path_of(connection: HTTPConnection) -> str:
    """The path, without the prefix that a proxy has removed."""
    path: str = connection.scope["path"]
    return path.removeprefix(connection.scope.get("root_path", ""))


async def get_services(connection: HTTPConnection) -> Services:
    """The ports. Tests override this one to replace what is behind them."""
    return cast(Services, connection.app.state.services)


async def get_settings(connection: HTTPConnection) -> Settings:
    return cast(Settings, connection.app.state.settings)


async def get_clock(request: Request) -> Clock:
    return cast(Clock, request.app.state.clock)


async def get_classifier(services: Annotated[Services, Depends(get_services)]) -> Classifier:
    return services.classifier


async def get_model_card(classifier: Annotated[Classifier, Depends(get_classifier)]) -> ModelCard:
    return await classifier.card()


async def get_health(request: Request, services: Annotated[Services, Depends(get_services)]) -> Health:
    check = cast(HealthCheck, request.app.state.health)
    return await check(services)


async def require_ready(health: Annotated[Health, Depends(get_health)]) -> None:
    """Raises UnavailableError where a required part is missing."""
    if health.missing:
        pauses = [error.retry_after_s for error in health.missing.values() if isinstance(error, UnavailableError)]
        reasons = (f"{name}: {explain(error).message}" for name, error in health.missing.items())
        raise UnavailableError("; ".join(reasons), max(pauses, default=1.0))


async def get_cases(services: Annotated[Services, Depends(get_services)]) -> CaseStore:
    return services.cases


def owner_of(key: str, settings: Settings) -> str | None:
    """Whose key it is: nobody's, if it is unknown. Where no keys are set, a key is a name."""
    return settings.api_keys.get(key) if settings.api_keys else key or ANONYMOUS


def bearer_key(connection: HTTPConnection) -> str:
    """The key that a request comes with, or ""."""
    scheme, key = get_authorization_scheme_param(connection.headers.get("Authorization"))
    return key if scheme.lower() == "bearer" else ""


async def get_principal(connection: HTTPConnection, settings: Annotated[Settings, Depends(get_settings)]) -> str:
    """Who asks, by the bearer key; ``anonymous`` without one, where no keys are set."""
    principal = owner_of(bearer_key(connection), settings)
    if principal is None:
        raise HTTPException(status.HTTP_401_UNAUTHORIZED, NO_KEY, {"WWW-Authenticate": "Bearer"})
    return principal


async def accept_socket(websocket: WebSocket, settings: Annotated[Settings, Depends(get_settings)]) -> str:
    """Who asks, as ``get_principal`` says. Browsers set no headers: they name the key as a subprotocol beside ours.

    The socket is accepted in any case: before that, a close is a 403, and a browser tells its page nothing of it.
    """
    offered = websocket.scope["subprotocols"]
    await websocket.accept(SUBPROTOCOL if SUBPROTOCOL in offered else None)
    keys = [name.removeprefix(KEY_PREFIX) for name in offered if name.startswith(KEY_PREFIX)]
    principal = owner_of(bearer_key(websocket) or "".join(keys[:1]), settings)
    if principal is None:
        raise WebSocketException(status.WS_1008_POLICY_VIOLATION, NO_KEY)
    return principal


async def get_language(services: Annotated[Services, Depends(get_services)]) -> LanguageServices:
    return cast(LanguageServices, services.language)  # its routes exist only where it does


LanguageDep = Annotated[LanguageServices, Depends(get_language)]


async def get_generators(language: LanguageDep) -> Mapping[str, TextGenerator]:
    return language.generators


def find_generator(generators: Mapping[str, TextGenerator], model: str) -> TextGenerator:
    """The model of that name. Raises NotFoundError."""
    if model not in generators:
        raise NotFoundError(f"there is no model {model}; there are {', '.join(generators)}")
    return generators[model]


async def get_prices(language: LanguageDep) -> Mapping[str, float]:
    return language.prices


async def get_cascade(language: LanguageDep) -> Cascade:
    return language.cascade


async def get_rag(language: LanguageDep) -> QuestionAnswerer:
    return language.rag


async def get_usage(language: LanguageDep) -> UsageStore:
    return language.usage


async def require_json(request: Request) -> None:
    """Turn away a body that does not say it is JSON, with an error that says so."""
    content_type = request.headers.get("content-type", "")
    kind = content_type.partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        message = f"Input should be application/json, not {content_type or 'nothing'}"
        raise RequestValidationError([{"loc": ("header", "content-type"), "type": "json_content_type", "msg": message}])


SettingsDep = Annotated[Settings, Depends(get_settings)]
PrincipalDep = Annotated[str, Depends(get_principal)]
SocketPrincipalDep = Annotated[str, Depends(accept_socket)]
GeneratorsDep = Annotated[Mapping[str, TextGenerator], Depends(get_generators)]
PricesDep = Annotated[Mapping[str, float], Depends(get_prices)]
CascadeDep = Annotated[Cascade, Depends(get_cascade)]
RagDep = Annotated[QuestionAnswerer, Depends(get_rag)]
UsageDep = Annotated[UsageStore, Depends(get_usage)]
ServicesDep = Annotated[Services, Depends(get_services)]
HealthDep = Annotated[Health, Depends(get_health)]
ClockDep = Annotated[Clock, Depends(get_clock)]
ClassifierDep = Annotated[Classifier, Depends(get_classifier)]
ModelCardDep = Annotated[ModelCard, Depends(get_model_card)]
CasesDep = Annotated[CaseStore, Depends(get_cases)]
