"""What the language models are doing."""

from fastapi import APIRouter

from workshop.api.dependencies import GeneratorsDep
from workshop.api.schemas.activity import ModelActivity

router = APIRouter(tags=["service"])


@router.get("/activity", summary="Show what the language models are doing")
async def activity(generators: GeneratorsDep) -> dict[str, ModelActivity]:
    """Counters of each model, for the replica that answers this request. `/v1/stats` covers the whole service."""
    return {name: ModelActivity.model_validate(await generator.activity()) for name, generator in generators.items()}
