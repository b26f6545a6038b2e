"""Scores: average precision, its curves and images, shared by both evaluators and by training."""
