"""Build, save and run a network: backbones, bundle, Grad-CAM, reference statistics."""
