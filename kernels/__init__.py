"""Kernels: tensors in, tensors out. Nothing here knows of modules, training or models."""

if __name__ != "fastvq.kernels":
    raise ImportError(f"import this package as 'fastvq.kernels', not as {__name__!r}")
