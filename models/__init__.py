"""The network, its building blocks and its checkpoints."""

try:
    import torchvision
except RuntimeError as error:
    import torch

    raise ImportError(
        f"torch {torch.__version__} and the installed torchvision do not belong together ({error}); "
        f"install both at once in a fresh virtual environment: pip install -r requirements.txt"
    ) from None
del torchvision
