"""Reference models built on fastvq's public names, and the command line that trains and uses them."""

if __name__ != "fastvq.models":
    raise ImportError(f"import this package as 'fastvq.models', not as {__name__!r}")
