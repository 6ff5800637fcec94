"""Every setting of the service, in one object, read from the environment once at the start."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import limits
from annotated_types import Ge, Gt, Le
from pydantic import AfterValidator, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

PROJECT = Path(__file__).resolve().parents[1]
LESSONS = PROJECT / "solutions"
WEIGHTS = Path(__file__).resolve().parent / "models" / "weights"


def _parsed_rate_limit(rule: str) -> str:
    limits.parse(rule)
    return rule


RateLimit = Annotated[str, AfterValidator(_parsed_rate_limit)]
RedisUrl = Annotated[str, Field(pattern="^rediss?://")]


class Placement(StrEnum):
    """Where a model runs when the service runs on Ray Serve."""

    INLINE = "inline"
    """In the process of each API replica: best for a small CPU model."""

    DEPLOYMENT = "deployment"
    """In replicas of its own, behind a handle: best for a large or GPU model."""


class Settings(BaseSettings):
    """Each comes from the environment variable ``WORKSHOP_<NAME>``, or a bare name where that is the custom."""

    model_config = SettingsConfigDict(env_prefix="WORKSHOP_", frozen=True, validate_by_name=True)

    artifact: Path = PROJECT / "artifacts" / "tumour-classifier"
    database_url: Annotated[str, Field(validation_alias="DATABASE_URL")] = (
        f"sqlite+aiosqlite:///{PROJECT}/artifacts/service.sqlite"
    )

    max_body_bytes: Annotated[int, Gt(0)] = 4 * 2**20
    predict_timeout_s: Annotated[float, Gt(0)] = 10.0

    batching: bool = True
    """Predict requests that wait together in one call."""
    batch_max_rows: Annotated[int, Ge(1)] = 1024
    queue_max_rows: Annotated[int, Ge(1)] = 16384
    """Rows that may wait in one process; above it, requests are turned away with a 503."""

    language_models: bool = True
    """Off: the tumour classifier alone, which needs no PyTorch and a quarter of the memory."""
    draft_model: str = str(WEIGHTS / "workshop-draft")
    """The cascade's cheap model: a folder, or a name on the Hugging Face hub."""
    main_model: str = str(WEIGHTS / "workshop-main")
    """The cascade's better model: a folder, or a name on the hub, or on the server that LLM_BASE_URL names."""
    llm_base_url: Annotated[str | None, Field(validation_alias="LLM_BASE_URL")] = None
    """An OpenAI-compatible server that runs ``main_model`` for us, such as ``http://127.0.0.1:9000/v1``."""
    llm_api_key: Annotated[SecretStr | None, Field(validation_alias="LLM_API_KEY")] = None
    generate_timeout_s: Annotated[float, Gt(0)] = 60.0
    """How long an answer, or the next piece of a stream, may take."""

    retriever_artifact: Path = PROJECT / "artifacts" / "retriever"
    embedding_model: str | None = None
    """A sentence-transformers model, by folder or hub name; by default TF-IDF with truncated SVD, which needs none."""

    rag_threshold: Annotated[float, Ge(0), Le(1)] = 0.42
    """Score of the best source from which there is an answer. With the default embedding, 97 of 100 held-out questions
    reach it, and 4 of 100 about something else. Another embedding has another scale: measure it."""

    cascade_threshold: Annotated[float, Ge(0), Le(1)] = 0.97
    """Quality above which a draft is the answer: the geometric mean of its tokens' probabilities."""
    draft_cost: Annotated[float, Ge(0)] = 0.0001
    """Dollars for 1000 tokens, of prompt and answer together."""
    main_cost: Annotated[float, Ge(0)] = 0.001
    """Dollars for 1000 tokens, of prompt and answer together."""
    daily_budget: Annotated[float, Gt(0)] | None = None
    """Dollars that one principal may spend on a day (UTC); above it, requests get a 402."""
    rate_limits: dict[str, RateLimit] = {}
    """How often a principal may ask, as JSON: ``{"/v1": "600/minute", "/v1/query": "10/minute"}``. Above it: 429."""
    redis_url: Annotated[RedisUrl | None, Field(validation_alias="REDIS_URL")] = None
    """Counts requests and keeps embeddings for all replicas together, such as ``redis://127.0.0.1``. Without one, each
    has its own."""
    api_keys: dict[SecretStr, str] = {}
    """Bearer keys and the principals they stand for, as JSON. Without any, a key is the principal's own name."""
    wrong_keys_limit: RateLimit = "30/minute"
    """How many wrong keys may come from an address before the answer is 429. A right key is always let in."""

    placement: Placement = Placement.INLINE
    api_replicas: Annotated[int, Ge(1)] = 1
    classifier_replicas: Annotated[int, Ge(1)] = 1
    language_model_replicas: Annotated[int, Ge(1)] = 1
    ray_cpus: Annotated[int, Ge(1)] | None = None
    """Logical CPUs of our own Ray: how many replicas it places, not how many cores they may use. By default, enough."""
    object_store_mb: Annotated[int, Ge(75)] = 75
    """Ray's shared memory. Requests here are small: Ray's minimum is enough."""
