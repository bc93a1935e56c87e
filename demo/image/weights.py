"""Writes weights.bin: so many MiB that do not compress, the same bytes at each build."""

import random
import sys
from pathlib import Path

Path("weights.bin").write_bytes(random.Random(8).randbytes(int(sys.argv[1]) << 20))
