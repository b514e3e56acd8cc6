"""What the registry knows of a measured model, for the front page of its report.

When it was trained from which commit, which version it is, and how it compares with the champion on the same images.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cxr.common.errors import DataError, RegistryError
from cxr.dataset.manifest import sha256_of_test_set
from cxr.evaluation.comparison import compare
from cxr.registry import runs, versions
from cxr.registry.champion import aliases
from cxr.registry.evaluation_store import evaluation_of
from cxr.reporting.report import Champion

if TYPE_CHECKING:
    import pandas as pd

    from cxr.models.bundle import ModelSpec
    from cxr.registry.versions import Version

NOT_RECORDED = "not recorded"

log = logging.getLogger("cxr.registry.model_origin")


@dataclass(frozen=True)
class Origin:
    """Date and commit of a training, and version and role of its model, in words."""

    trained: str = NOT_RECORDED
    commit: str = NOT_RECORDED
    version: str = NOT_RECORDED
    role: str = NOT_RECORDED

    def to_facts(self) -> dict[str, str]:
        """Return them as a front page shows them."""
        return {"Trained": self.trained, "Commit": self.commit, "Version": self.version, "Role": self.role}


def origin_of(run_id: str, spec: ModelSpec) -> Origin:
    """Return what the store says about the model of a training; "not recorded" where it lacks the run or is away.

    Args:
        run_id: of the training.
        spec: with the fitted calibration and referral threshold.
    """
    try:
        version = versions.find_version(spec)
        if version is not None:
            return origin_of_version(version)
        return Origin(*_training(run_id), "none yet", "a candidate, not registered when this page was written")
    except RegistryError as error:
        log.warning("the front page of the report lacks date, commit and version: %s", error)
        return Origin()


def origin_of_version(version: Version) -> Origin:
    """Return what the store says about a version.

    Raises:
        RegistryError: the store does not answer.
    """
    return Origin(*_training(version.run_id), version.number, role_of(version.number))


def _training(run_id: str) -> tuple[str, str]:
    """Return date and commit of a training."""
    if not runs.run_exists(run_id):
        return NOT_RECORDED, NOT_RECORDED
    tags = runs.run_tags(run_id)
    changed = " with uncommitted changes" if tags.get("git_dirty") == "true" else ""
    return runs.started(run_id), f"{tags.get('git_commit', NOT_RECORDED)[:12]}{changed}"


def role_of(number: str) -> str:
    """Return what a version is: champion, challenger, or neither.

    Raises:
        RegistryError: the store does not answer.
    """
    for alias in (versions.CHAMPION, versions.CHALLENGER):
        found = versions.look_up(alias)
        if found and found.number == number:
            return alias
    was_champion = any(move.after == number for move in aliases.history())
    return "earlier champion" if was_champion else "neither champion nor challenger"


def against_champion(spec: ModelSpec, test: pd.DataFrame, *, resamples: int, seed: int) -> Champion | None:
    """Compare a model with the champion on the same test images; None without another champion, or without a store.

    Args:
        spec: of the model.
        test: its test images as in predictions.csv.
        resamples, seed: as in cxr.evaluation.comparison.compare.
    """
    try:
        champion = versions.champion()
        if champion is None or champion.tags.get("weights_sha256") == spec.weights_sha256:
            return None
        images = evaluation_of(champion, sha256_of_test_set(test)).images
    except RegistryError as error:
        log.warning("the report does not compare with the champion: %s", error)
        return None
    if images is None:
        return Champion(champion.number, because="its predictions are missing")
    try:
        return Champion(champion.number, compare(test, images, resamples=resamples, seed=seed))
    except DataError as error:
        return Champion(champion.number, because=str(error))
