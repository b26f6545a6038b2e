"""Compiles the kernels of this evaluator.

Example:
    python3 setup.py build_ext --inplace
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.evaluation.build import build_kernels

if __name__ == "__main__":
    build_kernels("data.prediction_parser", "widerface_evaluate.kernel")
