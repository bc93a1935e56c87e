"""Benchmarks beside peers, and the tables and charts that the documents show of them."""

import logging
import os

import structlog

# Bytecode is kept between runs, whatever the environment says: an installed package has it.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# What a benchmark prints is its figures: of the code that it uses, warnings only.
structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
