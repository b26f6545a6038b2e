"""The network, its building blocks and its checkpoints."""
