"""Side-by-side measurements against peers: one file a question; results in docs/benchmarks.md."""

import cxr  # noqa: F401  # before NumPy, as in every command: it sets how long NumPy's idle threads wait
