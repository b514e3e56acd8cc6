"""No test reaches the stores of whoever runs it, which `./run pytest` has in its environment and Prefect finds in .env.

This runs before any test imports Prefect or MLflow, which read their settings then.
"""

import os
import tempfile

_STORES = ("MLFLOW_TRACKING_URI", "CXR_MLRUNS", "PREFECT_API_URL", "PREFECT_API_AUTH_STRING", "CXR_NOTIFY_URL")

for name in _STORES:
    os.environ.pop(name, None)
_prefect_home = tempfile.TemporaryDirectory(prefix="prefect-")  # removed as the session ends
os.environ["PREFECT_HOME"] = _prefect_home.name
os.environ["PREFECT_PROFILES_PATH"] = f"{_prefect_home.name}/profiles.toml"
