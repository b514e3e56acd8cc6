"""MLflow, and only here: runs, versions, aliases, promotion, audit log."""
