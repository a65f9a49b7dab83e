"""SavedModels in TensorFlow Serving's contract, and networks in other formats.

`export` writes a SavedModel, `contract` checks its operations, `formats` writes ONNX, LiteRT and
OpenVINO files. `loader` runs a SavedModel without Python's TensorFlow, so nothing heavy is imported
here.
"""
