"""The playground at `/`: a page to try every part of the service. Serves the files in ``static/`` as they are."""

import mimetypes
from pathlib import Path

from fastapi import APIRouter, Depends, Response

STATIC = Path(__file__).parents[1] / "static"

_POLICY = {
    # The page loads only its own files, calls only its own service, and never turns a string into markup.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'self'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    # Browsers revalidate each file by its ETag, so that files of different versions are never mixed.
    "Cache-Control": "no-cache",
}

# The system may map .js to another type, and browsers refuse modules with an unknown type.
mimetypes.add_type("text/javascript", ".js")


async def add_policy(response: Response) -> None:
    """Set the headers that restrict what a browser may do with these files."""
    response.headers.update(_POLICY)


router = APIRouter(dependencies=[Depends(add_policy)])
# Matches after all other routes. No fallback: a missing file is a 404, as everywhere else.
router.frontend("/", directory=STATIC, fallback=None, check_dir=True)
