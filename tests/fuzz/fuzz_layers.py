"""Atheris: python -m tests.fuzz.fuzz_layers -max_total_time=60 tests/corpus/layers"""

import sys

import atheris

with atheris.instrument_imports(include=["pipeline"]):
    from tests.fuzz import targets

if __name__ == "__main__":
    atheris.Setup(sys.argv, targets.layers)
    atheris.Fuzz()
