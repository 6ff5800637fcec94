"""Hashes of passwords, by argon2."""

from secrets import token_hex

import anyio
from anyio import CapacityLimiter
from pwdlib import PasswordHash
from pwdlib.exceptions import UnknownHashError

MIN_PASSWORD, MAX_PASSWORD = 12, 256
"""Characters."""
MAX_AT_ONCE = 2
"""Each check takes 64 MiB of memory, on purpose: more of them wait."""


class Passwords:
    """Hashes and checks passwords, in threads."""

    def __init__(self) -> None:
        self._argon2 = PasswordHash.recommended()
        self._limiter = CapacityLimiter(MAX_AT_ONCE)
        self._nobodys_hash: str | None = None

    async def hash(self, password: str) -> str:
        """A salted hash, in the PHC string format."""
        return await anyio.to_thread.run_sync(self._argon2.hash, password, limiter=self._limiter)

    async def verify(self, password: str, password_hash: str | None) -> bool:
        """Whether a password has this hash. Without a hash the answer is no, and takes as long."""
        if password_hash is None:
            password_hash = self._nobodys_hash = self._nobodys_hash or await self.hash(token_hex())
        try:
            return await anyio.to_thread.run_sync(self._argon2.verify, password, password_hash, limiter=self._limiter)
        except UnknownHashError:
            return False
