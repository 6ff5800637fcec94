"""The errors that cross a contract.

Every adapter raises these and nothing else; every caller handles these and nothing else.

    ServiceError
    ├── InvalidInputError        the input has the right form but makes no sense
    ├── PromptTooLongError       the prompt does not fit into the model's context
    ├── UnauthenticatedError     the credential is missing, wrong or expired
    ├── NotFoundError            there is no such thing
    ├── BudgetExceededError      the caller has spent what it may spend
    ├── RateLimitedError         the caller asks too often
    ├── UnavailableError         not ready, or gone for a moment: try again
    │   └── OverloadedError      too much is waiting already: try again later
    ├── DeadlineExceededError    no answer in time
    └── ModelFailedError         the model broke: a fault of the service, not of the caller

An exception is pickled as its class and its ``args``. So every constructor passes all of its arguments to
``super().__init__``: one that does not cannot be rebuilt on the other side of a process boundary.
"""

from typing import Self


class StartError(Exception):
    """The service cannot start. The message is one line that says what to do."""

    @classmethod
    def because(cls, what: str, reason: BaseException) -> Self:
        """``what`` cannot be done, and the first line of the reason."""
        first_line, *_ = str(reason).strip().splitlines() or [type(reason).__name__]
        return cls(f"{what}: {first_line}")


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


class InvalidInputError(ServiceError):
    """The input is well formed but impossible.

    Args:
        message: what is wrong.
        row: index of the offending row, from 0.
        field: name of the offending feature.
    """

    def __init__(self, message: str, row: int, field: str) -> None:
        super().__init__(message, row, field)
        self.row = row
        self.field = field


class PromptTooLongError(ServiceError):
    """The prompt leaves no room for an answer.

    Args:
        message: how long it is and how long it may be.
        prompt_tokens: its length, or the least that it can be; None when only another server knows.
        context_length: what prompt and answer may take together, in tokens; None likewise.
    """

    def __init__(self, message: str, prompt_tokens: int | None, context_length: int | None) -> None:
        super().__init__(message, prompt_tokens, context_length)
        self.prompt_tokens = prompt_tokens
        self.context_length = context_length


class BudgetExceededError(ServiceError):
    """The caller's budget is used up until ``resets`` (a date and time in ISO 8601).

    Args:
        message: how much was spent of how much.
        resets: when the budget starts anew.
    """

    def __init__(self, message: str, resets: str) -> None:
        super().__init__(message, resets)
        self.resets = resets


class RateLimitedError(ServiceError):
    """The caller has asked as often as it may for now.

    Args:
        message: how often it may.
        retry_after_s: when it may ask again, in seconds.
    """

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message, retry_after_s)
        self.retry_after_s = retry_after_s


class UnauthenticatedError(ServiceError):
    """The caller's credential is missing, wrong or expired."""


class NotFoundError(ServiceError):
    """There is no resource of that name."""


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
    """More work waits than the service accepts."""


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
    """The model raised something that is no fault of the input."""
