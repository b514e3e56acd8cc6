"""docs/results.md: every row is shown, run or not, and comparisons are computed from the runs."""

import re
from dataclasses import replace
from typing import Any

import pytest

from cxr.evaluation.comparison import difference_over_seeds
from cxr.study.findings import learning_curve_points
from cxr.study.page import render_page
from cxr.study.results import RunRecord, Settings, study_results
from cxr.study.spec import Study, read_study
from tests.support.project import PROJECT
from tests.support.projects.study_runs import record, small_study

SETTINGS = Settings(resamples=200, seed=1)


def page(study: Study, records: list[RunRecord]) -> str:
    return render_page(study, study_results(study, records, SETTINGS), records, SETTINGS)


def line(text: str, start: str) -> list[str]:
    (found,) = [row for row in text.splitlines() if row.startswith(f"| {start} |")]
    return [cell.strip() for cell in found.strip("|").split(" | ")]


def rows(*names: str) -> list[dict[str, Any]]:
    return [{"name": name, "label": f"row {name}"} for name in names]


def test_group_without_runs_is_a_line_with_its_name_and_the_number_of_its_trials() -> None:
    text = page(small_study(), [])
    assert "from 0 tracked runs" in text
    assert "0 of 4 trials" in text
    assert line(text, "One thing at a time")[1:] == ["`ablation`", "2", "4"]


def test_row_without_runs_stands_among_the_rows_of_its_group_that_have_some() -> None:
    study = small_study()
    (group,) = study.groups
    text = page(study, [record(group, group.rows[0], 1, skill=1.0)])
    assert line(text, "with mixup")[1:3] == ["0 of 2", "not run"]
    assert "## Not run" not in text


def test_row_shows_images_pixels_epochs_weights_time_hardware_and_run() -> None:
    study = small_study(seeds=[1])
    (group,) = study.groups
    run = record(group, group.rows[0], 1, skill=2.0)
    text = page(study, [run])
    cells = line(text, "unchanged")
    assert cells[1] == "1 of 1"
    assert cells[2] == "1,200 images, 96 px, 3 epochs, weights imagenet (all but the head)"
    assert re.fullmatch(r"0\.\d{3} \(0\.\d{3} to [01]\.\d{3}\)", cells[3])
    assert cells[5:7] == ["baseline", "baseline"]
    assert cells[-3:] == ["1.5", "1 cores, x86_64", f"`{run.run_id[:8]}`"]
    assert "commit `c0ffee00` (1 run)" in text


def test_headline_rows_with_few_seeds_or_uncommitted_changes_are_preliminary() -> None:
    (plain,) = small_study(seeds=[1, 2, 3, 4, 5]).groups
    group = plain.model_copy(update={"headline": True})
    study = Study(groups=[group])
    five = [record(group, group.rows[0], seed, skill=1.0) for seed in range(1, 6)]
    assert line(page(study, five), "unchanged")[1] == "5 of 5"
    assert line(page(study, five[:4]), "unchanged")[1] == "4 of 5: **preliminary** (fewer than 5)"
    dirty = replace(five[0], tags={**five[0].tags, "git_dirty": "true"})
    assert line(page(study, [dirty, *five[1:]]), "unchanged")[1] == "5 of 5: **preliminary** (uncommitted changes)"
    assert line(page(Study(groups=[plain]), five[:1]), "unchanged")[1] == "1 of 5"


def test_the_page_names_the_registered_endpoints() -> None:
    study = small_study()
    text = render_page(study, study_results(study, [], SETTINGS), [], SETTINGS, endpoints_sha256="ab" * 32)
    assert "Endpoints: [endpoints.md](endpoints.md), SHA-256 `abababababababab`." in text


def test_finished_seeds_are_counted_and_bars_in_labels_are_escaped() -> None:
    study = small_study(rows=[{"name": "plain", "label": "a | b"}])
    (group,) = study.groups
    text = page(study, [record(group, group.rows[0], 1, skill=1.0)])
    assert "| a \\| b | 1 of 2 |" in text


def test_synthetic_and_stale_runs_are_named() -> None:
    study = small_study(seeds=[1])
    (group,) = study.groups
    run = record(group, group.rows[0], 1, skill=1.0)
    stale = record(group, group.rows[1], 1, skill=1.0, params={"train.mixup": "0.9"})
    run = RunRecord(**{**vars(run), "tags": {**run.tags, "synthetic": "true"}})
    text = page(study, [run, stale])
    assert "1 run used the synthetic sample" in text
    assert "not shown: ablation.mixup.1" in text


def test_leakage_is_a_difference_over_seeds_with_welchs_interval() -> None:
    study = small_study(
        name="leakage",
        tested=True,
        baseline=None,
        seeds=[1, 2, 3],
        seeded=["split.seed"],
        rows=rows("paper", "patient"),
    )
    (group,) = study.groups
    skills = {"paper": 3.0, "patient": 1.0}
    records = [
        record(group, row, seed, skill=skills[row.name], first=7 * seed) for row in group.rows for seed in group.seeds
    ]
    values = [[run.metrics["accuracy"] for run in records[start : start + 3] if run.metrics] for start in (0, 3)]
    found = difference_over_seeds(*values)
    assert found.interval is not None
    text = page(study, records)
    assert line(text, "test accuracy")[1:] == [
        f"{found.value:+.3f} ({found.interval.low:+.3f} to {found.interval.high:+.3f})",
        "3 and 3",
    ]
    assert "covers the draw of the images" in text
    assert "not run" in page(study, records[:3])


def test_blocks_are_pooled_only_if_all_were_run() -> None:
    study = small_study(name="blocks", tested=True, baseline=None, seeds=[1], rows=rows("block0", "block1"))
    (group,) = study.groups
    records = [record(group, row, 1, skill=2.0, first=60 * n) for n, row in enumerate(group.rows)]
    assert line(page(study, records), "120 images, each once")[1].startswith("0.")
    assert "1 of 2 were run" in page(study, records[:1])
    twice = [record(group, row, 1, skill=2.0) for row in group.rows]
    assert "test sets of two rows" in page(study, twice)


def test_mean_and_worst_block_are_shown_when_all_were_run() -> None:
    study = small_study(name="blocks", tested=True, baseline=None, seeds=[1], rows=rows("block0", "block1"))
    (group,) = study.groups
    records = [
        record(group, row, 1, skill=skill, first=60 * skill) for skill, row in zip((3, 1), group.rows, strict=True)
    ]
    accuracy = [run.metrics["accuracy"] for run in records if run.metrics]
    text = page(study, records)
    assert line(text, "mean of the blocks")[1] == f"{sum(accuracy) / 2:.3f}"
    assert line(text, "worst block")[1] == f"{accuracy[1]:.3f} (row block1)"
    assert line(text, "120 images, each once")
    assert "1 of 2 blocks were not run" in page(study, records[:1])


@pytest.mark.parametrize(("full", "tau"), [((0.5, 1.0, 2.0, 4.0), "1.00"), ((4.0, 2.0, 1.0, 0.5), "-1.00")])
def test_rank_correlation_of_the_proxy_is_shown(full: tuple[float, ...], tau: str) -> None:
    names = ("a", "b", "c", "d")
    groups = [
        small_study(name=name, baseline=None, seeds=[1], rows=rows(*names)).groups[0]
        for name in ("proxy_cheap", "proxy_full")
    ]
    study = Study(groups=groups)
    skills = [dict(zip(names, values, strict=True)) for values in ((0.5, 1.0, 2.0, 4.0), full)]
    records = [record(group, row, 1, skill=skills[n][row.name]) for n, group in enumerate(groups) for row in group.rows]
    text = page(study, records)
    assert f"over 4 rows: Kendall's tau {tau}" in text
    assert f"Spearman's rho {tau}" in text
    assert "2 of 4 rows have both runs" in page(study, records[:-2])


def test_tested_rows_are_compared_with_the_baseline_on_the_test_images() -> None:
    study = small_study(tested=True, seeds=[1])
    (group,) = study.groups
    records = [record(group, row, 1, skill=skill) for row, skill in zip(group.rows, (0.5, 4.0), strict=True)]
    text = page(study, records)
    row = next(row for row in text.splitlines() if row.startswith("| with mixup | 1 |"))
    assert row.count("+0.") >= 3
    assert float(row.strip("| ").split("|")[-1]) < 0.05
    elsewhere = [records[0], record(group, group.rows[1], 1, skill=1.0, first=5)]
    assert "| with mixup | 1 | other test images |" in page(study, elsewhere)
    assert "Each row against unchanged on the test images: not run." in page(study, records[:1])


def test_rows_are_compared_over_several_test_sets_together() -> None:
    early, late = (
        small_study(name=name, title=name, tested=True, seeds=[1, 2]).groups[0] for name in ("early", "late")
    )
    study = Study(groups=[early, late.model_copy(update={"together": ["early", "late"]})])
    skills = {("early", "mixup"): 4.0, ("late", "mixup"): 2.0}
    records = [
        record(group, row, seed, skill=skills.get((group.name, row.name), 1.0), first=500 * n)
        for n, group in enumerate(study.groups)
        for row in group.rows
        for seed in group.seeds
    ]
    text = page(study, records)
    heads = line(text, "over 2 test sets")
    (row,) = [row for row in text.splitlines() if row.startswith("| with mixup | 2 | 0.") and "(late)" in row]
    values = dict(zip(heads, row.strip("| ").split(" | "), strict=True))
    f1 = [run.metrics["macro_f1"] for run in records if run.metrics and run.run_id in names_of(study, "mixup")]
    assert values["mean test macro F1"].startswith(f"{sum(f1) / len(f1):.3f} (0.")
    low = float(values["macro F1, difference"].partition("(")[2].partition(" to ")[0])
    assert low > 0
    assert "| with mixup | not run |" in page(study, records[:-2])


def test_means_over_the_seeds_stand_with_intervals_and_the_recall_of_each_class_also_without_a_baseline() -> None:
    (group,) = small_study(tested=True, baseline=None, seeds=[1, 2], rows=rows("plain")).groups
    records = [record(group, group.rows[0], seed, skill=1.0) for seed in group.seeds]
    text = page(Study(groups=[group]), records)
    (row,) = [row for row in text.splitlines() if row.startswith("| row plain | 2 |")]
    values = dict(zip(line(text, "over the seeds"), row.strip("| ").split(" | "), strict=True))
    metrics = [run.metrics for run in records if run.metrics]
    accuracy = sum(each["accuracy"] for each in metrics) / 2
    low, high = re.findall(r"[01]\.\d{3}", values["mean test accuracy"])[1:]
    assert values["mean test accuracy"].startswith(f"{accuracy:.3f} (")
    assert float(low) < accuracy < float(high)
    recall = {name: sum(each["per_class"][name]["recall"] for each in metrics) / 2 for name in metrics[0]["per_class"]}
    assert values["mean recall"] == ", ".join(f"{name} {value:.3f}" for name, value in recall.items())
    assert "Differences are to" not in text
    moved = [records[0], record(group, group.rows[0], 2, skill=1.0, first=6)]
    (row,) = [row for row in page(Study(groups=[group]), moved).splitlines() if row.startswith("| row plain | 2 | 0.")]
    assert "(" not in row  # seeds with images of their own: no patients to resample


def test_rows_with_several_seeds_are_compared_over_them_and_p_values_corrected_for_the_number_of_rows() -> None:
    (group,) = small_study(tested=True, seeds=[1, 2], rows=rows("plain", "better", "alike")).groups
    study = Study(groups=[group.model_copy(update={"baseline": "plain"})])
    (group,) = study.groups
    skills = {"better": 4.0}
    records = [record(group, row, seed, skill=skills.get(row.name, 1.0)) for row in group.rows for seed in group.seeds]

    def cells(records: list[RunRecord], label: str) -> dict[str, str]:
        text = page(study, records)
        (row,) = [row for row in text.splitlines() if re.match(rf"\| {label} \| 2 \| 0\.\d{{3}} \(", row)]
        return dict(zip(line(text, "over the seeds"), row.strip("| ").split(" | "), strict=True))

    p = "p of the macro F1, corrected for 2 rows"
    better, alike = cells(records, "row better"), cells(records, "row alike")
    assert better["macro F1, difference"].startswith("+0.")
    assert float(better[p]) == pytest.approx(2 * 2 / 201, rel=0.01)  # twice the least of 200 resamples
    assert float(alike[p]) > 0.05
    alone = [
        run for run in records if run.run_id not in {f"{group.name}-alike-{s}".encode().hex()[-32:] for s in (1, 2)}
    ]
    assert p not in cells(alone, "row better")  # one row is no family


def test_sets_with_other_images_for_a_seed_are_not_compared_and_the_page_is_written() -> None:
    """As after a correction of labels, while some trials are still those of before."""
    early, late = (small_study(name=name, title=name, tested=True).groups[0] for name in ("early", "late"))
    study = Study(groups=[early, late.model_copy(update={"together": ["early", "late"]})])
    records = [
        record(group, row, seed, skill=1.0, first=7 if (group.name, row.name, seed) == ("early", "mixup", 2) else 0)
        for group in study.groups
        for row in group.rows
        for seed in group.seeds
    ]
    text = page(study, records)
    *_, row = [row for row in text.splitlines() if row.startswith("| with mixup | 2 | 0.")]
    values = dict(zip(line(text, "over 2 test sets"), row.strip("| ").split(" | "), strict=True))
    assert values["accuracy, difference"] == "other test images"
    assert values["macro F1, difference"] == "-"


def names_of(study: Study, row: str) -> set[str]:
    return {f"{group.name}-{row}-{seed}".encode().hex()[-32:] for group in study.groups for seed in group.seeds}


def test_learning_curve_is_sorted_by_number_of_images() -> None:
    study = small_study(name="learning_curve", tested=True, seeds=[1], rows=rows("plain", "half", "tenth"))
    (group,) = study.groups
    images = {"plain": "900", "half": "450", "tenth": "90"}
    records = [
        record(
            group, row, 1, skill=1.0, params={f"split.counts.train.{name}": images[row.name] for name in ("normal",)}
        )
        for row in group.rows
    ]
    (result,) = study_results(study, records, SETTINGS)
    assert [n for n, _ in learning_curve_points(result)] == [890, 1250, 1700]
    assert "](results-learning-curve.svg)" in page(study, records)


def test_published_page_has_every_section_and_row_of_the_study() -> None:
    published = (PROJECT / "docs" / "results.md").read_text(encoding="utf-8")
    sections = {section.partition("\n")[0]: section for section in published.split("\n## ")}
    study = read_study(PROJECT / "study.yaml")
    not_run = sections.get("Not run", "")
    shown = [group for group in study.groups if group.title in sections]
    assert list(sections)[1:] == [*(group.title for group in shown), *(["Not run"] if not_run else [])]
    for group in shown:
        assert group.text.strip() in sections[group.title]
        for row in group.rows:
            assert f"\n| {row.label} | " in sections[group.title]
    for group in study.groups:
        assert (group in shown) != (f"| {group.title} | `{group.name}` | {len(group.rows)} |" in not_run)


def test_published_page_has_the_fixed_texts_of_the_generator() -> None:
    published = (PROJECT / "docs" / "results.md").read_text(encoding="utf-8")
    header = page(small_study(), []).partition("\n## ")[0]
    fixed = [text for text in header.splitlines() if text and not re.search(r"\d|Trained at", text)]
    assert len(fixed) > 5
    assert [text for text in fixed if text not in published] == []
