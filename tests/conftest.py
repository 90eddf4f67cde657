"""One thread a test process: two processes share two cores better than four threads do."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
