"""SavedModels for TensorFlow Serving, and networks in other formats.

`export` writes a SavedModel, `contract` checks its operations, and `formats` writes ONNX, LiteRT
and OpenVINO files. `loader` runs a SavedModel without Python's TensorFlow, so this package imports
nothing.
"""
