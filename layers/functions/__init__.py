"""Functions of the image size alone: the priors."""
