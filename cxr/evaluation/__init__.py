"""Numbers: metrics, calibration, bootstrap, comparison, clinical utility."""
