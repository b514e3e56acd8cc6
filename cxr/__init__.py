"""The domain: films, labels, splits, models and their honest measurement. Knows no scheduler, DVC or data-validation tool."""
