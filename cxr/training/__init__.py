"""The training loop and its parts. It imports torch, numpy and scikit-learn, and nothing of the platform."""
