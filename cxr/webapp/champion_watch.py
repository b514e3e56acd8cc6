"""Polls the registry; when the champion moves, the web app answers with the new version.

The new version is loaded while the old one goes on answering. If the registry does not respond, or the new version is
damaged, the old version stays in use. A registry outage is logged once.
"""

from __future__ import annotations

import logging
import threading
import time

import numpy as np

from cxr.common.engines import NO_TORCH, Engine, has_torch
from cxr.common.errors import CxrError
from cxr.inference.classifier import Classifier, load_classifier
from cxr.registry.champion.aliases import mismatch
from cxr.registry.versions import Version, fetch_bundle, get_version
from cxr.webapp.batcher import Batcher
from cxr.webapp.model_info import ModelCard, read_card

_RETRY_REJECTED_SECONDS = 60.0  # before a version that could not be loaded is tried again

log = logging.getLogger("cxr.webapp")


class ChampionWatch:
    """The thread that keeps `batcher` on the version `model`, an alias or a number.

    `card` is the model card of the version in use, or None before the first one is loaded. `contradiction` says how the
    alias champion contradicts the audit log; "" where it does not.
    """

    def __init__(self, batcher: Batcher, *, model: str, engine: Engine, poll_seconds: float) -> None:
        self.batcher, self.model, self.engine, self.poll_seconds = batcher, model, engine, poll_seconds
        self.card: ModelCard | None = None
        self.contradiction = ""
        self._rejected: tuple[Version, float] | None = None
        self._is_registry_down = False
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="registry", daemon=True)

    def start(self) -> None:
        """Start polling; the first poll loads the model."""
        self._thread.start()

    def stop(self) -> None:
        """Stop polling. A load in progress is not waited for: it ends with the process."""
        self._stopped.set()

    def _watch(self) -> None:
        while not self._stopped.is_set():
            self.poll()
            self._stopped.wait(self.poll_seconds)

    def poll(self) -> None:
        """Look up the version once and load it if it has changed."""
        try:
            version = get_version(self.model)
            self.contradiction = mismatch()
        except CxrError as error:
            if not self._is_registry_down:
                log.warning("app: %s; %s", error, self._consequence())
            self._is_registry_down = True
            return
        if self._is_registry_down:
            log.info("app: the registry responds again")
        self._is_registry_down = False
        current = self.batcher.current
        if (current is None or version.number != current.number) and not self._was_rejected(version):
            self._load(version)

    def _was_rejected(self, version: Version) -> bool:
        if self._rejected is None or self._rejected[0] != version:
            return False
        return time.monotonic() - self._rejected[1] < _RETRY_REJECTED_SECONDS

    def _load(self, version: Version) -> None:
        try:
            classifier = load_classifier(fetch_bundle(version), number=version.number, engine=self.engine)
            _warm_up(classifier)
            card = read_card(version, classifier)
        except Exception as error:  # damaged files fail in many ways, and the version in use must go on answering
            cause = str(error) if isinstance(error, CxrError) else f"it failed with {type(error).__name__}"
            log.error("app: version %s cannot be used: %s; %s", version.number, cause, self._consequence())
            self.batcher.metrics.model_reloads.labels("rejected").inc()
            self._rejected = (version, time.monotonic())
            return
        self._rejected = None
        self.use(classifier, card)
        self.batcher.metrics.model_reloads.labels("loaded").inc()
        log.info("app: version %s in use, engine %s", version.number, classifier.engine)
        if has_torch():
            _load_network(classifier)
        else:
            log.warning("app: no heat maps: %s", NO_TORCH)

    def use(self, classifier: Classifier, card: ModelCard) -> None:
        """Answer new images with `classifier`."""
        self.card = card
        self.batcher.use(classifier)

    def _consequence(self) -> str:
        current = self.batcher.current
        return f"version {current.number} stays in use" if current else "images are not answered until it can be loaded"


def _load_network(classifier: Classifier) -> None:
    """Load the network in torch, which heat maps always need, so that the first request for one need not wait."""
    try:
        _ = classifier.network
    except Exception as error:  # torch fails to load in many ways; the images are answered all the same
        log.warning(
            "app: no heat maps: the network of version %s does not load (%s)", classifier.number, type(error).__name__
        )


def _warm_up(classifier: Classifier) -> None:
    """Run the network once, so that the first image does not wait for its lazy set-up."""
    side = classifier.spec.preprocessing.image_size_px
    classifier.answer(np.zeros((1, side, side), np.uint8))
