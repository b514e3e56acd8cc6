"""Where runs and versions stand in MLflow's page, relative to its server.

MLflow 3.17 opens every experiment with the view for GenAI traces unless the address, or an earlier visit of the same
browser, asks for the one for machine learning. A relative address holds on whatever host a person has opened the page.
"""

from cxr.registry.stored_names import MODEL

_VIEW = "workflowType=machine_learning"


def experiment_page(experiment_id: str) -> str:
    """Return the address of an experiment's runs."""
    return f"#/experiments/{experiment_id}/runs?{_VIEW}"


def run_page(experiment_id: str, run_id: str, file: str = "") -> str:
    """Return the address of a run, or of a file among its artifacts; the page shows HTML, figures and tables."""
    below = f"/artifacts/{file}" if file else ""
    return f"#/experiments/{experiment_id}/runs/{run_id}{below}?{_VIEW}"


def version_page(number: str) -> str:
    """Return the address of a version of the model."""
    return f"#/models/{MODEL}/versions/{number}?{_VIEW}"
