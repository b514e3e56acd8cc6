"""Who is champion: the gate, the moves of the alias, their audit log, and what people ask for in MLflow."""
