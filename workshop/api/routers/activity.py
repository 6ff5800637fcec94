"""What the language models are doing, and what they have done."""

from fastapi import APIRouter

from workshop.api.dependencies import ClockDep, GeneratorsDep, UsageDep
from workshop.api.schemas.activity import ModelActivity
from workshop.api.schemas.queries import Stats

router = APIRouter()


@router.get("/activity", summary="Show what the language models are doing", tags=["service"])
async def activity(generators: GeneratorsDep) -> dict[str, ModelActivity]:
    """Counters of each model, for the replica that answers this request. `/v1/stats` covers the whole service."""
    return {name: ModelActivity.model_validate(await generator.activity()) for name, generator in generators.items()}


@router.get("/stats", summary="Show the number of answers and their cost", tags=["cascade"])
async def stats(usage: UsageDep, clock: ClockDep) -> Stats:
    """Number and cost of the answers, and the models that gave them, for the whole service and across restarts."""
    return Stats.of(await usage.totals(), clock.uptime_s)
