"""Scores faces on WIDER FACE."""
