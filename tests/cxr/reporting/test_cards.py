"""The cards repeat the run's files, assume no licence, and stop at a missing value."""

import copy
from pathlib import Path
from typing import Any

import pytest
from jinja2 import UndefinedError

from cxr.common.errors import DataError
from cxr.common.notices import NOT_CLINICAL, SYNTHETIC
from cxr.evaluation.result_files import MODEL_CARD_FILE
from cxr.reporting.cards import DATA_CARD_FILE, write_cards
from cxr.reporting.public_sets import PUBLIC_SETS

CLASSES = ["normal", "viral"]


def scores(value: float) -> dict[str, Any]:
    """Return one value for each score of a class."""
    names = ("precision", "recall", "specificity", "f1", "auroc")
    return dict.fromkeys(names, value)


def interval(value: float) -> list[float]:
    return [value - 0.05, value + 0.05]


def content() -> dict[str, Any]:
    view: dict[str, Any] = {"accuracy": 0.812, "macro_f1": 0.8, "macro_auroc": 0.913}
    view["ci95"] = {name: interval(0.8) for name in ("accuracy", "macro_f1", "macro_auroc")}
    rate = {"value": 0.777, "ci95": interval(0.777), "of": 40}
    return {
        "metrics": {
            "accuracy": 0.8765, "macro_f1": 0.8654, "macro_auroc": 0.9543, "classes": CLASSES, "protocol": "patient",
            "synthetic": False, "n_test": 1234, "n_patients": 321, "bootstrap": {"resamples": 2000},
            "test_set_sha256": "7e57" * 16,
            "calibration": {"ece": 0.0321, "classwise_ece": 0.02, "brier": 0.21, "nll": 0.4},
            "per_class": {"normal": scores(0.91) | {"support": 600}, "viral": scores(0.72) | {"support": 634}},
            "ci95": {
                "accuracy": [0.8444, 0.9011], "macro_f1": None, "macro_auroc": None, "ece": None,
                "per_class": {name: dict.fromkeys(scores(0), None) for name in CLASSES},
            },
            "per_source": {"clinic": {"n": 1234, "patients": 321, "accuracy": 0.87, "macro_f1": 0.86,
                "missing_classes": [], "ci95": {"accuracy": None, "macro_f1": None}}},
            "per_block": {},
        },
        "calibration": {"temperature": 1.234, "bias": [0.0, 0.5]},
        "training": {
            "run_id": "run-42", "seconds": 61.4, "hardware": "2 cores", "device": "cpu", "precision": "bf16",
            "weights": {"source": "imagenet", "loaded": ["stem"], "partial": [], "random": ["head"]},
        },
        "model": {
            "backbone": "resnet50", "head": "linear", "members": 1, "classes": CLASSES,
            "weights_sha256": "abc123",
            "preprocessing": {"image_size_px": 224, "fit": "stretch", "contrast": "clahe"},
        },
        "ingest": {
            "total": 5000, "kept": 4990, "duplicates": 7, "quarantined": 3, "synthetic": False,
            "layouts": {"clinic": "chest_xray"}, "manifest_sha256": "facade",
            "sources": {"clinic": {"total": 5000, "kept": 4990, "duplicates": 7, "quarantined": 3}},
            "classes": {"normal": 2000, "viral": 2990, "bacterial": 0, "covid": 0},
        },
        "split": {
            "protocol": "patient", "leakage": "No patient leaks.", "notes": ["Seven are unused."],
            "patients": {"train": 900, "test": 321},
            "counts": {"train": {"normal": 1100, "viral": 1157}, "test": {"normal": 600, "viral": 634}},
        },
        "audit": {
            "images": 200, "largest_class": "viral", "largest_class_share": 0.51,
            "views": {"whole": view | {"title": "whole image"}},
            "verdict": [{"level": "good", "sentence": "It reads the lungs.", "rule": "none"}],
            "probe": {"unavailable_because": "all images come from one source"},
            "sources": {"clinic": {"normal": 600, "viral": 634}},
        },
        "trust": {
            "operating_points": {"unavailable_because": None, "points": [
                {"target_specificity": 0.9, "threshold": 0.31, "sensitivity": rate, "specificity": rate}]},
            "referral": {"unavailable_because": None,
                "found": {"confidence": 0.66, "coverage": rate, "accuracy_on_kept": rate, "errors_caught": rate}},
            "attention": None, "sanity": {"depends_on_weights": None},
        },
    }  # fmt: skip


def cards(folder: Path, of: dict[str, Any]) -> tuple[str, str]:
    write_cards(folder, **of)
    return (folder / MODEL_CARD_FILE).read_text(), (folder / DATA_CARD_FILE).read_text()


def test_both_cards_start_with_the_disclaimer(tmp_path: Path) -> None:
    for card in cards(tmp_path, content()):
        assert NOT_CLINICAL in card[:200]


def test_the_model_card_holds_the_numbers_of_the_run(tmp_path: Path) -> None:
    card, _ = cards(tmp_path, content())
    for said in (
        "0.876 (0.844 to 0.901)", "0.865", "0.954", "0.032", "1,234 test images of 321 patients", "run-42",
        "temperature 1.234", "0.777 (0.727 to 0.827)", "| 90.0% | 0.310 |", "2,257 images of 900 patients",
        "It reads the lungs.", "| whole image | 0.812 (0.750 to 0.850) | 0.800 (0.750 to 0.850) | 0.913",
    ):  # fmt: skip
        assert said in card, said


def test_the_data_card_holds_the_counts_and_the_licence_of_the_recorded_layout(tmp_path: Path) -> None:
    _, card = cards(tmp_path, content())
    for said in (
        "| clinic | 5,000 | 4,990 | 7 | 3 |", "| train | 1,100 | 1,157 | 2,257 | 900 |", "CC BY 4.0",
        "10.17632/rscbjbr9sj.2", "the layout alone does not prove it", "| clinic | 600 | 634 |", "No patient leaks.",
    ):  # fmt: skip
        assert said in card, said


def test_the_data_card_counts_the_labels_that_a_reader_corrected(tmp_path: Path) -> None:
    files = content()
    assert "A reader decided" not in cards(tmp_path, files)[1]  # no file of corrections when ingest.json was written
    changes = [{"from": "viral", "to": "bacterial", "images": 7}]
    files["ingest"]["corrections"] = {"relabelled": 7, "confirmed": 2, "changes": changes}
    card = cards(tmp_path, files)[1]
    assert "A reader decided the labels of 9 files: 7 changed, 2 confirmed." in card
    assert "- viral to bacterial: 7" in card


@pytest.mark.parametrize("layouts", [{}, {"clinic": "another"}], ids=["not recorded", "unknown"])
def test_no_licence_is_assumed_for_an_unknown_source(tmp_path: Path, layouts: dict[str, str]) -> None:
    files = content()
    files["ingest"]["layouts"] = layouts
    _, card = cards(tmp_path, files)
    assert "Origin and licence are not known" in card
    assert not any(known.licence in card for known in PUBLIC_SETS.values())


FILE_NAMES = ("identified by file names", "published file names", "from the publisher", "come from file names")


@pytest.mark.parametrize("synthetic", [False, True])
def test_the_cards_say_of_a_hospitals_folder_where_its_patients_come_from(tmp_path: Path, synthetic: bool) -> None:
    files = content()
    files["ingest"]["layouts"] = {"clinic": "labelled"}
    card = " ".join("".join(cards(tmp_path, files)).split())
    assert "Patients of clinic are identified by `patient_id` in its `labels.csv`, else by their DICOM tags." in card
    assert "holds the kept files unchanged, DICOM images without their tags." in card
    assert "Of clinic, patients' numbers are kept as keyed digests" in card
    assert [said for said in FILE_NAMES if said in card] == []

    files["ingest"] |= {"layouts": {"clinic": "chest_xray"}, "synthetic": synthetic}
    card = " ".join("".join(cards(tmp_path, files)).split())
    assert "Patients of clinic are identified by file names" in card
    assert ("from the publisher" in card, "No patient's data are used." in card) == (not synthetic, synthetic)
    assert "labels.csv" not in card


def test_synthetic_images_get_the_notice_and_no_licence_of_a_public_set(tmp_path: Path) -> None:
    files = content()
    files["ingest"]["synthetic"] = files["metrics"]["synthetic"] = True
    model, data = cards(tmp_path, files)
    assert SYNTHETIC in model
    assert SYNTHETIC in data
    assert not any(known.licence in data or known.address in data for known in PUBLIC_SETS.values())


def test_unavailable_results_are_given_with_their_reason(tmp_path: Path) -> None:
    files = content()
    files["trust"]["operating_points"] = {"unavailable_because": "no validation image is normal", "points": []}
    files["trust"]["referral"] = {"unavailable_because": "too few are right", "found": None}
    files["trust"]["sanity"] = {"depends_on_weights": False}
    files["trust"]["attention"] = {"keeps_to_the_thorax": False}
    card, _ = cards(tmp_path, files)
    for said in (
        "no validation image is normal",
        "too few are right",
        "random weights",
        "beyond the share of its area",
    ):
        assert said in card, said


@pytest.mark.parametrize(
    ("file", "key"),
    [
        ("metrics", "n_test"),
        ("training", "run_id"),
        ("split", "leakage"),
        ("audit", "verdict"),
        ("trust", "referral"),
    ],
)
def test_a_missing_number_stops_the_card(tmp_path: Path, file: str, key: str) -> None:
    files = copy.deepcopy(content())
    del files[file][key]
    with pytest.raises(UndefinedError, match=key):
        write_cards(tmp_path, **files)


def test_a_missing_metric_stops_the_card(tmp_path: Path) -> None:
    files = copy.deepcopy(content())
    del files["metrics"]["accuracy"]
    with pytest.raises(DataError, match="accuracy"):
        write_cards(tmp_path, **files)


def test_the_same_files_give_the_same_bytes(tmp_path: Path) -> None:
    assert cards(tmp_path, content()) == cards(tmp_path, content())


def test_tables_have_no_gap_between_their_lines(tmp_path: Path) -> None:
    for card in cards(tmp_path, content()):
        lines = card.splitlines()
        for number, line in enumerate(lines):
            if line.startswith("|---"):
                assert lines[number - 1].startswith("|")
                assert lines[number + 1].startswith("|"), line
                assert lines[number - 1].count("|") == line.count("|") == lines[number + 1].count("|")
