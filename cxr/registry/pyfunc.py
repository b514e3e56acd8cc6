"""The registered model as MLflow loads and serves it: this file itself, never a pickle.

MLflow runs this file ("models from code") and asks the `ServedModel` below for predictions. In goes a table with
the column `image` (a whole file as bytes: JPEG, PNG, BMP, TIFF or DICOM), out comes one row an image: `predicted_class`,
a calibrated probability `p_<class>` for each class, `refer` and `warning`, as `python -m tasks.predict` tells them.
Preprocessing, class order and temperature are those saved with the weights, whose hash is checked before they are
loaded.
"""

import warnings
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd

from cxr.inference.classifier import Answer, load_classifier
from cxr.models.forward import BATCH_SIZE

with warnings.catch_warnings():  # of the type hints of MLflow's own agent classes, at every import
    warnings.filterwarnings("ignore", message=".*hint is inferred as AnyType", category=UserWarning)
    from mlflow.models import ModelSignature, set_model
    from mlflow.pyfunc.model import PythonModel, PythonModelContext
    from mlflow.types import ColSpec, Schema

IMAGE_COLUMN = "image"
BUNDLE_ARTIFACT = "bundle"
_EXAMPLE_SIDE_PX = 64


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
        images = model_input[IMAGE_COLUMN]
        answers: list[Answer] = []
        for start in range(0, len(images), BATCH_SIZE):  # a few prepared images are in memory, however long the table
            answers += self._classify(images.iloc[start : start + BATCH_SIZE], first_row=start)
        columns = {
            f"p_{name}": [answer.probabilities[name] for answer in answers] for name in self.classifier.spec.classes
        }
        told = {name: pd.Series([getattr(one, name) for one in answers], dtype=object) for name in ("refer", "warning")}
        return pd.DataFrame({"predicted_class": [answer.predicted_class for answer in answers], **columns, **told})

    def _classify(self, images: "pd.Series[Any]", *, first_row: int) -> list[Answer]:
        pixels = [
            self.classifier.read(bytes(image), name=f"image in row {first_row + row}")
            for row, image in enumerate(images)
        ]
        return self.classifier.answer(np.stack(pixels))


def signature(classes: tuple[str, ...]) -> ModelSignature:
    """Return what goes in and comes out."""
    outputs: list[Any] = [
        ColSpec("string", "predicted_class"),
        *(ColSpec("double", f"p_{name}") for name in classes),
        ColSpec("boolean", "refer", required=False),  # null where the model has no threshold
        ColSpec("string", "warning", required=False),
    ]
    return ModelSignature(inputs=Schema([ColSpec("binary", IMAGE_COLUMN)]), outputs=Schema(outputs))


def input_example() -> pd.DataFrame:
    """Return two images as bytes, a grey ramp and its mirror: two, so that nobody takes the batch size for fixed."""
    ramp = np.tile(np.linspace(0, 255, _EXAMPLE_SIDE_PX).astype(np.uint8), (_EXAMPLE_SIDE_PX, 1))
    images = [cv2.imencode(".png", image)[1].tobytes() for image in (ramp, ramp[:, ::-1])]
    return pd.DataFrame({IMAGE_COLUMN: images})


set_model(ServedModel())
