"""Writes docs/openapi.json, the service's OpenAPI document as it was last reviewed: `python -m docs.openapi`."""

import json
from pathlib import Path

from tests.stand_ins import application, draft, main

FILE = Path(__file__).with_suffix(".json")


def document() -> str:
    """The document of a service with all its parts, as text."""
    app = application(Path("unused"), draft(), main())
    return json.dumps(app.openapi(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(document())
