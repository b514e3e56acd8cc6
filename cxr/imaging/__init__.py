"""One image: decode, preprocess, encode."""
