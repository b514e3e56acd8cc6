"""Images in batches, and a champion that changes under load."""

import threading
from concurrent.futures import ThreadPoolExecutor

import cv2
import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from cxr.inference.answer import Answer
from tests.support.faults import fault
from tests.support.services.webapp_server import BYTES, IMAGE, Served, send, serve_here, synthetic, tiny_classifier, use
from tests.support.waiting import wait_for


def test_a_prediction_does_not_depend_on_the_other_images_of_its_batch(served: Served) -> None:
    images = [cv2.imencode(".png", synthetic(seed=seed))[1].tobytes() for seed in range(12)]
    alone = [send(served, image).json()["probabilities"] for image in images]
    with ThreadPoolExecutor(12) as pool:
        together = [
            response.json()["probabilities"] for response in pool.map(lambda image: send(served, image), images)
        ]
    assert together == alone
    assert len({tuple(shares.values()) for shares in alone}) == len(images)


def test_images_in_progress_are_answered_by_the_version_they_were_decoded_for() -> None:
    old, new = tiny_classifier("1", seed=1), tiny_classifier("2", seed=2)
    expected = {each.number: each.answer(each.read(IMAGE, name="image")[None])[0].probabilities for each in (old, new)}
    with serve_here(old) as served:
        responses: list[httpx.Response] = []

        def ask() -> None:
            with httpx.Client(timeout=60) as client:
                responses.extend(
                    client.post(f"{served.address}/predict", content=IMAGE, headers=BYTES) for _ in range(25)
                )

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for number in range(20):
            wait_for(lambda number=number: len(responses) > 4 * number or not threads[0].is_alive())
            use(served.webapp, (new, old)[number % 2])
        for thread in threads:
            thread.join()
    assert [response.status_code for response in responses] == [200] * 100
    assert {response.json()["model_version"] for response in responses} == {"1", "2"}
    for response in responses:
        answer = response.json()
        assert answer["probabilities"] == pytest.approx(dict(expected[answer["model_version"]]), abs=0)


@fault("web app", "the heat map of one image fails", "the other images of its batch are answered",
       "status 500 for that one")  # fmt: skip
def test_a_heat_map_that_fails_takes_no_answer_of_its_batch_with_it() -> None:
    held, sizes = threading.Event(), list[int]()
    classifier = tiny_classifier()
    answer = classifier.answer

    def answered(images: NDArray[np.uint8]) -> list[Answer]:
        sizes.append(len(images))
        held.wait(300)
        return answer(images)

    def failing(*_: object) -> None:
        raise RuntimeError("CUDA error")

    object.__setattr__(classifier, "answer", answered)
    object.__setattr__(classifier, "heat", failing)
    with serve_here(classifier) as served, ThreadPoolExecutor(3) as pool:
        first = pool.submit(send, served, IMAGE)
        wait_for(lambda: sizes == [1])
        both = [pool.submit(send, served, IMAGE, heat=heat) for heat in ("true", "false")]
        wait_for(lambda: served.metric("cxr_images_queued") == 2)
        held.set()
        assert [one.result().status_code for one in (first, *both)] == [200, 500, 200]
    assert sizes == [1, 2]
