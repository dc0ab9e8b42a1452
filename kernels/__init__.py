"""Numba/LLVM kernels: numbers and formats. They know no model and no file."""

if not __name__.startswith("edge_gemma."):
    raise ImportError("import this package as edge_gemma.kernels: the bare name belongs to other projects")
