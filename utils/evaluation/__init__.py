"""Scores: average precision, its curves and pictures, shared by both evaluators and by training."""
