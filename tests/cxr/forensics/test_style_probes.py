"""Style probes: an AUROC near 1 for a planted style, near 0.5 without, and what does not carry over to another era."""

import numpy as np

from cxr.forensics.style_probes import EARLY, LATE, Family, Probe, ProbeImages, ProbeSettings, probe_styles

SETTINGS = ProbeSettings(resamples=200, seed=1)


def probes(style_of: np.ndarray, era: np.ndarray) -> dict[str, Probe]:
    """Probe 160 images, the classes in turn, two images a person, with one number of style and three of noise."""
    rng = np.random.default_rng(5)
    n = len(era)
    labels = np.tile(["normal", "normal", "viral", "viral"], n // 4)
    features = rng.normal(0, 1, (n, 4))
    features[:, 0] += 3 * style_of * (labels == "viral")
    images = ProbeImages(labels, np.arange(n) // 2, era)
    return {probe.scope: probe for probe in probe_styles([Family("border", features, "boosting")], images, SETTINGS)}


def test_a_planted_style_separates_and_noise_does_not() -> None:
    n = 160
    unknown = np.full(n, -1)
    styled, plain = probes(np.ones(n), unknown)["all"], probes(np.zeros(n), unknown)["all"]
    assert styled.auroc is not None
    assert styled.auroc > 0.9
    assert plain.interval is not None
    assert plain.interval.low < 0.5 < plain.interval.high
    assert (styled.images, styled.persons) == (160, 80)


def test_a_style_of_one_era_does_not_carry_over_to_the_next() -> None:
    era = np.repeat([EARLY, LATE], 160)
    found = probes(np.where(era == EARLY, 1.0, -1.0), era)
    assert found["early"].auroc is not None
    assert found["early"].auroc > 0.9
    assert found["late"].auroc is not None
    assert found["late"].auroc > 0.9
    assert found["early_to_late"].auroc is not None
    assert found["early_to_late"].auroc < 0.6


def test_too_few_persons_give_no_number() -> None:
    assert probes(np.ones(40), np.full(40, -1))["all"].auroc is None
