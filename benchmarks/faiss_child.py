"""Runs FAISS for ``faiss_process``: ``python faiss_child.py FOLDER THREADS``, a call for each line of input."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
from resident import peak_growth  # this file is run as a script, so its folder is on the path

Call = tuple[Callable[[], np.ndarray], Callable[[np.ndarray], np.ndarray]]


def searcher(x: np.ndarray, codebooks: np.ndarray, topk: int) -> Call:
    """x (N, G D), codebooks (G, Q, K, D) -> the search, and what turns its result into indices (G, N, Q or topk)."""
    groups, stages, codes, dim = codebooks.shape
    bits = int(np.log2(codes))
    if stages > 1:
        residual = faiss.ResidualQuantizer(dim, stages, bits)
        residual.max_beam_size = 1
        faiss.copy_array_to_vector(codebooks.ravel(), residual.codebooks)
        residual.is_trained = True
        residual.use_beam_LUT = 0  # whose tables grow with the square of all codes together: 17 GB for Mimi's
        return lambda: residual.compute_codes(x), lambda found: unpack(found, bits, stages).reshape(1, -1, stages)
    if groups > 1:
        product = faiss.ProductQuantizer(groups * dim, groups, bits)
        faiss.copy_array_to_vector(codebooks.ravel(), product.centroids)
        return lambda: product.compute_codes(x), lambda found: unpack(found, bits, groups).T[..., None]
    flat = faiss.IndexFlatL2(dim)
    flat.add(codebooks[0, 0])
    return lambda: flat.search(x, topk)[1], lambda found: found.reshape(1, -1, topk)


def unpack(codes: np.ndarray, bits: int, count: int) -> np.ndarray:
    """(N, bytes) packed codes, least significant bit first, as (N, count)."""
    flat = np.unpackbits(codes, axis=1, bitorder="little")[:, : bits * count].reshape(len(codes), count, bits)
    return (flat.astype(np.int64) << np.arange(bits)).sum(-1)


def clusterer(x: np.ndarray, centres: np.ndarray, iters: int) -> Call:
    """x (N, D), centres (K, D) to start from -> Lloyd's steps, and what keeps their result, (K, D), as it is."""
    count, dim = centres.shape

    def call() -> np.ndarray:
        lloyd = faiss.Clustering(dim, count)
        lloyd.niter, lloyd.max_points_per_centroid, lloyd.min_points_per_centroid = iters, len(x), 1
        faiss.copy_array_to_vector(centres.ravel(), lloyd.centroids)
        getattr(lloyd, "train")(x, faiss.IndexFlatL2(dim))  # noqa: B009  its stubs know another signature
        found: np.ndarray = faiss.vector_to_array(lloyd.centroids)
        return found.reshape(count, dim)

    return call, lambda found: found


def main(folder: Path, threads: int) -> None:
    """Answers a line "time" with milliseconds and a line "memory" with MiB; the first result stays in the folder."""
    faiss.omp_set_num_threads(threads)
    given = np.load(folder / "given.npz")
    x, codebooks = given["x"], given["codebooks"]
    if given["iters"]:
        call, as_result = clusterer(x, codebooks[0, 0], int(given["iters"]))
    else:
        call, as_result = searcher(x, codebooks, int(given["topk"]))
    first = True
    for line in sys.stdin:
        if line.strip() == "memory":
            print(peak_growth(call), flush=True)
            continue
        start = time.perf_counter()
        found = call()
        milliseconds = 1e3 * (time.perf_counter() - start)
        if first:
            np.save(folder / "result.npy", as_result(found))
            first = False
        print(milliseconds, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
