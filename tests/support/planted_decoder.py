"""A decoder that crashes or hangs on images that say so at their end; the decoding processes run it."""

import os
import time

from cxr.inference.classifier import Classifier
from cxr.inference.decoding import decoders
from cxr.inference.decoding.worker import Made

CRASHES, HANGS = b"crashes", b"hangs"


def planted_pixels(data: bytes, classifier: Classifier, name: str) -> Made:
    """Stand in for `cxr.inference.decoding.decoders.prepared_pixels`, which reads the other images."""
    if data.endswith(CRASHES):
        os.abort()
    if data.endswith(HANGS):
        time.sleep(3600)
    return decoders.prepared_pixels(data, classifier, name)
