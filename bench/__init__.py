"""Benchmarks beside the tools that people use today.

Python's bytecode is kept between runs, whatever the environment says: an installed package has it.
"""

import os

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
