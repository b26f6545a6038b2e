"""Scores faces and persons on Open Images."""
