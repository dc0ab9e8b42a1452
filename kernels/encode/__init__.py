"""The quantizer's kernels: rows of float32 to blocks of a format."""
