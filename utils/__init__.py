"""Geometry, the detection pipeline, training loops and file formats."""
