"""TensorRT and TensorRT-RTX: one implementation over the differences of their Python modules."""
