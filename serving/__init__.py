"""SavedModels in TensorFlow Serving's contract.

`export` writes one, `contract` checks it, `loader` runs it without Python's TensorFlow: so
nothing is imported here.
"""
