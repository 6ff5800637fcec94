"""What the language models are doing."""

from fastapi import APIRouter

from workshop.api.dependencies import GeneratorsDep
from workshop.api.schemas.activity import ModelActivity

router = APIRouter(tags=["activity"])


@router.get("/activity")
async def activity(generators: GeneratorsDep) -> dict[str, ModelActivity]:
    """The counters of each model, of the replica that happens to answer; ``/v1/stats`` is of the whole service."""
    return {name: ModelActivity.model_validate(await generator.activity()) for name, generator in generators.items()}
