"""Helpers that the tests and the benchmarks share; the library itself never imports them."""
