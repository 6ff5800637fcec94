"""What goes wrong with another server, as errors of the contract."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from httpx2 import Request, RequestError, Response, TimeoutException

from workshop.contracts.errors import (
    DeadlineExceededError,
    ModelFailedError,
    OverloadedError,
    PromptTooLongError,
    ServiceError,
    UnavailableError,
)
from workshop.integration.upstream.client import retry_after_s

MAX_QUOTED = 1000
"""Characters of what a server says that we pass on."""

_TOO_LONG = ("context length", "context limit", "prompt is too long")
"""What vLLM and Anthropic say, who have no code for it. OpenAI and this service have one."""

_STATUSES = {
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}
"""Of the types of errors that Anthropic may send within a stream, where they have no status of their own."""


@contextmanager
def contract_errors(library: ModuleType, model: str, timeout_s: float) -> Iterator[None]:
    """Turn what a client raises, after its retries, into what the contract promises.

    | client                                            | contract                |
    |---------------------------------------------------|-------------------------|
    | nothing comes for ``timeout_s``                   | DeadlineExceededError   |
    | the connection fails                              | UnavailableError        |
    | 429, 529                                          | OverloadedError         |
    | any other 5xx                                     | UnavailableError        |
    | 401, 403, 404: how we are set up                  | ModelFailedError        |
    | 413, or an error because of the prompt's length   | PromptTooLongError      |
    | any other status, or an error within a stream     | ModelFailedError        |
    | an answer of another form than the protocol's     | ModelFailedError        |

    Args:
        library: ``openai`` or ``anthropic``, whose clients raise classes of the same names.
        model: the name that the messages mention.
        timeout_s: see ``DeadlineExceededError``.
    """
    server = f"the server of {model}"
    try:
        yield
    except (library.APITimeoutError, TimeoutException) as error:
        raise DeadlineExceededError(f"{server} did not answer in time", timeout_s) from error
    except (library.APIConnectionError, RequestError) as error:
        raise UnavailableError(f"the connection to {server} failed") from error
    except library.APIError as error:
        error.args = (_quoted(str(error), error.request),)  # it will be logged
        raise _contract_error(error, server) from error
    except (ValueError, RecursionError) as error:  # not JSON, nested too deeply, or without the fields that we read
        raise ModelFailedError(f"{server} does not answer as its protocol says") from error


def _contract_error(error: Any, server: str) -> ServiceError:
    body = error.body if isinstance(error.body, dict) else {}
    inner = body["error"] if isinstance(body.get("error"), dict) else body
    message = _quoted(str(inner.get("message") or ""), error.request)
    response: Response | None = getattr(error, "response", None)
    if response is not None and response.is_error:
        status = response.status_code
    else:
        status = _STATUSES.get(str(inner.get("type")), 200)
    if inner.get("code") == "context_length_exceeded" or status == 413 or any(text in message for text in _TOO_LONG):
        return PromptTooLongError(message or f"the prompt is too long for {server}", None, None)
    if status in (401, 403):
        return ModelFailedError(f"{server} refuses our key: check the key in the settings")
    if status == 404:
        return ModelFailedError(f"{server} has no such model or path: check the model and the URL in the settings")
    if status in (429, 529):
        return OverloadedError(f"{server} is overloaded", retry_after_s(response))
    if status >= 500:
        return UnavailableError(f"{server} has failed", retry_after_s(response))
    return ModelFailedError(f"{server} could not answer")


def _quoted(text: str, request: Request) -> str:
    """What a server says, at most ``MAX_QUOTED`` characters of it, and never our key: some servers repeat it."""
    for header in ("Authorization", "x-api-key"):
        if key := request.headers.get(header, "").removeprefix("Bearer "):
            text = text.replace(key, "…")
    return text[:MAX_QUOTED]
