"""Benchmarks against peers and floors; raw rows stay under ``results/<device>/``."""
