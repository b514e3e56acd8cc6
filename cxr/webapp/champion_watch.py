"""The registry, looked at every few seconds: when the champion moves, the page answers with the new one.

The new version is loaded beside the old one, which answers meanwhile. A registry that is away is told of once and the
old version stays; so does it where the new one is not what was registered.
"""

from __future__ import annotations

import logging
import threading
import time

from cxr.common.errors import CxrError
from cxr.inference.classifier import Classifier, load_classifier
from cxr.registry.versions import Version, fetch_bundle, get_version
from cxr.webapp.engine import Engine
from cxr.webapp.model_info import Card, read_card

_REFUSED_AGAIN_SECONDS = 60.0  # between two tries of a version that could not be loaded

log = logging.getLogger("cxr.webapp")


class ChampionWatch:
    """The thread that keeps `engine` on the version `model`, an alias or a number; `card` says what is in use."""

    def __init__(self, engine: Engine, *, model: str, fast: bool, every_seconds: float) -> None:
        self.engine, self.model, self.fast, self.every_seconds = engine, model, fast, every_seconds
        self.card: Card | None = None
        self._refused: tuple[Version, float] | None = None
        self._is_away = False
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="registry", daemon=True)

    def start(self) -> None:
        """Begin to look; the first look loads the model."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more. A load that has begun is left alone: it ends with the process."""
        self._stopped.set()

    def _watch(self) -> None:
        while not self._stopped.is_set():
            self.look()
            self._stopped.wait(self.every_seconds)

    def look(self) -> None:
        """Ask for the version once, and load it where it is another one."""
        try:
            version = get_version(self.model)
        except CxrError as error:
            if not self._is_away:
                log.warning("page: %s; %s", error, self._stays())
            self._is_away = True
            return
        if self._is_away:
            log.info("page: the registry answers again")
        self._is_away = False
        current = self.engine.current
        if (current is None or version.number != current.number) and not self._was_refused(version):
            self._load(version)

    def _was_refused(self, version: Version) -> bool:
        if self._refused is None or self._refused[0] != version:
            return False
        return time.monotonic() - self._refused[1] < _REFUSED_AGAIN_SECONDS

    def _load(self, version: Version) -> None:
        try:
            classifier = load_classifier(
                fetch_bundle(version), number=version.number, engine="openvino" if self.fast else "torch"
            )
            _warm_up(classifier)
            card = read_card(version, classifier)
        except Exception as error:  # damaged files fail in many ways, and the version in use must go on answering
            told = str(error) if isinstance(error, CxrError) else f"it failed with {type(error).__name__}"
            log.error("page: version %s cannot be used: %s; %s", version.number, told, self._stays())
            self.engine.metrics.reloads.labels("refused").inc()
            self._refused = (version, time.monotonic())
            return
        self._refused = None
        self.use(classifier, card)
        self.engine.metrics.reloads.labels("loaded").inc()
        log.info("page: version %s answers, computed by %s", version.number, classifier.engine)
        _ = classifier.network  # heat is always computed by torch; loaded now, the first reader need not wait for it

    def use(self, classifier: Classifier, card: Card) -> None:
        """Answer new images with `classifier`."""
        self.card = card
        self.engine.use(classifier)

    def _stays(self) -> str:
        current = self.engine.current
        return f"version {current.number} goes on answering" if current else "no image is answered until it can"


def _warm_up(classifier: Classifier) -> None:
    """Let the network compute once, so that the first image does not wait for what is set up on first use."""
    import numpy as np

    side = classifier.spec.preprocessing.image_size_px
    classifier.answer(np.zeros((1, side, side), np.uint8))
