"""Runs FAISS for ``faiss_process``: ``python faiss_child.py FOLDER THREADS``, a search for each line of input."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np


def searcher(
    x: np.ndarray, codebooks: np.ndarray
) -> tuple[Callable[[], np.ndarray], Callable[[np.ndarray], np.ndarray]]:
    """x (N, G D), codebooks (G, Q, K, D) -> the search, and what turns its result into indices (G, N, Q)."""
    groups, stages, codes, dim = codebooks.shape
    bits = int(np.log2(codes))
    if stages > 1:
        residual = faiss.ResidualQuantizer(dim, stages, bits)
        residual.max_beam_size = 1
        faiss.copy_array_to_vector(codebooks.ravel(), residual.codebooks)
        residual.is_trained = True
        getattr(residual, "compute_codebook_tables")()  # noqa: B009  its stubs do not know it
        return lambda: residual.compute_codes(x), lambda found: unpack(found, bits, stages).reshape(1, -1, stages)
    if groups > 1:
        product = faiss.ProductQuantizer(groups * dim, groups, bits)
        faiss.copy_array_to_vector(codebooks.ravel(), product.centroids)
        return lambda: product.compute_codes(x), lambda found: unpack(found, bits, groups).T[..., None]
    flat = faiss.IndexFlatL2(dim)
    flat.add(codebooks[0, 0])
    return lambda: flat.search(x, 1)[1], lambda found: found.reshape(1, -1, 1)


def unpack(codes: np.ndarray, bits: int, count: int) -> np.ndarray:
    """(N, bytes) packed codes, least significant bit first, as (N, count)."""
    flat = np.unpackbits(codes, axis=1, bitorder="little")[:, : bits * count].reshape(len(codes), count, bits)
    return (flat.astype(np.int64) << np.arange(bits)).sum(-1)


def main(folder: Path, threads: int) -> None:
    """Answers each line with milliseconds; the first search also leaves its indices in the folder."""
    faiss.omp_set_num_threads(threads)
    x, codebooks = np.load(folder / "x.npy"), np.load(folder / "codebooks.npy")
    search, as_indices = searcher(x, codebooks)
    first = True
    for _ in sys.stdin:
        start = time.perf_counter()
        found = search()
        milliseconds = 1e3 * (time.perf_counter() - start)
        if first:
            np.save(folder / "indices.npy", as_indices(found))
            first = False
        print(milliseconds, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
