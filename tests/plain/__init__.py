"""Slow, plain versions of what the project computes: oracles of tests, base lines of benchmarks."""
