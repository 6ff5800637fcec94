"""Changes to the users, for the command line."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import TypeVar

from workshop.api.passwords import MAX_PASSWORD, MIN_PASSWORD, Passwords
from workshop.contracts.errors import StartError, start_errors
from workshop.contracts.principals import ANONYMOUS, Role
from workshop.contracts.users import NAME_PATTERN, User, UserStore
from workshop.settings import Settings
from workshop.storage.users import SqlUserStore

Result = TypeVar("Result")


def add(settings: Settings, name: str, role: Role, password: str) -> None:
    """Add a user, or replace the one of the same name.

    Raises:
        StartError: the name or the password is not allowed, or the database cannot be used.
    """
    if not re.fullmatch(NAME_PATTERN, name) or name == ANONYMOUS:
        raise StartError(f"a name should have 1 to 64 letters, digits, or characters of .@+-_, and not be {ANONYMOUS}")
    if not MIN_PASSWORD <= len(password) <= MAX_PASSWORD:
        raise StartError(f"a password should have {MIN_PASSWORD} to {MAX_PASSWORD} characters")

    async def put(store: UserStore) -> None:
        await store.put(User(name, role, await Passwords().hash(password)))

    _with_store(settings, put)


def find_all(settings: Settings) -> list[User]:
    """All users, by name. Raises StartError."""
    return _with_store(settings, lambda store: store.all())


def remove(settings: Settings, name: str) -> None:
    """Remove a user. Raises StartError."""
    _with_store(settings, lambda store: store.delete(name))


def _with_store(settings: Settings, use: Callable[[UserStore], Awaitable[Result]]) -> Result:
    async def open_and_use() -> Result:
        store = SqlUserStore(settings.database_url)
        try:
            return await use(store)
        finally:
            await store.aclose()

    with start_errors():
        return asyncio.run(open_and_use())
