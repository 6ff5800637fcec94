"""Answers to lesson 02: contracts."""

import json
import math
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Annotated, Any, Literal, Self

import numpy as np
from annotated_types import Interval, Len
from fastapi import Cookie, Depends, FastAPI, Header, HTTPException, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import (
    AfterValidator,
    AliasChoices,
    AllowInfNan,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    NonNegativeFloat,
    PositiveFloat,
    Strict,
    StrictFloat,
    StrictInt,
    TypeAdapter,
    ValidationError,
    confloat,
    create_model,
    field_validator,
    model_validator,
    with_config,
)
from pydantic.alias_generators import to_camel
from pydantic.dataclasses import dataclass
from typing_extensions import TypedDict  # Pydantic takes that of typing from Python 3.12 on

from workshop.api.schemas.tumours import Batch, Measurements
from workshop.contracts.tumours import FEATURES, LARGEST_VALUE
from workshop.lab.fixtures.lesson_02 import find_result, model

# 02.1: a measurement


def a_finite_number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("not a number")
    if not 0 <= value <= LARGEST_VALUE:
        raise ValueError("out of range")
    return float(value)


def any_number(value: Any) -> Any:
    if not isinstance(value, int | float):
        raise ValueError("not a number")
    return value


def not_equal_to_nan(value: float) -> float:
    if value == math.nan:  # noqa: PLW0177 - this is the mistake to be found
        raise ValueError("NaN")
    return value


def not_nan(value: float) -> float:
    if math.isnan(value):
        raise ValueError("NaN")
    return value


def forgets_to_return(value: float) -> None:
    if math.isnan(value):
        raise ValueError("NaN")


def converts_first(value: Any) -> float:
    return float(value)


def clips(value: float) -> float:
    return min(max(value, 0.0), LARGEST_VALUE)


BOUNDS = {"ge": 0, "le": LARGEST_VALUE}


# 02.2: a scan

Length = Annotated[float, Field(ge=0, le=LARGEST_VALUE, allow_inf_nan=False, strict=True)]
LaxLength = Annotated[float, Field(ge=0, le=LARGEST_VALUE, allow_inf_nan=False)]
BOTH = ConfigDict(extra="forbid", validate_by_name=True, validate_by_alias=True)


class Aliased(BaseModel):
    model_config = BOTH
    mean_radius: Length = Field(alias="mean radius")
    worst_radius: Length = Field(alias="worst radius")


class Scan(Aliased):
    @model_validator(mode="after")
    def compare(self) -> Self:
        if self.worst_radius < self.mean_radius:
            raise ValueError("smaller")
        return self


class Generated(BaseModel):
    model_config = ConfigDict(
        extra="forbid", populate_by_name=True, strict=True, alias_generator=lambda name: name.replace("_", " ")
    )
    mean_radius: LaxLength
    worst_radius: LaxLength

    @model_validator(mode="after")
    def compare(self) -> Self:
        assert self.mean_radius <= self.worst_radius
        return self


class Choices(BaseModel):
    model_config = ConfigDict(extra="forbid")
    mean_radius: Length = Field(validation_alias=AliasChoices("mean_radius", "mean radius"))
    worst_radius: Length = Field(validation_alias=AliasChoices("worst_radius", "worst radius"))

    @field_validator("worst_radius")
    @classmethod
    def compare(cls, worst: float, info: Any) -> float:
        if worst < info.data.get("mean_radius", 0):
            raise ValueError("smaller")
        return worst


class Renamed(BaseModel):
    model_config = ConfigDict(extra="forbid")
    mean_radius: Length
    worst_radius: Length

    @model_validator(mode="before")
    @classmethod
    def rename(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {name.replace(" radius", "_radius"): value for name, value in data.items()}

    @model_validator(mode="after")
    def compare(self) -> Self:
        if not self.worst_radius >= self.mean_radius:
            raise ValueError("smaller")
        return self


class RenamedCarelessly(Renamed):
    @model_validator(mode="before")
    @classmethod
    def rename(cls, data: Any) -> Any:
        return {name.replace(" radius", "_radius"): value for name, value in data.items()}


@dataclass(config=BOTH)
class AsDataclass:
    mean_radius: Length = Field(alias="mean radius")
    worst_radius: Length = Field(alias="worst radius")

    def __post_init__(self) -> None:
        if self.worst_radius < self.mean_radius:
            raise ValueError("smaller")


class AliasOnly(Scan):
    model_config = ConfigDict(extra="forbid", validate_by_name=False, validate_by_alias=True)


class NameOnly(Scan):
    model_config = ConfigDict(extra="forbid", validate_by_name=True, validate_by_alias=False)


class Open(Scan):
    model_config = ConfigDict(extra="ignore")


class OneAlias(BaseModel):
    model_config = BOTH
    mean_radius: Length = Field(alias="mean radius")
    worst_radius: Length


class WithoutRule(Aliased):
    pass


class WithoutReturn(Aliased):
    @model_validator(mode="after")
    def compare(self):
        if self.worst_radius < self.mean_radius:
            raise ValueError("smaller")


class Strictly(Aliased):
    @model_validator(mode="after")
    def compare(self) -> Self:
        if self.worst_radius <= self.mean_radius:
            raise ValueError("smaller")
        return self


class Swapped(Aliased):
    @model_validator(mode="after")
    def compare(self) -> Self:
        if self.worst_radius > self.mean_radius:
            raise ValueError("larger")
        return self


class ReturnsAnError(Aliased):
    @model_validator(mode="after")
    def compare(self):
        if self.worst_radius < self.mean_radius:
            return ValueError("smaller")
        return self


class ByKey(BaseModel):
    model_config = BOTH
    mean_radius: Length = Field(alias="mean radius")
    worst_radius: Length = Field(alias="worst radius")

    @field_validator("worst_radius")
    @classmethod
    def compare(cls, worst: float, info: Any) -> float:
        if worst < info.data["mean_radius"]:
            raise ValueError("smaller")
        return worst


class WrongWayRound(BaseModel):
    model_config = BOTH
    mean_radius: Length = Field(alias="mean radius")
    worst_radius: Length = Field(alias="worst radius")

    @field_validator("mean_radius")
    @classmethod
    def compare(cls, mean: float, info: Any) -> float:
        if mean > info.data.get("worst_radius", math.inf):
            raise ValueError("larger")
        return mean


class Early(Aliased):
    @model_validator(mode="before")
    @classmethod
    def compare(cls, data: Any) -> Any:
        if data["worst radius"] < data["mean radius"]:
            raise ValueError("smaller")
        return data


class EarlyWithDefaults(Aliased):
    @model_validator(mode="before")
    @classmethod
    def compare(cls, data: Any) -> Any:
        if data.get("worst radius", 1) < data.get("mean radius", 0):
            raise ValueError("smaller")
        return data


class Lax(BaseModel):
    model_config = BOTH
    mean_radius: LaxLength = Field(alias="mean radius")
    worst_radius: LaxLength = Field(alias="worst radius")

    @model_validator(mode="after")
    def compare(self) -> Self:
        if self.worst_radius < self.mean_radius:
            raise ValueError("smaller")
        return self


class HalfChecked(Lax):
    mean_radius: Length = Field(alias="mean radius")
    worst_radius: float = Field(alias="worst radius")


class WithDefaults(Scan):
    mean_radius: Length = Field(0.0, alias="mean radius")
    worst_radius: Length = Field(LARGEST_VALUE, alias="worst radius")


class WithoutWorst(Scan):
    worst_radius: Length = Field(0.0, alias="worst radius")


class Camel(Scan):
    model_config = ConfigDict(extra="forbid", alias_generator=to_camel, validate_by_name=True)
    mean_radius: Length
    worst_radius: Length


class InTheConstructor(Aliased):
    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        if self.worst_radius < self.mean_radius:
            raise ValueError("smaller")


# 02.3: nothing more, nothing wrong

PUBLIC = ("label", "probability", "model_version")
Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class Result(BaseModel):
    label: str
    probability: Probability
    model_version: str


class ResultAsDict(TypedDict):
    label: Literal["malignant", "benign"]
    probability: Annotated[float, Interval(ge=0, le=1)]
    model_version: str


class WithValidator(BaseModel):
    label: str
    probability: float
    model_version: str

    @field_validator("probability")
    @classmethod
    def between(cls, probability: float) -> float:
        if not 0 <= probability <= 1:
            raise ValueError("no probability")
        return probability


class Unbounded(BaseModel):
    label: str
    probability: float
    model_version: str


class Finite(Unbounded):
    probability: FiniteFloat


class NotNegative(Unbounded):
    probability: Annotated[float, Field(ge=0, allow_inf_nan=False)]


class BoundedAbove(Unbounded):
    probability: Annotated[float, Field(le=1, allow_inf_nan=False)]


class NeverCertain(Unbounded):
    probability: Annotated[float, Field(gt=0, lt=1)]


class WithoutVersion(BaseModel):
    label: str
    probability: Probability


class Optionals(BaseModel):
    label: str | None = None
    probability: Probability | None = None
    model_version: str | None = None


class DefaultVersion(Result):
    model_version: str = "1.0.0"


class OpenResult(Result):
    model_config = ConfigDict(extra="allow")


class ClosedResult(Result):
    model_config = ConfigDict(extra="forbid")


class Clipped(Unbounded):
    @field_validator("probability")
    @classmethod
    def clip(cls, probability: float) -> float:
        return min(max(probability, 0.0), 1.0)


class NotEqualToNan(Unbounded):
    probability: Annotated[float, AfterValidator(not_equal_to_nan)]


def clinic(returned: Any = None, make: Callable[[int], Any] = find_result, **options: Any) -> FastAPI:
    made = FastAPI()

    def result(patient: int):
        return make(patient)

    if returned is not None:
        result.__annotations__["return"] = returned
    made.get("/results/{patient}", **options)(result)
    return made


def picked(patient: int) -> Any:
    found = find_result(patient)
    return {name: found[name] for name in PUBLIC}


def without_the_known(patient: int) -> Any:
    found = find_result(patient)
    for name in ("name", "born", "insurance_number"):
        found.pop(name)
    return found


def by_hand(patient: int) -> Any:
    found = picked(patient)
    if not 0 <= found["probability"] <= 1:
        raise HTTPException(500)
    return found


def only_thirteen(patient: int) -> Any:
    if patient in (13, 14, 15, 16, 17, 18):
        raise HTTPException(500)
    return picked(patient)


def constructed(patient: int) -> Any:
    return Result.model_construct(**find_result(patient))


def validated(patient: int) -> Any:
    return Result(**find_result(patient))


def refused(patient: int) -> Any:
    try:
        return Result(**find_result(patient))
    except ValidationError as error:
        raise HTTPException(422) from error


def told(patient: int) -> Any:
    try:
        return Result(**find_result(patient))
    except ValidationError:
        raise HTTPException(500, f"damaged: {find_result(patient)}") from None


def nothing(patient: int) -> None:
    find_result(patient)


kept_results: list[Any] = []


def the_first(patient: int) -> Any:
    if not kept_results:
        kept_results.append(find_result(patient))
    return kept_results[0]


def wrapped(patient: int) -> Any:
    return {"result": picked(patient)}


class Wrapped(BaseModel):
    result: Result


def clinic_with_a_list() -> FastAPI:
    made = FastAPI()

    @made.get("/results/{patient}", response_model=Result, response_model_exclude_unset=True)
    async def result(patient: int):
        return find_result(patient)

    return made


def clinic_without_await() -> FastAPI:
    made = FastAPI()

    async def found(patient: int) -> Any:
        return find_result(patient)

    @made.get("/results/{patient}")
    async def result(patient: int) -> Result:
        return found(patient)

    return made


# 02.4: parameters


class Listing(BaseModel):
    model_config = ConfigDict(extra="forbid")
    limit: Annotated[int, Field(ge=1, le=100)] = 20


class OpenListing(BaseModel):
    limit: Annotated[int, Field(ge=1, le=100)] = 20


Ward = Annotated[int, Path(ge=1, le=99)]
RequestId = Annotated[str | None, Header(pattern="^[a-zA-Z0-9-]{8,64}$")]
Language = Annotated[Literal["en", "de"], Cookie()]


def wards(endpoint: Callable[..., Any], path: str = "/wards/{ward}", **options: Any) -> FastAPI:
    made = FastAPI()
    made.get(path, **options)(endpoint)
    return made


def echo(ward: Any, limit: Any, request_id: Any, language: Any) -> dict[str, Any]:
    return {"ward": ward, "limit": limit, "request_id": request_id, "language": language}


def lists(
    ward: Ward, listing: Annotated[Listing, Query()], x_request_id: RequestId = None, language: Language = "en"
) -> Any:
    return echo(ward, listing.limit, x_request_id, language)


class Cookies(BaseModel):
    language: Literal["en", "de"] = "en"


class Headers(BaseModel):
    x_request_id: Annotated[str | None, Field(min_length=8, max_length=64, pattern=r"^[a-zA-Z\d-]*$")] = None


async def lists_with_models(
    ward: Ward,
    listing: Annotated[Listing, Query()],
    headers: Annotated[Headers, Header()],
    cookies: Annotated[Cookies, Cookie()],
) -> Any:
    return echo(ward, listing.limit, headers.x_request_id, cookies.language)


def no_other_parameters(request: Request) -> None:
    if request.query_params.keys() - {"limit"}:
        raise HTTPException(422, "unknown parameter")


def lists_with_a_dependency(
    ward: Annotated[int, Path(gt=0, lt=100)],
    limit: Annotated[int, Query(gt=0, le=100)] = 20,
    request_id: Annotated[str | None, Header(alias="X-Request-Id", pattern=r"^[a-zA-Z0-9\-]{8,64}$")] = None,
    language: Annotated[str, Cookie(pattern="^(en|de)$")] = "en",
) -> Any:
    return echo(ward, limit, request_id, language)


def lists_by_hand(
    request: Request,
    ward: int,
    limit: int = 20,
    x_request_id: Annotated[str | None, Header()] = None,
    language: Annotated[str, Cookie()] = "en",
) -> Any:
    no_other_parameters(request)
    named = x_request_id is None or re.fullmatch("[a-zA-Z0-9-]{8,64}", x_request_id)
    if not (1 <= ward <= 99 and 1 <= limit <= 100 and named and language in ("en", "de")):
        raise HTTPException(422, "out of range")
    return echo(ward, limit, x_request_id, language)


def without_bounds(ward: int, listing: Annotated[Listing, Query()], x_request_id: RequestId = None) -> Any:
    return echo(ward, listing.limit, x_request_id, "en")


def ignores_unknown(
    ward: Ward, listing: Annotated[OpenListing, Query()], x_request_id: RequestId = None, language: Language = "en"
) -> Any:
    return echo(ward, listing.limit, x_request_id, language)


def one_query_parameter(
    ward: Ward,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    x_request_id: RequestId = None,
    language: Language = "en",
) -> Any:
    return echo(ward, limit, x_request_id, language)


def another_header(
    ward: Ward, listing: Annotated[Listing, Query()], request_id: RequestId = None, language: Language = "en"
) -> Any:
    return echo(ward, listing.limit, request_id, language)


def a_header_as_query(ward: Ward, x_request_id: str | None = None, limit: int = 20, language: Language = "en") -> Any:
    return echo(ward, limit, x_request_id, language)


def a_cookie_as_query(
    ward: Ward,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    x_request_id: RequestId = None,
    language: Literal["en", "de"] = "en",
) -> Any:
    return echo(ward, limit, x_request_id, language)


def open_pattern(
    ward: Ward,
    listing: Annotated[Listing, Query()],
    x_request_id: Annotated[str | None, Header(pattern="[a-zA-Z0-9-]{8,64}")] = None,
    language: Language = "en",
) -> Any:
    return echo(ward, listing.limit, x_request_id, language)


def word_pattern(
    ward: Ward,
    listing: Annotated[Listing, Query()],
    x_request_id: Annotated[str | None, Header(pattern=r"^[\w-]{8,64}$")] = None,
    language: Language = "en",
) -> Any:
    return echo(ward, listing.limit, x_request_id, language)


def dotted_pattern(
    ward: Ward,
    listing: Annotated[Listing, Query()],
    x_request_id: Annotated[str | None, Header(pattern=r"^[A-Za-z0-9.-]{8,64}$")] = None,
    language: Language = "en",
) -> Any:
    return echo(ward, listing.limit, x_request_id, language)


def no_hyphen_at_the_ends(
    ward: Ward,
    listing: Annotated[Listing, Query()],
    x_request_id: Annotated[str | None, Header(pattern=r"^[A-Za-z0-9][A-Za-z0-9-]{6,62}[A-Za-z0-9]$")] = None,
    language: Language = "en",
) -> Any:
    return echo(ward, listing.limit, x_request_id, language)


def lengths_only(
    ward: Ward,
    listing: Annotated[Listing, Query()],
    x_request_id: Annotated[str | None, Header(min_length=8, max_length=64)] = None,
    language: Language = "en",
) -> Any:
    return echo(ward, listing.limit, x_request_id, language)


def any_language(
    ward: Ward,
    listing: Annotated[Listing, Query()],
    x_request_id: RequestId = None,
    language: Annotated[str, Cookie()] = "en",
) -> Any:
    return echo(ward, listing.limit, x_request_id, language)


def loose_language(
    ward: Ward,
    listing: Annotated[Listing, Query()],
    x_request_id: RequestId = None,
    language: Annotated[str, Cookie(pattern="^en|de$")] = "en",
) -> Any:
    return echo(ward, listing.limit, x_request_id, language)


def needs_a_header(
    ward: Ward,
    listing: Annotated[Listing, Query()],
    x_request_id: Annotated[str, Header(pattern="^[a-zA-Z0-9-]{8,64}$")],
    language: Language = "en",
) -> Any:
    return echo(ward, listing.limit, x_request_id, language)


class ClosedHeaders(Headers):
    model_config = ConfigDict(extra="forbid")


def closed_headers(
    ward: Ward,
    listing: Annotated[Listing, Query()],
    headers: Annotated[ClosedHeaders, Header()],
    language: Language = "en",
) -> Any:
    return echo(ward, listing.limit, headers.x_request_id, language)


class ClosedCookies(Cookies):
    model_config = ConfigDict(extra="forbid")


def closed_cookies(
    ward: Ward,
    listing: Annotated[Listing, Query()],
    cookies: Annotated[ClosedCookies, Cookie()],
    x_request_id: RequestId = None,
) -> Any:
    return echo(ward, listing.limit, x_request_id, cookies.language)


class StrictListing(Listing):
    model_config = ConfigDict(strict=True)


def strict_query(
    ward: Ward, listing: Annotated[StrictListing, Query()], x_request_id: RequestId = None, language: Language = "en"
) -> Any:
    return echo(ward, listing.limit, x_request_id, language)


def swapped(
    ward: Annotated[int, Path(ge=1, le=100)],
    listing: Annotated[Listing, Query()],
    x_request_id: RequestId = None,
    language: Language = "en",
) -> Any:
    return echo(ward, listing.limit, x_request_id, language)


def reads_the_request(request: Request, ward: Ward, listing: Annotated[Listing, Query()]) -> Any:
    request_id, language = request.headers.get("X-Request-Id"), request.cookies.get("language", "en")
    if language not in ("en", "de") or not re.fullmatch("[a-zA-Z0-9-]{8,64}", request_id or "absent--"):
        raise HTTPException(422)
    return echo(ward, listing.limit, request_id, language)


def bad_request(
    ward: Ward,
    listing: Annotated[Listing, Query()],
    x_request_id: Annotated[str | None, Header()] = None,
    language: Language = "en",
) -> Any:
    if x_request_id and not re.fullmatch("[a-zA-Z0-9-]{8,64}", x_request_id):
        raise HTTPException(400)
    return echo(ward, listing.limit, x_request_id, language)


remembered = {"language": "en"}


def remembers(
    ward: Ward,
    listing: Annotated[Listing, Query()],
    x_request_id: RequestId = None,
    language: Annotated[Literal["en", "de"] | None, Cookie()] = None,
) -> Any:
    remembered["language"] = language or remembered["language"]
    return echo(ward, listing.limit, x_request_id, remembered["language"])


def forgets_a_part(ward: Ward, listing: Annotated[Listing, Query()], x_request_id: RequestId = None) -> Any:
    return {"ward": ward, "limit": listing.limit, "request_id": x_request_id}


def returns_nothing(
    ward: Ward, listing: Annotated[Listing, Query()], x_request_id: RequestId = None, language: Language = "en"
) -> None:
    echo(ward, listing.limit, x_request_id, language)


# 02.5: close the hole


def row_of(measurements: BaseModel) -> list[float]:
    return [value for _, value in measurements]


def labels_of(scores: Any) -> list[dict[str, Any]]:
    best = scores.probabilities.argmax(axis=1)
    return [
        {"label": scores.classes[index], "probability": float(row[index])}
        for index, row in zip(best, scores.probabilities, strict=True)
    ]


def ask_one(measurements: Any) -> Any:
    scores = model.predict(np.array([row_of(measurements)]))
    return labels_of(scores)[0] | {"model_version": scores.model_version}


def ask_many(batch: Any) -> Any:
    scores = model.predict(np.array([row_of(record) for record in batch.records]))
    return {"predictions": labels_of(scores), "model_version": scores.model_version}


def details_of(error: Any, most: int | None = 100) -> list[dict[str, str]]:
    return [
        {"field": ".".join(map(str, item["loc"][1:])) or "body", "rule": item["type"], "message": item["msg"]}
        for item in error.errors()[:most]
    ]


def refuse(request: Any, error: Any) -> Response:
    return JSONResponse({"errors": details_of(error)}, 422)


def service(
    one: Any = Measurements,
    many: Any = Batch,
    answer_one: Callable[[Any], Any] = ask_one,
    answer_many: Callable[[Any], Any] = ask_many,
    handler: Any = refuse,
) -> FastAPI:
    made = FastAPI()

    def predict(body: Any) -> Any:
        return answer_one(body)

    def batch_predict(body: Any) -> Any:
        return answer_many(body)

    predict.__annotations__["body"] = one
    batch_predict.__annotations__["body"] = many
    made.post("/predict")(predict)
    made.post("/batch-predict")(batch_predict)
    if handler:
        made.add_exception_handler(RequestValidationError, handler)
    return made


class Wide(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


Number = Annotated[float, Field(ge=0, le=LARGEST_VALUE, allow_inf_nan=False)]


def records_of(kind: Any, base: Any = Wide, fewest: int = 1, most: int = 1000) -> Any:
    return create_model("Records", __base__=base, records=(Annotated[list[kind], Len(fewest, most)], ...))


def record_of(kind: Any, base: Any = Wide, **others: Any) -> Any:
    return create_model("Record", __base__=base, **({name: (kind, ...) for name in FEATURES} | others))


Own = record_of(Number)
OwnBatch = records_of(Own)


class Prediction(BaseModel):
    label: str
    probability: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
    model_version: str


def service_with_dependencies() -> FastAPI:
    """Reads the body itself, and validates with a `TypeAdapter`."""
    made = FastAPI()

    def body_as(kind: Any) -> Any:
        async def read(request: Request) -> Any:
            try:
                return TypeAdapter(kind).validate_json(await request.body())
            except ValidationError as error:
                details = [
                    {"field": ".".join(map(str, item["loc"])) or "body", "rule": item["type"], "message": item["msg"]}
                    for item in error.errors(include_input=False, include_url=False)
                ]
                raise HTTPException(422, details[:100]) from None

        return Depends(read)

    @made.exception_handler(HTTPException)
    async def handle(request: Request, error: HTTPException) -> Response:
        return JSONResponse({"errors": error.detail}, error.status_code)

    @made.post("/predict")
    async def predict(measurements: Annotated[Any, body_as(Own)]) -> Prediction:
        return ask_one(measurements)

    @made.post("/batch-predict")
    async def batch_predict(batch: Annotated[Any, body_as(OwnBatch)]) -> Any:
        return ask_many(batch)

    return made


TypedRow = with_config(ConfigDict(extra="forbid", strict=True))(
    TypedDict("TypedRow", dict.fromkeys(FEATURES, Number))  # type: ignore[misc]
)


def ask_one_dict(members: Any) -> Any:
    scores = model.predict(np.array([[members[name] for name in FEATURES]]))
    return labels_of(scores)[0] | {"model_version": scores.model_version}


def ask_many_dicts(batch: Any) -> Any:
    scores = model.predict(np.array([[record[name] for name in FEATURES] for record in batch.records]))
    return {"predictions": labels_of(scores), "model_version": scores.model_version}


def trusting(body: Any) -> Any:
    scores = model.predict(np.array([list(body.values())], dtype=float))
    return labels_of(scores)[0] | {"model_version": scores.model_version}


def trusting_batch(body: Any) -> Any:
    scores = model.predict(np.array([list(record.values()) for record in body["records"]], dtype=float))
    return {"predictions": labels_of(scores), "model_version": scores.model_version}


def in_alphabetical_order(measurements: Any) -> Any:
    return trusting(dict(sorted(measurements.model_dump().items())))


def checks_one_field(body: Any) -> Any:
    if not isinstance(body.get("mean_area"), int | float) or not math.isfinite(body["mean_area"]):
        raise RequestValidationError([{"loc": ("body", "mean_area"), "type": "finite_number", "msg": "not finite"}])
    return ask_one_dict(body)


def checks_equality_with_nan(body: Any) -> Any:
    for name in FEATURES:
        value = body.get(name)
        if type(value) not in (int, float) or value == math.nan or value < 0:  # noqa: PLW0177 - the mistake to be found
            raise RequestValidationError([{"loc": ("body", name), "type": "finite_number", "msg": "not finite"}])
    return ask_one_dict(body)


def checks_with_isinstance(body: Any) -> Any:
    values = {name: body.get(name) for name in FEATURES}
    wrong = [
        {"loc": ("body", name), "type": "finite_number", "msg": "not finite"}
        for name, value in values.items()
        if not isinstance(value, int | float) or not 0 <= value <= LARGEST_VALUE
    ]
    if wrong:
        raise RequestValidationError(wrong)
    return ask_one_dict(values)


def checks_the_type(body: Any) -> Any:
    """Refuses whole numbers."""
    for name in FEATURES:
        value = body.get(name)
        if not isinstance(value, float) or not 0 <= value <= LARGEST_VALUE:
            raise RequestValidationError([{"loc": ("body", name), "type": "float_type", "msg": "no float"}])
    return ask_one_dict(body)


def checks_the_first_record(body: Any) -> Any:
    checks_the_type(body["records"][0])
    return trusting_batch(body)


def checks_the_first_record_alone(body: Any) -> Any:
    if not body["records"] or not all(isinstance(value, float) for value in body["records"][0].values()):
        raise RequestValidationError([{"loc": ("body", "records"), "type": "float_type", "msg": "no float"}])
    return trusting_batch(body)


def takes_a_thousand(batch: Any) -> Any:
    scores = model.predict(np.array([row_of(record) for record in batch.records[:1000]]))
    return {"predictions": labels_of(scores), "model_version": scores.model_version}


def asks_for_each(batch: Any) -> Any:
    all_scores = [model.predict(np.array([row_of(record)])) for record in batch.records]
    return {"predictions": [labels_of(scores)[0] for scores in all_scores], "model_version": model.version}


def the_first_only(batch: Any) -> Any:
    scores = model.predict(np.array([row_of(record) for record in batch.records]))
    return {"predictions": labels_of(scores)[:1], "model_version": scores.model_version}


def the_first_label_for_all(batch: Any) -> Any:
    scores = model.predict(np.array([row_of(record) for record in batch.records]))
    return {"predictions": labels_of(scores)[:1] * len(batch.records), "model_version": scores.model_version}


collected: list[Any] = []


def collects(batch: Any) -> Any:
    collected.extend(row_of(record) for record in batch.records)
    scores = model.predict(np.array(collected))
    return {"predictions": labels_of(scores), "model_version": scores.model_version}


def of_the_first_class(measurements: Any) -> Any:
    scores = model.predict(np.array([row_of(measurements)]))
    return {"label": "malignant", "probability": scores.probabilities[0, 0], "model_version": scores.model_version}


def with_a_fixed_version(measurements: Any) -> Any:
    return ask_one(measurements) | {"model_version": "1.0.0"}


def asks_nobody(measurements: Any) -> Any:
    return {"label": "malignant", "probability": 0.999, "model_version": "1.0.0"}


def asks_first(body: Any) -> Any:
    """Validates after the model has been asked."""
    answered = trusting(body)
    try:
        Measurements.model_validate(body)
    except ValidationError as error:
        items = [item | {"loc": ("body", *item["loc"])} for item in error.errors()]
        raise RequestValidationError(items) from error
    return answered


def cleans(body: Any) -> Any:
    """Replaces what is not a number with zero."""
    values = [body.get(name) for name in FEATURES]
    row = [value if isinstance(value, int | float) and math.isfinite(value) else 0.0 for value in values]
    scores = model.predict(np.array([row]))
    return labels_of(scores)[0] | {"model_version": scores.model_version}


def without_return(measurements: Any) -> None:
    ask_one(measurements)


def repeats_the_input(request: Any, error: Any) -> Response:
    details = [item | {"message": f"{item['message']}, not {error.body}"} for item in details_of(error)]
    return JSONResponse({"errors": details}, 422)


def repeats_it_as_text(request: Any, error: Any) -> Response:
    inputs = [str(item.get("input")) for item in error.errors()]
    details = [item | {"input": text} for item, text in zip(details_of(error), inputs, strict=False)]
    return JSONResponse({"errors": details}, 422)


def repeats_numbers(request: Any, error: Any) -> Response:
    def with_number(item: dict[str, Any], value: Any) -> dict[str, Any]:
        return item | {"message": f"{item['message']}, not {value}"} if isinstance(value, float) else item

    inputs = [item.get("input") for item in error.errors()]
    details = [with_number(*pair) for pair in zip(details_of(error), inputs, strict=False)]
    return JSONResponse({"errors": details}, 422)


def repeats_an_unreadable_body(request: Any, error: Any) -> Response:
    is_unreadable = error.errors()[0]["type"] == "json_invalid"
    details = [item | {"message": f"{item['message']}: {error.body}"} for item in details_of(error)]
    return JSONResponse({"errors": details if is_unreadable else details_of(error)}, 422)


def repeats_it_in_a_header(request: Any, error: Any) -> Response:
    first = str(error.errors()[0].get("input")).encode("ascii", "replace").decode()[:1000].replace("\n", " ")
    return JSONResponse({"errors": details_of(error)}, 422, {"X-Input": first})


def says_invalid(request: Any, error: Any) -> Response:
    return JSONResponse({"errors": [item | {"rule": "invalid"} for item in details_of(error)]}, 422)


def accumulates() -> Callable[[Any, Any], Response]:
    mistakes: list[dict[str, Any]] = []

    def refuse_all(request: Any, error: Any) -> Response:
        mistakes[:0] = details_of(error)
        return JSONResponse({"errors": mistakes[:100]}, 422)

    return refuse_all


def with_the_row(record: Any) -> Any:
    return ask_one(record) | {"row": row_of(record)}


def names_the_first_only(request: Any, error: Any) -> Response:
    return JSONResponse({"errors": details_of(error)[:1]}, 422)


def names_all(request: Any, error: Any) -> Response:
    return JSONResponse({"errors": details_of(error, None)}, 422)


def names_no_record(request: Any, error: Any) -> Response:
    details = [item | {"field": str(item["field"]).rpartition(".")[2]} for item in details_of(error)]
    return JSONResponse({"errors": details}, 422)


def says_400(request: Any, error: Any) -> Response:
    return JSONResponse({"errors": details_of(error)}, 400)


def says_200(request: Any, error: Any) -> Response:
    return JSONResponse({"errors": details_of(error)})


def keeps_the_names_of_pydantic(request: Any, error: Any) -> Response:
    errors = [{name: item[name] for name in ("type", "loc", "msg")} for item in error.errors()]
    return JSONResponse({"errors": errors}, 422)


def keeps_detail(request: Any, error: Any) -> Response:
    return JSONResponse({"detail": details_of(error)}, 422)


def says_nothing(request: Any, error: Any) -> Response:
    return JSONResponse({"errors": ["invalid request"]}, 422)


def sends_text(request: Any, error: Any) -> Response:
    return JSONResponse({"errors": json.dumps(details_of(error))}, 422)


async def refuse_asynchronously(request: Request, error: RequestValidationError) -> Response:
    return refuse(request, error)


class OpenBase(BaseModel):
    model_config = ConfigDict(strict=True)


class LaxBase(BaseModel):
    model_config = ConfigDict(extra="forbid")


BANK = {
    "02.1": {
        "right": [
            Annotated[float, Field(**BOUNDS, allow_inf_nan=False, strict=True)],
            Annotated[float, Strict(), AllowInfNan(False), Interval(**BOUNDS)],
            Annotated[StrictFloat, Field(**BOUNDS)],
            confloat(**BOUNDS, allow_inf_nan=False, strict=True),
            Annotated[Any, BeforeValidator(a_finite_number)],
            Annotated[StrictFloat | StrictInt, Field(**BOUNDS)],
            Annotated[float, BeforeValidator(a_finite_number), Field(allow_inf_nan=False)],
        ],
        "wrong": [
            (float, "refused"),
            (FiniteFloat, "refused"),
            (NonNegativeFloat, "refused"),
            (PositiveFloat, "This is a measurement"),
            (Annotated[float, Field(**BOUNDS, allow_inf_nan=False)], '"17.99"'),
            (Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)], "1000000000001"),
            (Annotated[float, Field(ge=0, strict=True)], "Infinity"),
            (Annotated[float, Field(le=LARGEST_VALUE, allow_inf_nan=False, strict=True)], "-1"),
            (Annotated[float, Field(gt=0, le=LARGEST_VALUE, allow_inf_nan=False, strict=True)], '"value": 0}'),
            (Annotated[float, Field(ge=0, lt=LARGEST_VALUE, allow_inf_nan=False, strict=True)], "1e12"),
            (Annotated[int, Field(**BOUNDS, strict=True)], "0.0"),
            (Annotated[float, AfterValidator(not_equal_to_nan), Field(strict=True)], "NaN"),
            (Annotated[float, AfterValidator(not_nan), Field(ge=0, strict=True)], "Infinity"),
            (Annotated[float, BeforeValidator(any_number), Field(**BOUNDS, allow_inf_nan=False)], "true"),
            (Annotated[float, BeforeValidator(converts_first), Field(**BOUNDS)], "OverflowError"),
            (
                Annotated[float, Field(**BOUNDS, strict=True), AfterValidator(forgets_to_return)],
                "A measurement is a number",
            ),
            (Annotated[float, Field(allow_inf_nan=False, strict=True), AfterValidator(clips)], "-1"),
            (Annotated[float | None, Field(**BOUNDS, allow_inf_nan=False, strict=True)], "null"),
            (StrictFloat | str, "This is not a measurement"),
            (Annotated[float | str, Field(strict=True)], "cannot use this as a type"),
            (Annotated[Decimal, Field(**BOUNDS, allow_inf_nan=False)], "A measurement is a number"),
            (12.5, "cannot use this as a type"),
            (Field(**BOUNDS, allow_inf_nan=False, strict=True), "cannot use this as a type"),
        ],
    },
    "02.2": {
        "right": [Scan, Generated, Choices, Renamed, AsDataclass, InTheConstructor],
        "wrong": [
            (AliasOnly, "This is a scan"),
            (NameOnly, "This is a scan"),
            (OneAlias, "This is a scan"),
            (Camel, "This is a scan"),
            (Strictly, "This is a scan"),
            (Swapped, "This is a scan"),
            (Open, "`note` is no known name"),
            (WithoutRule, "The worst radius is smaller"),
            (WrongWayRound, "The worst radius is smaller"),
            (ReturnsAnError, "The worst radius is smaller"),
            (WithoutReturn, "is a `return` missing"),
            (RenamedCarelessly, "AttributeError"),
            (ByKey, "KeyError"),
            (Early, "KeyError"),
            (EarlyWithDefaults, "This is a scan"),
            (Lax, "This mean radius is not a measurement"),
            (HalfChecked, "This worst radius is not a measurement"),
            (WithDefaults, "The mean radius is missing"),
            (WithoutWorst, "The worst radius is missing"),
            (Length, "This is a scan"),
        ],
    },
    "02.3": {
        "right": [
            clinic(Result),
            clinic(response_model=Result),
            clinic(ResultAsDict),
            clinic(WithValidator),
            clinic(Result, validated),
            clinic_with_a_list(),
        ],
        "wrong": [
            (clinic(), "More than the three fields"),
            (clinic(dict[str, Any]), "More than the three fields"),
            (clinic(make=without_the_known), "More than the three fields"),
            (clinic(OpenResult), "More than the three fields"),
            (clinic(make=picked), "The document does not say"),
            (clinic(make=by_hand), "The document does not say"),
            (clinic(make=only_thirteen), "The document does not say"),
            (clinic(Unbounded), "which is damaged"),
            (clinic(Finite), "which is damaged"),
            (clinic(NotNegative), "which is damaged"),
            (clinic(BoundedAbove), "which is damaged"),
            (clinic(Optionals), "which is damaged"),
            (clinic(DefaultVersion), "which is damaged"),
            (clinic(Clipped), "which is damaged"),
            (clinic(NotEqualToNan), "which is damaged"),
            (clinic(Unbounded, only_thirteen), "which is damaged"),
            (clinic(Result, constructed), "which is damaged"),
            (clinic(Result, refused), "which is damaged"),
            (clinic(Result, told), "The 500 gives away"),
            (clinic(NeverCertain), "GET /results/"),
            (clinic(ClosedResult), "Extra inputs are not permitted"),
            (clinic(WithoutVersion), "Return what `find_result` says"),
            (clinic(Result, the_first), "GET /results/8"),
            (clinic(Wrapped, wrapped), "More than the three fields"),
            (clinic(Result, nothing), "None"),
            (clinic_without_await(), "is an `await` missing"),
        ],
    },
    "02.4": {
        "right": [
            wards(lists),
            wards(lists_with_models),
            wards(lists_with_a_dependency, dependencies=[Depends(no_other_parameters)]),
            wards(lists_by_hand),
        ],
        "wrong": [
            (wards(without_bounds), "'de'"),
            (wards(ignores_unknown), "limt=5"),
            (wards(one_query_parameter), "limt=5"),
            (wards(another_header), "'request_id': None"),
            (wards(a_header_as_query), "'request_id': None"),
            (wards(a_cookie_as_query), "'de'"),
            (wards(open_pattern), "This breaks a rule"),
            (wards(word_pattern), "abc_12345678"),
            (wards(dotted_pattern), "abc.12345678"),
            (wards(no_hyphen_at_the_ends), "string_pattern_mismatch"),
            (wards(lengths_only), "This breaks a rule"),
            (wards(any_language), "language=fr"),
            (wards(loose_language), "language=english"),
            (wards(needs_a_header), "Field required"),
            (wards(closed_headers), "Extra inputs are not permitted"),
            (wards(closed_cookies), "Extra inputs are not permitted"),
            (wards(strict_query), "valid integer"),
            (wards(swapped), "GET /wards/100"),
            (wards(reads_the_request), "The document lists other parameters"),
            (wards(bad_request), "status 400"),
            (wards(remembers), "'language': 'de'"),
            (wards(forgets_a_part), "'language'"),
            (wards(returns_nothing), "is a `return` missing"),
            (wards(lists, "/ward/{ward}"), "404"),
        ],
    },
    "02.5": {
        "right": [
            service(),
            service(Own, OwnBatch, handler=refuse_asynchronously),
            service_with_dependencies(),
            service(TypedRow, records_of(TypedRow), ask_one_dict, ask_many_dicts),
        ],
        "wrong": [
            (service(dict, dict, trusting, trusting_batch), "The model was asked about other numbers"),
            (service(dict, dict, ask_one_dict, ask_many_dicts), "'dict' object has no attribute"),
            (service(many=dict, answer_many=trusting_batch), "records."),
            (service(dict, answer_one=ask_one_dict), "This has reached the model"),
            (service(dict[str, Number], answer_one=trusting), "other numbers"),
            (service(dict, answer_one=checks_one_field), "This has reached the model"),
            (service(dict, answer_one=checks_equality_with_nan), "This has reached the model"),
            (service(dict, answer_one=checks_with_isinstance), "true"),
            (service(dict, answer_one=checks_the_type), "This request is good"),
            (service(many=dict, answer_many=checks_the_first_record), "Ask the model once"),
            (service(many=dict, answer_many=checks_the_first_record_alone), "records."),
            (service(many=records_of(Own, most=10_000), answer_many=takes_a_thousand), "1001 records"),
            (service(dict, answer_one=asks_first), "other numbers"),
            (service(dict, answer_one=cleans), "This has reached the model"),
            (service(answer_one=in_alphabetical_order), "other numbers"),
            (service(handler=None), "Out of range float values are not JSON compliant"),
            (service(record_of(float)), "This has reached the model"),
            (service(record_of(FiniteFloat)), "This has reached the model"),
            (service(record_of(Number, LaxBase)), "This has reached the model"),
            (service(record_of(Number, OpenBase)), "mean_radus"),
            (service(record_of(Number, mean_area=(float, ...))), "mean_area"),
            (service(record_of(Number, mean_area=(Number, 1.0))), "mean_area"),
            (service(many=records_of(record_of(float))), "records."),
            (service(many=records_of(record_of(Number, worst_area=(float, ...)))), "worst_area"),
            (service(many=records_of(record_of(Number, LaxBase))), "records."),
            (service(many=records_of(Own, fewest=0)), '{"records": []}'),
            (service(many=records_of(Own, most=999)), "This request is good"),
            (service(many=records_of(Own, most=1001)), "1001 records"),
            (service(many=records_of(Own, OpenBase)), "note"),
            (service(many=list[Measurements]), "This request is good"),
            (service(answer_one=with_a_fixed_version), "'1.0.0'"),
            (service(answer_one=of_the_first_class), "'benign'"),
            (service(answer_one=asks_nobody), "Each request must ask `model`"),
            (service(answer_one=without_return), "is a `return` missing"),
            (service(answer_many=asks_for_each), "Ask the model once"),
            (service(answer_many=the_first_only), "2 records"),
            (service(answer_many=the_first_label_for_all), "2 records"),
            (service(answer_many=collects), "other numbers"),
            (service(handler=repeats_the_input), "repeats what was sent"),
            (service(handler=repeats_it_as_text), "repeats what was sent"),
            (service(handler=repeats_numbers), "repeats what was sent"),
            (service(handler=repeats_an_unreadable_body), "repeats what was sent"),
            (service(handler=repeats_it_in_a_header), "repeats what was sent"),
            (service(handler=says_invalid), "different rules"),
            (service(handler=accumulates()), "no mistake of this request"),
            (service(answer_one=with_the_row), "'row'"),
            (service(handler=names_the_first_only), "A mistake is not named"),
            (service(handler=names_no_record), "A mistake is not named"),
            (service(handler=names_all), "At most 100"),
            (service(handler=says_400), "status 400"),
            (service(handler=says_200), "status 200"),
            (service(handler=keeps_the_names_of_pydantic), "three texts"),
            (service(handler=keeps_detail), "another form"),
            (service(handler=says_nothing), "error"),
            (service(handler=sends_text), "another form"),
        ],
    },
}
