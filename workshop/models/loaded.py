"""Classifiers that are loaded when they are first asked for."""

import asyncio
import logging
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context

from workshop.contracts.errors import UnavailableError
from workshop.models.artifacts import Location
from workshop.models.tumours import TumourClassifier

logger = logging.getLogger(__name__)

LOADS_AT_ONCE = 4
"""Further loads wait. Storage that hangs blocks these threads, and none of those that predict."""


class LoadedClassifiers:
    """Loads each classifier once, however many ask for it at the same time, and forgets those that nobody keeps.

    It keeps none itself: how many stay in memory is up to its user. One that cannot be loaded displaces none.
    """

    def __init__(self) -> None:
        self._models: weakref.WeakValueDictionary[str, TumourClassifier] = weakref.WeakValueDictionary()
        self._loading: dict[str, asyncio.Task[TumourClassifier]] = {}
        self._threads = ThreadPoolExecutor(LOADS_AT_ONCE, "model-loader")

    async def get(self, location: str) -> TumourClassifier:
        """The classifier at a location: see ``artifacts.Location``.

        Raises:
            UnavailableError: it cannot be loaded. The log says why.
        """
        if (model := self._models.get(location)) is not None:
            return model
        if (loading := self._loading.get(location)) is None:
            # An empty context detaches it from this request: others may wait for it too.
            loading = self._loading[location] = asyncio.create_task(self._load(location), context=Context())
        try:
            return await asyncio.shield(loading)
        finally:
            if loading.done():  # if all who wait give up before, it is kept for the next one who asks
                self._loading.pop(location, None)

    async def _load(self, location: str) -> TumourClassifier:
        began = time.perf_counter()
        loop = asyncio.get_running_loop()
        try:
            model = await loop.run_in_executor(self._threads, TumourClassifier.load, location)
        except Exception as error:
            logger.error("cannot load a model: %s", error, exc_info=error)
            del self._loading[location]
            raise UnavailableError("the model cannot be loaded") from error
        url = Location.parse(location).url
        logger.info("loaded the model in %s in %.2f s", url, time.perf_counter() - began)
        weakref.finalize(model, logger.info, "released the model in %s", url).atexit = False
        self._models[location] = model
        return model
