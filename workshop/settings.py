"""Every setting of the service, in one object, read from the environment once at the start."""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from enum import StrEnum
from math import ceil
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from annotated_types import Ge, Gt, Le
from limits import parse_many
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    IPvAnyNetwork,
    SecretStr,
    StringConstraints,
    Tag,
    ValidationError,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    YamlConfigSettingsSource,
)
from yaml import YAMLError

from workshop.contracts.errors import StartError
from workshop.contracts.principals import Role
from workshop.logs import LogFormat

PROJECT = Path(__file__).resolve().parents[1]
LESSONS = PROJECT / "solutions"
WEIGHTS = Path(__file__).resolve().parent / "models" / "weights"

PREFIX = "WORKSHOP_"
SECRETS = (
    "api_keys",
    "token_keys",
    "llm_api_key",
    "draft_api_key",
    "embedding_api_key",
    "openai_api_key",
    "anthropic_api_key",
)
MAX_REQUESTS = 1_000_000
MAX_WINDOW_S = 366 * 86_400
MIN_TOKEN_KEY = 32


def _rate_limit(rule: str) -> str:
    limits = parse_many(rule)
    if len(limits) > 1:
        raise ValueError("only one limit is allowed")
    if not (1 <= limits[0].amount <= MAX_REQUESTS and limits[0].get_expiry() <= MAX_WINDOW_S):
        raise ValueError(f"a limit should be 1 to {MAX_REQUESTS} requests, within a year at most")
    return rule


def _from_json(value: object) -> object:
    """Parse a variable as JSON. Pydantic's own error for invalid JSON would show the text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value, object_pairs_hook=_without_repetition)
    except (json.JSONDecodeError, RecursionError):
        raise ValueError("it should be JSON") from None


def _without_repetition(pairs: list[tuple[str, object]]) -> dict[str, object]:
    names = dict(pairs)
    if len(names) < len(pairs):
        raise ValueError("the same name appears twice")
    return names


def _api_keys(value: object) -> object:
    """Validated here as a whole, because Pydantic's own errors would show the wrong key."""
    value = _from_json(value)
    if value is None:
        return None
    if not isinstance(value, Mapping) or not value:
        raise ValueError('it should be JSON such as {"a key": "a principal"}, with at least one key')
    for key, owner in value.items():
        if not re.fullmatch(r"[!-~]{1,256}", key.get_secret_value() if isinstance(key, SecretStr) else str(key)):
            raise ValueError("a key should have 1 to 256 characters of ASCII, and no blank")
        principal = owner.get("principal") if isinstance(owner, Mapping) else getattr(owner, "principal", owner)
        if not (isinstance(principal, str) and principal.isprintable() and 1 <= len(principal.strip()) <= 256):
            raise ValueError("a principal should be text of 1 to 256 characters")
    return {key: {"principal": owner} if isinstance(owner, str) else owner for key, owner in value.items()}


def _token_keys(value: object) -> object:
    """The same for the keys that sign tokens."""
    value = _from_json(value)
    if value is None:
        return None
    if not isinstance(value, Mapping) or not value:
        raise ValueError('it should be JSON such as {"2026-11": "a secret"}, with at least one key')
    for key_id, key in value.items():
        if not re.fullmatch(r"[!-~]{1,64}", str(key_id)):
            raise ValueError("the id of a key should have 1 to 64 characters of ASCII, and no blank")
        secret = key.get_secret_value() if isinstance(key, SecretStr) else key
        if not (isinstance(secret, str) and MIN_TOKEN_KEY <= len(secret) <= 1024):
            raise ValueError(f"a key should be text of {MIN_TOKEN_KEY} to 1024 characters")
        if len(set(secret)) < MIN_TOKEN_KEY // 4:
            raise ValueError("a key should be random: python -c 'import secrets; print(secrets.token_urlsafe(32))'")
    return value


def _sendable(key: SecretStr) -> SecretStr:
    """Otherwise it would fail in an HTTP header, with an error that shows it."""
    if not re.fullmatch(r"[!-~]*", key.get_secret_value()):
        raise ValueError("it should be ASCII, with no blank and no line break")
    return key


_REGISTERED = re.compile(r"models:/(?P<name>[\w. -]+)@champion")


def _location(value: str) -> str:
    if value.startswith("models:") and not _REGISTERED.fullmatch(value):
        raise ValueError("a registered model should be given as models:/NAME@champion")
    return value


def _registry_uri(value: str) -> str:
    if re.match("https?://[^/]*@", value):  # the model's files would be read, and logged, with it
        raise ValueError("the URL of a server should have no password")
    return value


FromJson = (NoDecode, BeforeValidator(_from_json))
Seconds = Annotated[float, Gt(0), Le(86_400)]
Delay = Annotated[float, Ge(0), Le(86_400)]
Dollars = Annotated[float, Ge(0), Le(1e9)]
Rows = Annotated[int, Ge(1), Le(10**9)]
Replicas = Annotated[int, Ge(1), Le(10_000)]
RateLimit = Annotated[str, AfterValidator(_rate_limit)]
Origin = Annotated[str, StringConstraints(to_lower=True, pattern=r"^https?://[^/\s]+$")]
Location = Annotated[str, StringConstraints(min_length=1), BeforeValidator(str), AfterValidator(_location)]
RedisUrl = Annotated[str, Field(pattern="^rediss?://")]
LogLevel = Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(lambda value: str(value).lower())]
BaseUrl = Annotated[str, Field(pattern=r"^https?://([\w.-]+|\[[\da-f:]+\])(:\d{1,5})?(/[^\s?#]*)?$")]
Protocol = Literal["openai", "anthropic"]
ServerKey = Annotated[SecretStr, AfterValidator(_sendable)]


@dataclass(frozen=True)
class ModelServer:
    """A server that runs a model for us."""

    protocol: Protocol
    base_url: str
    api_key: str | None = field(repr=False)


class Placement(StrEnum):
    """Where a model runs when the service runs on Ray Serve."""

    INLINE = "inline"
    """In the process of each API replica: best for a small CPU model."""

    DEPLOYMENT = "deployment"
    """In replicas of its own, behind a handle: best for a large or GPU model."""


class Part(BaseModel):
    """A part of the settings."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class Autoscaling(Part):
    """Let Serve choose how many replicas run, by how many requests are under way."""

    min_replicas: Replicas = 1
    max_replicas: Replicas
    target_ongoing_requests: Annotated[float, Gt(0), Le(10_000)] = 2.0
    """In each replica, on average: above it Serve starts replicas, below it stops some."""
    upscale_delay_s: Delay = 3.0
    """How long there must be too few replicas before Serve starts some. Its own default is 30 s."""
    downscale_delay_s: Delay = 30.0
    """How long there must be too many before Serve stops some. Its own default is ten minutes."""

    @model_validator(mode="after")
    def _check_range(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError("min_replicas should not be above max_replicas")
        return self


def _kind_of_replicas(value: object) -> str:
    return "autoscaling" if isinstance(value, Mapping | Autoscaling) else "number"


class DeploymentOptions(Part):
    """How Ray Serve runs a deployment."""

    replicas: Annotated[
        Annotated[Replicas, Tag("number")] | Annotated[Autoscaling, Tag("autoscaling")],
        Discriminator(_kind_of_replicas),
    ] = 1
    cpus: Annotated[float, Gt(0), Le(10_000)] = 1.0
    """Logical CPUs that each replica reserves."""
    gpus: Annotated[float, Ge(0), Le(1_000)] = 0.0
    """GPUs that each replica gets; several may share one: ``0.5``."""
    max_ongoing_requests: Annotated[int, Ge(1), Le(1_000_000)] = 100
    """Requests that a replica takes at the same time; others wait at their callers."""
    max_surge_percent: Annotated[int, Ge(0), Le(100)] = 20
    """How many percent more replicas than usual there may be during an update, rounded up: each new one is ready before
    an old one stops. 0 where there is no room for another one: then the old one stops first, and its requests wait."""

    @property
    def max_replicas(self) -> int:
        """How many replicas there may be."""
        return self.replicas.max_replicas if isinstance(self.replicas, Autoscaling) else self.replicas

    @property
    def max_calls(self) -> int:
        """How many concurrent calls keep all replicas busy, and make Serve scale up to all of them."""
        if isinstance(self.replicas, Autoscaling):
            return ceil(self.replicas.max_replicas * self.replicas.target_ongoing_requests)
        return self.replicas


class ModelDeploymentOptions(DeploymentOptions):
    """The same for a model, which may also run without a deployment."""

    placement: Placement | None = None
    """By default, as ``WORKSHOP_PLACEMENT`` says."""


class KeyOwner(Part):
    """Who uses an API key."""

    principal: str
    role: Role = Role.MEMBER


class Deployments(Part):
    """How each deployment runs: the API, and the models that do not run in its process."""

    # Requests should wait in the micro-batcher's queue, not in front of the API.
    api: DeploymentOptions = DeploymentOptions(max_ongoing_requests=1000)
    classifier: ModelDeploymentOptions = ModelDeploymentOptions()
    language_models: ModelDeploymentOptions = ModelDeploymentOptions()
    retriever: ModelDeploymentOptions = ModelDeploymentOptions()
    rag: ModelDeploymentOptions = ModelDeploymentOptions()
    """Can be a deployment only if the retriever and the main model are, too."""


class Settings(BaseSettings):
    """Each comes from the environment variable ``WORKSHOP_<NAME>``, or one without the prefix where that is usual."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_nested_delimiter="__", frozen=True, validate_by_name=True, hide_input_in_errors=True
    )

    settings_file: Path | None = None
    """A YAML file with settings by name: ``placement: deployment``. Environment variables override it."""

    artifact: Location = str(PROJECT / "artifacts" / "tumour-classifier")
    """The tumour classifier: a folder, a URL that fsspec knows, such as ``s3://bucket/folder`` or ``hf://owner/name``,
    or ``models:/NAME@champion``, a registered model, of which the active version answers."""
    customer_artifacts: dict[str, Location] = {}
    """The classifiers of customers who have their own, by the ids of the customers: folders or URLs."""
    max_loaded_models: Annotated[int, Ge(1), Le(10_000)] = 16
    """How many of those stay in memory, in each process or replica: the ones that were used last. In a deployment, the
    versions of a registered model count too."""
    mlflow_tracking_uri: Annotated[
        str, AfterValidator(_registry_uri), Field(validation_alias="MLFLOW_TRACKING_URI")
    ] = f"sqlite:///{PROJECT}/artifacts/mlflow.sqlite"
    """Where models are registered: MLflow's server or a database."""
    mlflow_files: Annotated[Location, Field(validation_alias="MLFLOW_ARTIFACTS_DESTINATION")] = str(
        PROJECT / "artifacts" / "mlflow"
    )
    """A folder or a URL for their files, unless a server decides that."""
    registry_poll_s: Seconds = 5.0
    """How often the service looks which versions should answer."""
    max_challenger_failures: Annotated[int, Ge(1), Le(99)] = 5
    """Of the last 100 requests to a version on trial, in one process. Above it, the version is withdrawn."""
    database_url: Annotated[str, Field(validation_alias="DATABASE_URL")] = (
        f"sqlite+aiosqlite:///{PROJECT}/artifacts/service.sqlite"
    )

    log_format: LogFormat | None = None
    """``text`` or ``json``. By default, text on a terminal and JSON elsewhere."""
    log_level: LogLevel = "info"
    """The lowest level of our own lines: ``debug``, ``info``, ``warning`` or ``error``."""

    max_body_bytes: Annotated[int, Gt(0), Le(2**31)] = 4 * 2**20
    body_timeout_s: Seconds = 60.0
    """How long a client may take to send a request's body; above it, 408."""
    predict_timeout_s: Seconds = 10.0

    files_url: str = f"file://{PROJECT}/artifacts/files"
    """Where uploaded files and their results are: a folder that all replicas share, or any URL that fsspec knows."""
    max_file_bytes: Annotated[int, Gt(0), Le(2**40)] = 128 * 2**20
    file_timeout_s: Seconds = 600.0
    """How long a client may take to send a file; above it, 408."""
    max_stored_bytes: Annotated[int, Gt(0), Le(2**50)] = 4 * 2**30
    """Space for all files together. While a file is read, it counts fourfold; above it, uploads are turned away."""
    max_stored_bytes_per_principal: Annotated[int, Gt(0), Le(2**50)] = 2 * 2**30
    """The same for the files of one principal; above it, 429."""
    result_ttl_s: Seconds = 86_400.0
    """How long the files of a prediction job are kept."""

    batching: bool = True
    """Predict waiting requests together, in a single call."""
    batch_max_rows: Rows = 1024
    queue_max_rows: Rows = 16384
    """Rows that may wait in one process; above it, requests are turned away with a 503."""

    language_models: bool = True
    """Off: the tumour classifier alone, which needs no PyTorch and a quarter of the memory."""
    draft_model: str = str(WEIGHTS / "workshop-draft")
    """The cascade's cheap model: a folder, a name on the Hugging Face hub, or on the server of ``draft_base_url``."""
    draft_base_url: BaseUrl | None = None
    """An OpenAI-compatible server that runs the draft model for us, such as ``http://127.0.0.1:9000/v1``. It has to
    return log-probabilities: a draft's quality is computed from them. Anthropic's protocol has none."""
    draft_api_key: ServerKey | None = None
    """For that server; without one, ``openai_api_key``."""
    main_model: str = str(WEIGHTS / "workshop-main")
    """The cascade's better model: a folder, a name on the hub, or on the server that LLM_BASE_URL names."""
    model_cache_tokens: Annotated[int, Ge(64), Le(10**9)] | None = None
    """How many tokens all answers under way of one of our models may have together. By default 8192 on a CPU, and on a
    GPU what fits into its memory: where models or replicas share one, each should have its part."""
    llm_base_url: Annotated[BaseUrl | None, Field(validation_alias="LLM_BASE_URL")] = None
    """A server that runs the main model for us: ``https://api.openai.com/v1``, or ``https://api.anthropic.com``."""
    llm_protocol: Annotated[Protocol, Field(validation_alias="LLM_PROTOCOL")] = "openai"
    """What that server speaks."""
    llm_api_key: Annotated[ServerKey | None, Field(validation_alias="LLM_API_KEY")] = None
    """For that server; without one, the key of its protocol."""
    openai_api_key: Annotated[ServerKey | None, Field(validation_alias="OPENAI_API_KEY")] = None
    anthropic_api_key: Annotated[ServerKey | None, Field(validation_alias="ANTHROPIC_API_KEY")] = None
    default_model: str | None = None
    """The model that answers a request that names none; by default the main model."""
    generate_timeout_s: Seconds = 60.0
    """How long the next piece of an answer may take, streamed or not."""

    retriever_artifact: Path = PROJECT / "artifacts" / "retriever"
    embedding_model: str | None = None
    """A sentence-transformers model, by folder or hub name, or a model on the server of ``embedding_base_url``. By
    default TF-IDF with truncated SVD, which needs none."""
    embedding_base_url: BaseUrl | None = None
    """An OpenAI-compatible server that embeds for us."""
    embedding_api_key: ServerKey | None = None
    """For that server; without one, ``openai_api_key``."""

    rag_threshold: Annotated[float, Ge(0), Le(1)] = 0.42
    """Lowest score of the best source that gets an answer. With the default embedding, 97 of 100 held-out questions
    reach it, and 4 of 100 off-topic ones. Another embedding has another scale: measure yours."""

    cascade_threshold: Annotated[float, Ge(0), Le(1)] = 0.97
    """Quality above which a draft is the answer: the geometric mean of its tokens' probabilities."""
    draft_cost: Dollars = 0.0001
    """Dollars for 1000 tokens, of prompt and answer together."""
    main_cost: Dollars = 0.001
    """Dollars for 1000 tokens, of prompt and answer together."""
    daily_budget: Annotated[Dollars, Gt(0)] | None = None
    """Dollars that one principal may spend on a day (UTC); above it, requests get a 402."""
    rate_limits: Annotated[dict[str, RateLimit], *FromJson] = {}
    """How often a principal may ask, as JSON: ``{"/v1": "600/minute", "/v1/query": "10/minute"}``. Above it: 429."""
    redis_url: Annotated[RedisUrl | None, Field(validation_alias="REDIS_URL")] = None
    """A Redis where all replicas count requests, and cache embeddings and predictions, such as ``redis://127.0.0.1``.
    Without one, each has its own."""
    cache_predictions: bool = False
    """Answer the same rows again without asking the classifier. It pays for a slow model only: see
    ``benchmarks/caching.py``."""
    cache_mb: Annotated[int, Ge(1), Le(10**6)] = 32
    """Memory for cached embeddings and predictions in each process, without a Redis."""
    api_keys: Annotated[dict[SecretStr, KeyOwner] | None, NoDecode, BeforeValidator(_api_keys)] = None
    """Bearer keys of machines and whom they stand for, as JSON: ``{"a key": "ada"}``, or ``{"a key": {"principal":
    "ada", "role": "viewer"}}``. Without these and ``token_keys``, any key is taken as the caller's name."""
    token_keys: Annotated[dict[str, SecretStr] | None, NoDecode, BeforeValidator(_token_keys)] = None
    """Secrets that sign the tokens of users who log in, by id, as JSON: ``{"2026-11": "a secret"}``. The first one
    signs, each may check: to replace a key, put the new one in front. Without this, nobody can log in."""
    token_issuer: str = "workshop"
    """The name of the service in its tokens. Two services that share keys need two names."""
    access_token_s: Seconds = 900.0
    session_s: Annotated[float, Gt(0), Le(366 * 86_400)] = 7 * 86_400.0
    """How long a log-in lasts. Refresh tokens and the playground's cookie are valid as long."""
    wrong_keys_limit: RateLimit = "30/minute"
    """How many wrong keys, tokens and passwords may come from an address before the answer is 429. A right key is
    always let in."""
    anonymous_limit: RateLimit | None = None
    """How often an address may ask without a key, where the service has keys or users. By default not at all."""
    unverified_names: bool = False
    """Whether a service without keys may listen to other machines, whose callers choose their own names."""

    earlier_clients: bool = True
    """Whether the unversioned routes of the earlier services exist, beside ``/v1``."""
    trusted_proxies: Annotated[tuple[IPvAnyNetwork, ...], *FromJson] = ()
    """Addresses and networks of proxies whose ``X-Forwarded-For`` and ``X-Forwarded-Proto`` are trusted, as JSON:
    ``["10.0.0.0/8"]``. From any other address they are ignored: otherwise each caller could choose the address that it
    is counted by."""
    allowed_origins: Annotated[frozenset[Origin], *FromJson] = frozenset()
    """Origins whose pages may use the service with a key or token, besides its own, as JSON:
    ``["https://example.com"]``."""
    max_websockets: Annotated[int, Ge(1), Le(100_000)] = 500
    """How many WebSockets one process keeps open."""
    max_websockets_per_principal: Annotated[int, Ge(1), Le(100_000)] = 100

    placement: Placement = Placement.INLINE
    """For every model whose own options do not set it."""
    deployments: Deployments = Deployments()
    """Options of each deployment: ``WORKSHOP_DEPLOYMENTS__CLASSIFIER__REPLICAS=2``, or all as JSON."""
    ray_cpus: Replicas | None = None
    """Logical CPUs of our own Ray: a limit on replicas, not on the cores that they use. By default, enough for all."""
    ray_gpus: Replicas | None = None
    """Logical GPUs of our own Ray. By default those of this machine; if it has none, enough for all, on the CPU."""
    object_store_mb: Annotated[int, Ge(75), Le(10**9)] = 75
    """Ray's shared memory. Requests here are small: Ray's minimum is enough."""

    @model_validator(mode="after")
    def _check_language_models(self) -> Self:
        if self.main_server is None and "llm_protocol" in self.model_fields_set:
            raise ValueError("LLM_PROTOCOL is set, but LLM_BASE_URL is not")
        if (name := Path(self.draft_model).name) == Path(self.main_model).name:
            raise ValueError(f"draft_model and main_model should have different names; both are called {name}")
        if self.embedding_base_url is not None and self.embedding_model is None:
            raise ValueError("embedding_base_url is set, but embedding_model is not")
        return self

    @model_validator(mode="after")
    def _check_rag(self) -> Self:
        if self.deployments.rag.placement is Placement.DEPLOYMENT and "rag" not in self.deployed:
            raise ValueError("deployments.rag can be a deployment only if the retriever and the main model are")
        return self

    @property
    def draft_server(self) -> ModelServer | None:
        """Where the draft model runs; None for this service."""
        return self._server(self.draft_base_url, self.draft_api_key)

    @property
    def main_server(self) -> ModelServer | None:
        """Where the main model runs; None for this service."""
        return self._server(self.llm_base_url, self.llm_api_key, self.llm_protocol)

    @property
    def embedding_server(self) -> ModelServer | None:
        """Where the embedding model runs; None for this service."""
        return self._server(self.embedding_base_url, self.embedding_api_key)

    def _server(self, url: str | None, key: SecretStr | None, protocol: Protocol = "openai") -> ModelServer | None:
        if url is None:
            return None
        if key is None:
            key = self.anthropic_api_key if protocol == "anthropic" else self.openai_api_key
        return ModelServer(protocol, url, key.get_secret_value() if key else None)

    @property
    def local_models(self) -> dict[str, str]:
        """Folder or hub name of each language model that runs in this service, by the name that callers use."""
        if not self.language_models:
            return {}
        models = {self.draft_model: self.draft_server, self.main_model: self.main_server}
        return {Path(model).name: model for model, server in models.items() if server is None}

    @property
    def registered_model(self) -> str | None:
        """The name of the registered model that ``artifact`` stands for."""
        found = _REGISTERED.fullmatch(self.artifact)
        return found["name"] if found else None

    @property
    def has_many_classifiers(self) -> bool:
        """Whether callers may get different ones."""
        return bool(self.customer_artifacts) or self.registered_model is not None

    @property
    def checks_credentials(self) -> bool:
        """Whether callers need a key or a token."""
        return self.api_keys is not None or self.token_keys is not None

    @property
    def cache_bytes(self) -> int:
        """``cache_mb`` in bytes."""
        return self.cache_mb * 2**20

    @property
    def deployed(self) -> dict[str, DeploymentOptions]:
        """The options of each deployment that the service has on Ray Serve, by its name in ``deployments``."""
        models = {"classifier": self.deployments.classifier}
        if self.local_models:
            models["language_models"] = self.deployments.language_models
        if self.language_models:
            models["retriever"] = self.deployments.retriever
        apart = {name: options for name, options in models.items() if self._has_own_deployment(options)}
        has_parts = {"language_models", "retriever"} <= apart.keys() and self.main_server is None
        if has_parts and self._has_own_deployment(self.deployments.rag):
            apart["rag"] = self.deployments.rag
        return {"api": self.deployments.api, **apart}

    @property
    def exports_traces(self) -> bool:
        """Whether OpenTelemetry's own variables name a collector."""
        endpoint = "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
        disabled = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
        return any(os.environ.get(name) for name in endpoint) and not disabled

    def _has_own_deployment(self, options: ModelDeploymentOptions) -> bool:
        return (options.placement or self.placement) is Placement.DEPLOYMENT

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], *sources: Any, **named: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Values in code, then environment variables, then the file that ``WORKSHOP_SETTINGS_FILE`` names."""
        code, environment = named["init_settings"], named["env_settings"]
        if not (file := environment().get("settings_file")):
            return code, environment
        if not Path(file).is_file():
            raise StartError(f"there is no file {file}, which {PREFIX}SETTINGS_FILE names")
        try:
            return code, environment, YamlConfigSettingsSource(settings_cls, file)
        except (YAMLError, ValueError, TypeError, OSError):
            raise StartError(f"cannot read {file}: it should be YAML, with settings by their names") from None


def read_settings(**values: Any) -> Settings:
    """The settings that the environment describes; ``values`` come before it.

    Raises:
        StartError: a variable is misspelt, or its value is wrong. The message shows no secret.
    """
    variables = _variables()
    for name in map(str.upper, os.environ):
        if name.startswith(PREFIX) and name.partition("__")[0] not in variables:
            usual = name.removeprefix(PREFIX)
            [nearest] = [usual] if usual in variables else get_close_matches(name, variables, n=1, cutoff=0)
            raise StartError(f"there is no setting {name}; did you mean {nearest}?")
    try:
        return Settings(**values)
    except SettingsError as error:
        raise StartError.because("cannot read the settings", error) from None
    except ValidationError as error:
        [first, *_] = error.errors(include_url=False)
        if not first["loc"]:  # it concerns several settings
            raise StartError(f"wrong settings: {first['msg']}") from None
        setting, *inside = first["loc"]
        place = f"{setting}{''.join(f'[{part!r}]' for part in inside)}"
        value = repr(first["input"])
        is_secret = _may_be_secret(variables.get(str(setting), str(setting)), value)
        raise StartError(f"setting {place}{'' if is_secret else '=' + value}: {first['msg']}") from None


def settings_in(file: Path) -> tuple[dict[str, Any], list[str]]:
    """The settings in a file that ``read_settings`` can read, and the names of others in it that may be secret."""
    found: dict[str, Any] = yaml.safe_load(file.read_text()) or {}
    names = _variables()
    secrets = [name for name, value in found.items() if _may_be_secret(names.get(name, name), value)]
    return {name: value for name, value in found.items() if name not in secrets}, secrets


def variable_of(name: str) -> str:
    """The environment variable of a setting."""
    return next(variable for variable, setting in _variables().items() if name in {setting, variable})


def _may_be_secret(name: str, value: object) -> bool:
    return name in SECRETS or re.search("://[^/]*@", str(value)) is not None  # a URL may hold a password


def _variables() -> dict[str, str]:
    """The settings' names by those of their environment variables."""
    return {str(field.validation_alias or PREFIX + name.upper()): name for name, field in Settings.model_fields.items()}
