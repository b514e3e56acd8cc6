"""Whether a number names a person: shown by how alike images with one number are."""

import numpy as np

from cxr.forensics.persons import KINDS, similarity


def test_a_number_that_two_people_share_is_told_from_one_that_names_a_person() -> None:
    rng = np.random.default_rng(4)
    thumbnails, labels, patients = [], [], []
    for number in range(40):
        for label in ("viral", "bacterial"):  # another person under the same number
            person = rng.normal(128, 30, (64, 64))
            for _ in range(2):
                thumbnails.append(np.clip(person + rng.normal(0, 15, (64, 64)), 0, 255).astype(np.uint8))
                labels.append(label)
                patients.append(f"person{number}")
    found = similarity(np.stack(thumbnails), np.array(labels), np.array(patients), resamples=200, seed=1)
    by_kind = {one.kind: one for one in found}
    assert list(by_kind) == list(KINDS)
    person, shared, strangers, others = (by_kind[kind] for kind in KINDS)
    assert person.interval is not None
    assert shared.interval is not None
    assert others.interval is not None
    assert person.interval.low > 0.5
    assert shared.interval.low < 0.05
    assert abs((strangers.correlation or 0) - (others.correlation or 0)) < 0.05
    assert (person.pairs, shared.pairs) == (80, 160)


def test_without_two_images_of_a_patient_nothing_is_claimed() -> None:
    thumbnails = np.zeros((3, 64, 64), np.uint8)
    found = similarity(thumbnails, np.array(["a", "b", "a"]), np.array(["1", "2", "3"]), resamples=100, seed=1)
    assert [(one.correlation, one.interval, one.pairs) for one in found] == [(None, None, 0)] * 4
