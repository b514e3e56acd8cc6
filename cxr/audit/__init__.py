"""Is the model right for the right reason? Shortcuts, saliency, source probe."""
