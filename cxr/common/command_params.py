"""The parameters of what runs beside the stages: the gate, scoring, monitoring, forensics, the web app, clean.

Those of the stages: cxr/common/params.py, which also reads all of them.
"""

from typing import Annotated

from pydantic import Field, model_validator

from cxr.common.param_types import (
    Backbone,
    Count,
    Megabytes,
    Resamples,
    Seconds,
    Section,
    Seed,
    Share,
    Text,
    Whole,
    Workers,
)


class PromoteParams(Section):
    """Requirements that a challenger must meet; metrics are named as in cxr.evaluation.headline."""

    floors: dict[str, Share]
    ceilings: dict[str, Share]
    external_floors: dict[str, Share]
    min_class_recall: Share
    max_recall_drop: Share
    non_inferiority_margin: dict[str, Share]
    resamples: Resamples
    seed: Seed


class ScoreParams(Section):
    """Which images are scored every night, and how the work is divided."""

    location: Text
    images_per_part: Count
    exchange: Annotated[str, Field(pattern=r"^s3://[^/\s]+")] | None
    workers: Workers
    shards: Annotated[int, Field(ge=1, le=10_000)]


class MonitorParams(Section):
    """When scored images count as drifted."""

    window_images: Annotated[int, Field(ge=20, le=1_000_000)]
    alarm_windows: Count
    recent_windows: Count
    false_alarm_share: Annotated[float, Field(gt=0, lt=0.5)]
    max_failed_share: Share
    resamples: Resamples
    seed: Seed

    @model_validator(mode="after")
    def _rule_can_be_met(self) -> "MonitorParams":
        if self.alarm_windows > self.recent_windows:
            raise ValueError(
                f"alarm_windows ({self.alarm_windows}) cannot exceed recent_windows ({self.recent_windows})"
            )
        return self

    @model_validator(mode="after")
    def _resamples_reach_the_quantile(self) -> "MonitorParams":
        if self.resamples * self.false_alarm_share < 5:
            raise ValueError(
                f"resamples ({self.resamples}) is too small for a false_alarm_share of {self.false_alarm_share:g}; "
                f"raise it to {round(5 / self.false_alarm_share)} or more"
            )
        return self


class ForensicsParams(Section):
    """How the images that ingest kept are examined; see tasks/forensics.py."""

    backbone: Backbone
    weights: Text
    max_pixels: Count
    max_images: Count
    blocks: Count
    alpha: Annotated[float, Field(gt=0, lt=0.5)]
    style_limit: Annotated[float, Field(gt=0.5, lt=1)]
    copy_correlation: Annotated[float, Field(gt=0, le=1)]
    permutations: Annotated[int, Field(ge=99, le=1_000_000)]
    resamples: Resamples
    review_images: Whole
    seed: Seed
    workers: Workers


class AppParams(Section):
    """Limits of the web app; see cxr.webapp.limits."""

    max_upload_mb: Megabytes
    max_queued_images: Annotated[int, Field(ge=1, le=100_000)]
    max_queued_mb: Megabytes
    max_batch_images: Annotated[int, Field(ge=1, le=10_000)]
    max_images_per_minute: Count
    max_feedback_per_minute: Count
    decode_workers: Annotated[int, Field(ge=1, le=256)]
    upload_timeout_s: Seconds
    queue_timeout_s: Seconds
    decode_timeout_s: Seconds
    inference_timeout_s: Seconds
    champion_poll_s: Seconds

    @model_validator(mode="after")
    def _one_image_fits(self) -> "AppParams":
        if self.max_queued_mb < self.max_upload_mb:
            raise ValueError(
                f"max_queued_mb ({self.max_queued_mb:g}) must hold one image of max_upload_mb ({self.max_upload_mb:g})"
            )
        return self


class CleanParams(Section):
    """What `clean` keeps beside champions, rollback targets and aliases."""

    keep_versions: Whole
    keep_days: Whole
    keep_worktrees: Whole
