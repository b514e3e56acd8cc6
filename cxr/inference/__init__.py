"""From the bytes of an image to an answer, and batches of them."""
