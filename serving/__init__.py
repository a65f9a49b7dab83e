"""SavedModels in TensorFlow Serving's contract.

`export` writes one, `contract` checks it, `loader` runs it without Python's TensorFlow: so
nothing heavy is imported here.
"""

from . import quiet  # noqa: F401
