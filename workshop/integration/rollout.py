"""Registered classifiers: other versions are activated, tried out and withdrawn while the service runs."""

import asyncio
import hashlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
from anyio.to_thread import run_sync

from workshop.contracts.classifier import Classifier, FloatMatrix, ModelCard, Scores
from workshop.contracts.errors import InvalidInputError, ModelFailedError, start_errors
from workshop.contracts.metrics import MetricStore, Series
from workshop.contracts.principals import CALLER
from workshop.contracts.registry import VERSION_REQUESTS, ModelRegistry, ModelVersion
from workshop.integration.deadline import deadline

logger = logging.getLogger(__name__)

RECENT = 100
"""Requests by whose failures a version on trial is judged."""
LONGEST_PAUSE_S = 300.0
"""Before a version that cannot be used is tried again. The first pauses are shorter."""


@dataclass(frozen=True, slots=True, eq=False)
class _Running:
    version: ModelVersion
    classifier: Classifier
    cached: Classifier
    failed: deque[bool] = field(default_factory=lambda: deque(maxlen=RECENT))


@dataclass(frozen=True, slots=True)
class _Refusal:
    """How often a version could not be loaded, and when it is tried again, by the event loop's clock."""

    count: int = 0
    until: float = 0.0


class RegisteredClassifier:
    """The versions of a registered classifier that answer now: the champion, and the challenger for some callers.

    A caller gets the same version each time. What the challenger fails to answer, the champion answers, so that nobody
    loses anything through a bad version. If the champion can answer what it cannot, that counts as a failure, and a
    version with too many of them is withdrawn, for all processes.

    Args:
        registry: is asked, every few seconds, which versions should answer.
        open_version: makes a classifier of a version. Blocks.
        cached: puts a cache in front of a classifier.
        metrics: where the requests to each version are counted.
        timeout_s: how long the challenger may take.
        poll_s: how often the registry is asked.
        max_failures: of the challenger, among its last ``RECENT`` requests in this process.

    Raises:
        StartError: the registry does not answer, no version is active, or ``open_version`` cannot open it.
    """

    def __init__(
        self,
        registry: ModelRegistry,
        open_version: Callable[[ModelVersion], Classifier],
        cached: Callable[[Classifier], Classifier],
        metrics: MetricStore,
        *,
        timeout_s: float,
        poll_s: float,
        max_failures: int,
    ) -> None:
        self._registry = registry
        self._open_version = open_version
        self._cached = cached
        self._metrics = metrics
        self._timeout_s = timeout_s
        self._poll_s = poll_s
        self._max_failures = max_failures
        with start_errors():
            self._champion = self._run(registry.rollout().champion)
        self._challenger: _Running | None = None
        self._share = 0.0
        self._refused: dict[ModelVersion, _Refusal] = {}
        self._withdrawn: tuple[ModelVersion, str] | None = None
        self._wakes = asyncio.Event()
        self._following: asyncio.Task[None] | None = None

    @property
    def champion(self) -> Classifier:
        """The champion for all callers, without a cache."""
        return _Champion(lambda: self._champion.classifier)

    def start(self) -> None:
        """Begin to follow the registry."""
        self._following = asyncio.create_task(self._follow())

    async def aclose(self) -> None:
        """Stop following the registry."""
        if self._following is not None:
            self._following.cancel()
            await asyncio.wait([self._following])

    async def card(self) -> ModelCard:
        """The champion's."""
        return await self._champion.classifier.card()

    async def predict(self, rows: FloatMatrix) -> Scores:
        """See ``Classifier.predict``."""
        challenger, champion = self._challenger, self._champion
        failure: Exception | None = None
        if challenger is not None and _draw(challenger.version, CALLER.get()) < self._share:
            try:
                scores = await self._counted(challenger, self._try_out(challenger, rows))
            except InvalidInputError:
                raise
            except Exception as error:
                failure = error
            else:
                challenger.failed.append(False)
                return scores
        scores = await self._counted(champion, champion.cached.predict(rows))
        if challenger is not None and failure is not None:
            self._note_failure(challenger, failure)
        return scores

    async def _try_out(self, challenger: _Running, rows: FloatMatrix) -> Scores:
        async with deadline(self._timeout_s):
            scores = await challenger.cached.predict(rows)
        if (
            scores.probabilities.shape != (len(rows), len(scores.classes))
            or not np.isfinite(scores.probabilities).all()
        ):
            raise ModelFailedError("the model failed")
        return scores

    async def _counted(self, running: _Running, answer: Awaitable[Scores]) -> Scores:
        def count(outcome: str) -> None:
            self._metrics.add(Series.of(VERSION_REQUESTS, version=running.version.number, outcome=outcome))

        try:
            scores = await answer
        except InvalidInputError:
            raise
        except Exception:
            count("failed")
            raise
        count("answered")
        return scores

    def _note_failure(self, challenger: _Running, error: Exception) -> None:
        challenger.failed.append(True)
        logger.warning("version %s failed; the champion answers", challenger.version.number, exc_info=error)
        failures = sum(challenger.failed)
        if failures > self._max_failures and challenger is self._challenger:
            self._challenger = None
            reason = f"{failures} of its last {len(challenger.failed)} requests failed"
            self._withdrawn = challenger.version, reason
            logger.error("version %s is withdrawn: %s", challenger.version.number, reason)
            self._wakes.set()

    async def _follow(self) -> None:
        problems: set[str] = set()
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._poll_s):
                    await self._wakes.wait()
            self._wakes.clear()
            seen = set()
            for step in (self._withdraw, self._catch_up):  # if the first fails, the second goes on
                try:
                    await step()
                except Exception as error:
                    seen.add(str(error))
                    if str(error) not in problems:
                        logger.error("cannot follow the model registry: %s", error, exc_info=error)
            problems = seen

    async def _withdraw(self) -> None:
        if self._withdrawn is not None:
            version, reason = self._withdrawn
            await run_sync(self._registry.withdraw, version.number, reason)
            self._withdrawn = None

    async def _catch_up(self) -> None:
        """Run other versions, if there are any. Whatever is wrong with one, the champion goes on."""
        rollout = await run_sync(self._registry.rollout)
        running = {each.version: each for each in (self._champion, self._challenger) if each is not None}
        if rollout.champion != self._champion.version:
            champion = running.get(rollout.champion) or await self._prepare(rollout.champion)
            if champion is not None:
                self._champion = champion
                logger.info("version %s answers", champion.version.number)
        withdrawn = None if self._withdrawn is None else self._withdrawn[0]  # the registry may not know it yet
        challenger = rollout.challenger
        if challenger is None or challenger in (withdrawn, self._champion.version):
            self._challenger = None
        elif challenger not in running:
            self._challenger = await self._prepare(challenger)
            if self._challenger is not None:
                logger.info("version %s is tried out with %g of the callers", challenger.number, rollout.share)
        else:
            self._challenger = running[challenger]
        self._share = rollout.share

    async def _prepare(self, version: ModelVersion) -> _Running | None:
        """Run a version. If it cannot be loaded, say so once: it is tried again after a while."""
        now = asyncio.get_running_loop().time
        refusal = self._refused.get(version, _Refusal())
        if now() < refusal.until:
            return None
        try:
            running = await run_sync(self._run, version)
            await running.classifier.card()
        except Exception as error:
            if not refusal.count:
                logger.error("cannot use version %s: %s", version.number, error, exc_info=error)
            pause_s = min(self._poll_s * 2 ** min(refusal.count, 10), LONGEST_PAUSE_S)
            self._refused[version] = _Refusal(refusal.count + 1, now() + pause_s)
            return None
        self._refused.pop(version, None)
        return running

    def _run(self, version: ModelVersion) -> _Running:
        classifier = self._open_version(version)
        return _Running(version, classifier, self._cached(classifier))


class _Champion:
    """A classifier that is whatever version is the champion at the time of the call."""

    def __init__(self, current: Callable[[], Classifier]) -> None:
        self._current = current

    async def predict(self, rows: FloatMatrix) -> Scores:
        return await self._current().predict(rows)

    async def card(self) -> ModelCard:
        return await self._current().card()


def _draw(version: ModelVersion, caller: str) -> float:
    """A number from 0 to 1, always the same for this caller and version, in every process."""
    digest = hashlib.sha256(f"{version.number} {caller}".encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64
