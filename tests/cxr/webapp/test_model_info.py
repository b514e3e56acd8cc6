"""The model card shows the registered metrics, with the counts behind recall and predictive value."""

from cxr.webapp.model_info import Score, measured_of
from tests.support.services.webapp_server import METRICS


def test_a_class_has_its_recall_and_predictive_value_with_their_counts() -> None:
    measured = measured_of(METRICS)
    assert (measured.images, measured.patients) == (100, 80)
    viral = measured.per_class["viral"]
    assert (viral.images, viral.predicted) == (30, 20)  # rows of the confusion matrix are classes, columns predictions
    assert viral.recall == Score(value=16 / 30, low=0.36, high=0.7)
    assert viral.precision == Score(value=16 / 20, low=0.6, high=0.93)


def test_metrics_without_a_confusion_matrix_have_no_count_of_predictions() -> None:
    older = {name: value for name, value in METRICS.items() if name != "confusion_matrix"}
    assert measured_of(older).per_class["viral"].predicted is None
