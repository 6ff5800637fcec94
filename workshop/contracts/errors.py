"""The errors that cross a contract.

Adapters raise only these errors, and callers handle only these.

    ServiceError
    ├── InvalidInputError        the input has the right form but makes no sense
    ├── InvalidFileError         the file cannot be read at all
    ├── PromptTooLongError       the prompt does not fit into the model's context
    ├── UnauthenticatedError     the credential is missing, wrong or expired
    ├── ForbiddenError           the caller may not do this
    ├── NotFoundError            the resource does not exist
    ├── BudgetExceededError      the caller has spent its budget
    ├── RateLimitedError         the caller sends too many requests
    ├── UnavailableError         not ready, or gone for a moment: try again
    │   └── OverloadedError      too many requests are waiting: try again later
    ├── DeadlineExceededError    no answer in time
    └── ModelFailedError         the model failed: a fault of the service, not of the caller

An exception is pickled as its class and its ``args``. So every constructor must pass all of its arguments to
``super().__init__``, or the error cannot be rebuilt on the other side of a process boundary.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its class if it has none."""
    line, *_ = str(error).strip().splitlines() or [type(error).__name__]
    return line


class StartError(Exception):
    """The service cannot start. The message is one line that says what to do."""

    @classmethod
    def because(cls, what: str, reason: BaseException, remedy: str = "") -> Self:
        """An error that says what failed, with the first line of the reason, and what to do."""
        return cls(f"{what}: {first_line(reason).rstrip('.')}" + (f"; {remedy}" if remedy else ""))


class ServiceError(Exception):
    """Base of all errors that a contract may raise.

    Args:
        message: one sentence for the caller. Never names internals.
    """

    def __init__(self, message: str, *args: object) -> None:
        super().__init__(message, *args)
        self.message = message

    def __str__(self) -> str:
        return self.message


@contextmanager
def start_errors() -> Iterator[None]:
    """Raise a ServiceError of the block as a StartError: the service does not run yet."""
    try:
        yield
    except ServiceError as error:
        raise StartError(error.message) from error


class InvalidInputError(ServiceError):
    """The input is well formed, but makes no sense.

    Args:
        message: what is wrong.
        row: index of the invalid row, from 0.
        field: name of the invalid feature.
    """

    def __init__(self, message: str, row: int, field: str) -> None:
        super().__init__(message, row, field)
        self.row = row
        self.field = field


class InvalidFileError(ServiceError):
    """The file cannot be read at all: it is of another format, or lacks something that each row needs."""


class PromptTooLongError(ServiceError):
    """The prompt leaves no room for an answer.

    Args:
        message: how long it is and how long it may be.
        prompt_tokens: its length, or a lower bound of it; None if only an upstream server knows.
        context_length: the limit for prompt and answer together, in tokens; None likewise.
    """

    def __init__(self, message: str, prompt_tokens: int | None, context_length: int | None) -> None:
        super().__init__(message, prompt_tokens, context_length)
        self.prompt_tokens = prompt_tokens
        self.context_length = context_length


class BudgetExceededError(ServiceError):
    """The caller's budget is used up.

    Args:
        message: how much of the budget was spent.
        resets: when the budget is renewed (date and time in ISO 8601).
    """

    def __init__(self, message: str, resets: str) -> None:
        super().__init__(message, resets)
        self.resets = resets


class RateLimitedError(ServiceError):
    """The caller has sent too many requests.

    Args:
        message: the limit.
        retry_after_s: when to try again, in seconds.
    """

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message, retry_after_s)
        self.retry_after_s = retry_after_s


class UnauthenticatedError(ServiceError):
    """The caller's credential is missing, wrong or expired."""


class ForbiddenError(ServiceError):
    """The caller may not do this.

    Args:
        message: what is missing.
        scope: what the caller would need.
    """

    def __init__(self, message: str, scope: str) -> None:
        super().__init__(message, scope)
        self.scope = scope


class NotFoundError(ServiceError):
    """The resource does not exist."""


class UnavailableError(ServiceError):
    """The service cannot answer at the moment.

    Args:
        message: what is missing.
        retry_after_s: when to try again, in seconds.
    """

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message, retry_after_s)
        self.retry_after_s = retry_after_s


class OverloadedError(UnavailableError):
    """More requests are waiting than the service accepts."""


class DeadlineExceededError(ServiceError):
    """The answer did not come in time.

    Args:
        message: what took too long.
        timeout_s: the limit, in seconds.
    """

    def __init__(self, message: str, timeout_s: float) -> None:
        super().__init__(message, timeout_s)
        self.timeout_s = timeout_s


class ModelFailedError(ServiceError):
    """The model raised an error that was not caused by the input."""
