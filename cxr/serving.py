"""The registered model as MLflow loads and serves it: this file itself, never a pickle.

MLflow runs this file ("models from code") and asks the `Classifier` below for predictions. In goes a table with
the column `film` (a whole image file as bytes: JPEG, PNG, BMP or TIFF), out comes one row a film:
`predicted_class` and a calibrated probability `p_<class>` for each class. Preprocessing, class order and
temperature are those saved with the weights, whose hash is checked before they are loaded.
"""

import warnings
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd

from cxr.bundle import read_bundle
from cxr.images import film_from_bytes
from cxr.inference import BATCH_SIZE, classify

with warnings.catch_warnings():  # of the type hints of MLflow's own agent classes, at every import
    warnings.filterwarnings("ignore", message=".*hint is inferred as AnyType", category=UserWarning)
    from mlflow.models import ModelSignature, set_model
    from mlflow.pyfunc.model import PythonModel, PythonModelContext
    from mlflow.types import ColSpec, Schema

FILM_COLUMN = "film"
BUNDLE_ARTIFACT = "bundle"
_EXAMPLE_SIDE_PX = 64


class Classifier(PythonModel):
    """A saved bundle behind MLflow's interface."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the bundle; raises WeightsError when the weights are not those that were registered."""
        self.model, self.spec = read_bundle(Path(context.artifacts[BUNDLE_ARTIFACT]))

    def predict(
        self,
        context: PythonModelContext,  # noqa: ARG002  MLflow passes it
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,  # noqa: ARG002  and this one
    ) -> pd.DataFrame:
        """Classify the films in the column `film`; raises ImageError naming the row of a file that is no film."""
        answers = [
            self._classify(model_input[FILM_COLUMN].iloc[start : start + BATCH_SIZE], first_row=start)
            for start in range(0, len(model_input), BATCH_SIZE)
        ]
        probabilities = np.concatenate(answers) if answers else np.zeros((0, len(self.spec.classes)))
        table = pd.DataFrame(probabilities, columns=[f"p_{name}" for name in self.spec.classes])
        table.insert(0, "predicted_class", [self.spec.classes[best] for best in probabilities.argmax(axis=1)])
        return table

    def _classify(self, films: "pd.Series[Any]", *, first_row: int) -> np.ndarray[Any, np.dtype[np.float64]]:
        images = [
            film_from_bytes(bytes(film), self.spec.preprocessing, name=f"film in row {first_row + row}")
            for row, film in enumerate(films)
        ]
        return classify(self.model, self.spec, np.stack(images))


def signature(classes: tuple[str, ...]) -> ModelSignature:
    """Return what goes in and comes out."""
    outputs: list[Any] = [ColSpec("string", "predicted_class"), *(ColSpec("double", f"p_{name}") for name in classes)]
    return ModelSignature(inputs=Schema([ColSpec("binary", FILM_COLUMN)]), outputs=Schema(outputs))


def input_example() -> pd.DataFrame:
    """Return two films as bytes, a grey ramp and its mirror: two, so that nobody takes the batch size for fixed."""
    ramp = np.tile(np.linspace(0, 255, _EXAMPLE_SIDE_PX).astype(np.uint8), (_EXAMPLE_SIDE_PX, 1))
    films = [cv2.imencode(".png", film)[1].tobytes() for film in (ramp, ramp[:, ::-1])]
    return pd.DataFrame({FILM_COLUMN: films})


set_model(Classifier())
