"""What a person sees of a rebuild on its page in Prefect: figures against the champion, pictures, links.

Pictures stand in the artifacts themselves as `data:` addresses: the page shows those of Markdown, and it needs
neither a server for files nor this machine's disk.
"""

import base64
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact

from cxr.common.files import read_json
from cxr.common.notices import notice
from cxr.common.params import Paths
from cxr.evaluation.headline import HEADLINES
from cxr.registry.run_metadata import run_page, version_page
from cxr.registry.runs import experiment_id
from cxr.registry.stored_names import EVALUATION_TAG, current_verdict
from cxr.registry.tracking_store import STORE_VARIABLE, is_server, without_credentials
from cxr.registry.versions import get_version
from flows.serve import MLFLOW_PAGE_VARIABLE

_PICTURES = {"confusion-matrix": "confusion_matrix.svg", "grad-cam": "gradcam.jpg"}
_MIME_TYPES = {".svg": "image/svg+xml", ".jpg": "image/jpeg"}


def publish(folder: Path, paths: Paths) -> None:
    """Put metrics, pictures and links on the page of the present flow run."""
    metrics = read_json(folder / paths.metrics)
    champion = _champion(folder, paths)
    caution = notice(synthetic=bool(metrics.get("synthetic")))
    create_table_artifact(key="metrics", table=metrics_rows(metrics, champion), description=caution)
    for key, name in _PICTURES.items():
        picture = folder / paths.evaluation / name
        if picture.is_file():
            create_markdown_artifact(key=key, markdown=f"![{key}]({_data_address(picture)})")
    links = mlflow_links(folder / paths.registration)
    if not links:  # a browser follows no link from Prefect's page to a file
        where = (
            f"`{(folder / paths.report).resolve()}` on the machine of this run. With `make serve` it is linked here."
        )
        create_markdown_artifact(key="report", markdown=where)
    else:
        create_link_artifact(key="report", link=links["report"], link_text="the report, in MLflow")
        create_link_artifact(key="mlflow", link=links["version"], link_text="this version and its run in MLflow")


def metrics_rows(metrics: Mapping[str, Any], champion: Mapping[str, Any] | None) -> list[dict[str, str]]:
    """Return a row a test metric, with the champion's beside it where it was measured on these images.

    Args:
        metrics: metrics.json.
        champion: the champion's side of promotion.json, or None.
    """
    intervals = metrics.get("ci95", {})
    others = None if champion is None else _flat(champion)
    rows = []
    for name, value in _flat(metrics).items():
        low_high = intervals.get(name)
        interval = f"{low_high[0]:.3f} to {low_high[1]:.3f}" if low_high else ""
        row = {"metric": name, "this model": f"{value:.3f}", "95% interval": interval}
        if others is not None:
            other = others.get(name)
            row["champion"] = "" if other is None else f"{other:.3f}"
            row["difference"] = "" if other is None else f"{value - other:+.3f}"
        rows.append(row)
    return rows


def mlflow_links(registration: Path) -> dict[str, str]:
    """Return the addresses of the version's page and of its report in MLflow; empty where MLflow has no page.

    CXR_MLFLOW_PAGE counts before the store's address: services may reach MLflow by another name than browsers.
    """
    store = os.environ.get(STORE_VARIABLE, "")
    page = os.environ.get(MLFLOW_PAGE_VARIABLE, "") or (store if is_server(store) else "")
    if not page or not registration.is_file():
        return {}
    receipt = read_json(registration)
    page = without_credentials(page).rstrip("/")
    version = get_version(receipt["version"])
    file = f"{version.tags[EVALUATION_TAG].partition('/')[2]}/report.html"
    return {
        "version": f"{page}/{version_page(version.number)}",
        "report": f"{page}/{run_page(experiment_id(), version.run_id, file)}",
    }


def _champion(folder: Path, paths: Paths) -> Mapping[str, Any] | None:
    """Return the champion's metrics when the gate compared it with the model of this folder."""
    verdict, receipt = folder / paths.registration.with_name("promotion.json"), folder / paths.registration
    if not verdict.is_file() or not receipt.is_file():
        return None
    sides = current_verdict(read_json(verdict))["evaluation"]
    if not sides["champion"] or sides["version"]["weights_sha256"] != read_json(receipt)["weights_sha256"]:
        return None
    champion: Mapping[str, Any] = sides["champion"]
    return champion if champion["test_set_sha256"] == sides["version"]["test_set_sha256"] else None


def _flat(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures of metrics.json or of one side of promotion.json by the same names."""
    values = {metric.name: metric.stored_in(metrics) for metric in HEADLINES}
    flat = {name: value for name, value in values.items() if value is not None}
    by_class = metrics.get("recall") or {
        name: scores["recall"] for name, scores in metrics.get("per_class", {}).items() if scores.get("recall")
    }
    return flat | {f"recall of {name}": value for name, value in by_class.items() if value is not None}


def _data_address(picture: Path) -> str:
    data = picture.read_bytes()
    if picture.suffix == ".svg":  # black letters on nothing: unreadable on Prefect's dark page
        data = data.replace(b"<svg ", b'<svg style="background: white" ', 1)
    encoded = base64.b64encode(data).decode("ascii")
    return f"data:{_MIME_TYPES[picture.suffix]};base64,{encoded}"
