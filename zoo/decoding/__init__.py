"""Decoding: from a decoder's logits to sequences, by greedy or beam search or by sampling."""

from .cache import ScatterCache
from .sampling import Draw, Sampling
from .search import GREEDY, Found, Search, State, advance, begin, possible

__all__ = [
    "GREEDY",
    "Draw",
    "Found",
    "Sampling",
    "ScatterCache",
    "Search",
    "State",
    "advance",
    "begin",
    "possible",
]
