"""Chest X-rays, from raw sets to answers; docs/architecture.md draws the rooms and who may import whom."""

import os

# NumPy's threads wait for their next work at full speed, by default for 2**26 cycles, on cores that the network needs.
# Its library reads this when NumPy is imported, which no command does before it imports this package.
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")
