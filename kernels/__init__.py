"""Kernels: tensors in, tensors out. Nothing here knows of modules, training or models."""

if __name__ != "fastvq.kernels":
    # Python was started in a checkout, and somebody, such as transformers, asks for the package of this name that
    # belongs to others. They get that one if it is installed, and otherwise what looks like a folder without code.
    import importlib.machinery
    import importlib.util
    import pathlib
    import sys

    _root = pathlib.Path(__file__).resolve().parent.parent
    _elsewhere = [entry for entry in sys.path if pathlib.Path(entry).resolve() != _root]
    _spec = importlib.machinery.PathFinder.find_spec(__name__, _elsewhere)
    if _spec is not None and _spec.loader is not None:
        sys.modules[__name__] = importlib.util.module_from_spec(_spec)
        _spec.loader.exec_module(sys.modules[__name__])
    else:
        del __file__
        globals()["__path__"] = []

        def __getattr__(name: str) -> object:
            raise AttributeError(f"import this package as 'fastvq.kernels', not as {__name__!r}: it has no {name}")
