"""Side-by-side measurements against peers: one file a question; results in docs/benchmarks.md."""
