"""The registered model as MLflow loads and serves it: this file itself, never a pickle.

MLflow runs this file ("models from code") and calls `ServedModel`. The input is a table with the column `image`, a
whole file as bytes: JPEG, PNG, BMP, TIFF or DICOM. The output has a row an image with the columns of an answer
(cxr/inference/answer.py), the same values as `./run predict` prints. Preprocessing, class order and
calibration are those saved with the weights, whose hash is checked before they are loaded.
"""

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd

from cxr.dataset.synthetic_image import KERMANY_LOOK, draw_anatomy, draw_finding, draw_image
from cxr.inference.answer import SHOWN_FIELDS, Answer, columns
from cxr.inference.classifier import load_classifier
from cxr.inference.pipeline import PreparedImage, answered_batches, model_input, prepare

with warnings.catch_warnings():  # MLflow warns of its own type hints at every import
    warnings.filterwarnings("ignore", message=".*hint is inferred as AnyType", category=UserWarning)
    from mlflow.models import ModelSignature, set_model
    from mlflow.pyfunc.model import PythonModel, PythonModelContext
    from mlflow.types import ColSpec, Schema

IMAGE_COLUMN = "image"
BUNDLE_ARTIFACT = "bundle"
_EXAMPLE_SEED = 2023


class ServedModel(PythonModel):
    """A saved bundle behind MLflow's interface."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the bundle; raises WeightsError when the weights are not those that were registered."""
        self.classifier = load_classifier(Path(context.artifacts[BUNDLE_ARTIFACT]), number="")

    def predict(
        self,
        context: PythonModelContext,  # noqa: ARG002  MLflow passes it
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,  # noqa: ARG002  and this one
    ) -> pd.DataFrame:
        """Classify the images in the column `image`; raises ImageError naming the row of a file that is no image."""
        images = [bytes(image) for image in model_input[IMAGE_COLUMN]]
        rows = [answer.to_row(SHOWN_FIELDS) for answer in self._answers(images)]
        table = {
            column.name: pd.Series([row[column.name] for row in rows], dtype=object if column.nullable else None)
            for column in columns(self.classifier.spec.classes, fields=SHOWN_FIELDS)
        }
        return pd.DataFrame(table)

    def _answers(self, images: Sequence[bytes]) -> Iterator[Answer]:
        def read(row: int) -> PreparedImage[int, None]:
            name = f"image in row {row}"
            return prepare(images[row], self.classifier, decode=model_input, key=row, name=name)

        workers = os.cpu_count() or 1
        with closing(answered_batches(self.classifier, range(len(images)), read, workers=workers)) as batches:
            for one in (one for batch in batches for one in batch):
                if one.image.error is not None:
                    raise one.image.error
                if one.answer is not None:
                    yield one.answer


def signature(classes: tuple[str, ...]) -> ModelSignature:
    """Return the columns of the input and the output."""
    outputs: list[Any] = [
        ColSpec(column.type, column.name, required=not column.nullable)
        for column in columns(classes, fields=SHOWN_FIELDS)
    ]
    return ModelSignature(inputs=Schema([ColSpec("binary", IMAGE_COLUMN)]), outputs=Schema(outputs))


def input_example() -> pd.DataFrame:
    """Return two chest X-rays as bytes: two, so that MLflow does not fix the batch size.

    They are synthetic, whatever the model was trained on: no patient's image lies in the registry.
    """
    drawn = []
    for label in ("normal", "viral"):
        rng = np.random.default_rng(_EXAMPLE_SEED)
        drawn.append(draw_image(draw_anatomy(rng), draw_finding(label, rng), KERMANY_LOOK, rng))
    return pd.DataFrame({IMAGE_COLUMN: [cv2.imencode(".jpg", image)[1].tobytes() for image in drawn]})


set_model(ServedModel())
