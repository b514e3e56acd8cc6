"""The watch goes on whatever happens to one version."""

import logging
from pathlib import Path

import pytest

from cxr.inference.classifier import Classifier
from cxr.registry.versions import Version
from cxr.webapp import champion_watch
from cxr.webapp.batcher import Batcher
from cxr.webapp.champion_watch import ChampionWatch
from cxr.webapp.metrics import Metrics
from cxr.webapp.model_info import read_card
from tests.support.faults import fault
from tests.support.logs import own_messages
from tests.support.services.webapp_server import LIMITS, tiny_classifier


class Answering:
    """Stands for the exported network, which answers without torch."""

    name = "openvino fp32"

    def __init__(self, network: Classifier) -> None:
        self.logits_and_features = network._logits_and_features


def broken_torch() -> None:
    raise OSError("libcudnn.so.9: cannot open shared object file")


@fault("web app", "torch is installed and does not load, OpenVINO answers",
       "images are answered without heat maps, the next champion takes over", "one line with the cause")  # fmt: skip
def test_a_version_whose_network_does_not_load_answers_and_the_watch_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="cxr")
    whole = tiny_classifier("7")
    half = Classifier(whole.spec, "7", None, broken_torch, Answering(whole))  # type: ignore[arg-type]
    version = Version("7", "", "", {})
    monkeypatch.setattr(champion_watch, "get_version", lambda _: version)
    monkeypatch.setattr(champion_watch, "mismatch", lambda: "")
    monkeypatch.setattr(champion_watch, "fetch_bundle", lambda _: Path())
    monkeypatch.setattr(champion_watch, "load_classifier", lambda *_, **__: half)
    card = read_card(version, whole)
    monkeypatch.setattr(champion_watch, "read_card", lambda *_: card)
    batcher = Batcher(LIMITS, Metrics())
    watch = ChampionWatch(batcher, model="champion", engine="openvino", poll_seconds=1)
    watch.poll()
    assert batcher.classifier() is half
    assert own_messages(caplog)[-1] == "app: no heat maps: the network of version 7 does not load (OSError)"
