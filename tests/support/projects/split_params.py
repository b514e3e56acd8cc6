"""The section `split` for small tests: all keys, with values for a few images."""

from typing import Any

from cxr.common.params import SplitParams


def split_params(**changes: Any) -> SplitParams:
    """Return the section with `changes`; quotas and folds suit tens of images."""
    values: dict[str, Any] = {
        "protocol": "patient",
        "task": "three_way",
        "subsample": "none",
        "train_share": 1.0,
        "train_sources": [],
        "seed": 7,
        "validation_share": 0.1,
        "test_share": 0.2,
        "share_tolerance": 0.05,
        "folds": 3,
        "fold": 0,
        "blocks": 3,
        "block": 0,
        "paper_train": {"normal": 3, "viral": 4, "bacterial": 5},
        "paper_test": {"normal": 2, "viral": 1, "bacterial": 2},
        "paper_validation": {"normal": 1, "viral": 1, "bacterial": 1},
        "official_source": "kermany",
    }
    return SplitParams.model_validate(values | changes)
