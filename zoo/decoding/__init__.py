"""Decoding: greedy search, beam search and sampling."""

from .cache import ScatterCache
from .sampling import Sampler, Sampling
from .search import GREEDY, Found, Search, State, advance, begin, is_possible, lengthen

__all__ = [
    "GREEDY",
    "Found",
    "Sampler",
    "Sampling",
    "ScatterCache",
    "Search",
    "State",
    "advance",
    "begin",
    "is_possible",
    "lengthen",
]
