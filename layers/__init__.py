"""Priors and the training loss."""
