"""What the model is and what it takes."""

from fastapi import APIRouter

from workshop.api.dependencies import ModelCardDep
from workshop.api.schemas.tumours import Feature, ModelMetadata

router = APIRouter(prefix="/model", tags=["model"])


@router.get("/metadata")
async def metadata(card: ModelCardDep) -> ModelMetadata:
    """Name, version and quality."""
    return ModelMetadata(
        name=card.name,
        version=card.version,
        accuracy=card.accuracy,
        f1=card.f1,
        classes=list(card.classes),
        n_features=len(card.features),
    )


@router.get("/features")
async def features(card: ModelCardDep) -> list[Feature]:
    """Names, units, and the range seen in training, in the order of the model's columns."""
    return [Feature.model_validate(feature) for feature in card.features]
