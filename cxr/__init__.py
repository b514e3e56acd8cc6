"""The domain: films, labels, splits, models, honest measurement. Knows no scheduler and no platform."""
