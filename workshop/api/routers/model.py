"""The classifier and its features."""

from fastapi import APIRouter

from workshop.api.dependencies import ModelCardDep
from workshop.api.revalidation import NOT_MODIFIED
from workshop.api.routes import JsonRoute
from workshop.api.schemas.tumours import Feature, ModelMetadata

router = APIRouter(prefix="/model", tags=["model"], route_class=JsonRoute)


@router.get("/metadata", summary="Describe the classifier", responses=NOT_MODIFIED)
async def metadata(card: ModelCardDep) -> ModelMetadata:
    """Name, version and classes of the model, and its quality on rows that it was not trained on."""
    return ModelMetadata(
        name=card.name,
        version=card.version,
        accuracy=card.accuracy,
        f1=card.f1,
        classes=list(card.classes),
        n_features=len(card.features),
    )


@router.get("/features", summary="List the features", responses=NOT_MODIFIED)
async def features(card: ModelCardDep) -> list[Feature]:
    """Names, units and training ranges of the features, in the order of the model's columns."""
    return [Feature.model_validate(feature) for feature in card.features]
