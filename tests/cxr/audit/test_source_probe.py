import numpy as np

from cxr.audit.source_probe import image_statistics, probe, probe_set
from cxr.evaluation.bootstrap import MIN_PATIENTS

N = 80
LABELS = np.where(np.arange(N) % 4 < 2, "normal", "viral")
SOURCES = np.where(np.arange(N) % 2 == 0, "a", "b")
PATIENTS = np.array([f"patient-{n}" for n in range(N)])


def test_features_without_a_trace_of_the_source_give_an_interval_around_chance() -> None:
    images, reason = probe_set(SOURCES, LABELS, PATIENTS)
    assert images is not None, reason
    found = probe(np.random.default_rng(1).normal(size=(N, 4)), images, PATIENTS, seed=1, resamples=300)
    assert found["ci95"][0] < 0.5 < found["ci95"][1]


def test_a_feature_of_the_class_does_not_reveal_the_source() -> None:
    labels = np.where(np.arange(N) % 10 < 6, np.where(SOURCES == "a", "normal", "viral"), LABELS)
    images, reason = probe_set(SOURCES, labels, PATIENTS)
    assert images is not None, reason
    found = probe((labels == "viral").astype(float)[:, None], images, PATIENTS, seed=1, resamples=50)
    assert abs(found["auroc"] - 0.5) < 0.05


def test_a_marker_of_the_source_is_found_among_noise() -> None:
    images, reason = probe_set(SOURCES, LABELS, PATIENTS)
    assert images is not None, reason
    features = np.random.default_rng(1).normal(size=(N, 8))
    features[SOURCES == "a", 3] += 4
    assert probe(features, images, PATIENTS, seed=1, resamples=50)["auroc"] > 0.9


def test_classes_that_one_side_lacks_are_left_out() -> None:
    labels = np.where((SOURCES == "a") & (np.arange(N) < 20), "bacterial", LABELS)
    images, reason = probe_set(SOURCES, labels, PATIENTS)
    assert images is not None, reason
    assert images.classes == ("normal", "viral")
    assert "bacterial" not in labels[images.rows]


def test_too_few_patients_of_one_side_are_rejected_with_the_number() -> None:
    patients = np.where(SOURCES == "b", "one patient", PATIENTS)
    images, reason = probe_set(SOURCES, LABELS, patients)
    assert images is None
    assert "has 1 patients" in reason
    assert str(MIN_PATIENTS) in reason


def test_image_statistics_measure_the_border_separately() -> None:
    image = np.full((1, 40, 40), 100, np.uint8)
    image[:, 4:-4, 4:-4] = 200
    mean, spread, border_mean, border_spread, _ = image_statistics(image)[0]
    assert 100 < mean < 200
    assert (spread > 0, border_mean, border_spread) == (True, 100, 0)
