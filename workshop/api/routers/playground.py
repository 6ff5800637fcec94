"""The page that `/` shows: every part of the service, to try by hand. Plain files, as they are in ``static/``."""

import mimetypes
from pathlib import Path

from fastapi import APIRouter, Depends, Response

STATIC = Path(__file__).parents[1] / "static"

_POLICY = {
    # The page runs its own files and talks to its own service, and never makes markup of a string.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'self'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # Kept, but asked for again each time (with its ETag): no file of one version meets another version's.
    "Cache-Control": "no-cache",
}

# The system's own table may know another type, and a browser runs no module of a type that it does not know.
mimetypes.add_type("text/javascript", ".js")


async def add_policy(response: Response) -> None:
    """What a browser may do with these files."""
    response.headers.update(_POLICY)


router = APIRouter(dependencies=[Depends(add_policy)])
# Asked last, when no other route matches. No fallback: what is not there is a 404, like everywhere.
router.frontend("/", directory=STATIC, fallback=None, check_dir=True)
