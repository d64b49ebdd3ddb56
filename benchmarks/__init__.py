"""Benchmarks against peers and floors; raw rows stay under ``results/<device>/``.

``python -m benchmarks.NAME`` runs one from a checkout, installed or not.
"""

if __name__ == "benchmarks":
    from pathlib import Path

    import fastvq._checkout

    fastvq._checkout.install(Path(__file__).resolve().parent.parent)
