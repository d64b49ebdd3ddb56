"""Other libraries' APIs on fastvq's kernels: one import line to change."""
