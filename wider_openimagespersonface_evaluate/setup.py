"""Compiles the kernels of this evaluator: COCO's rule, and the overlaps that both evaluators share.

Example:
    python3 setup.py build_ext --inplace
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from widerface_evaluate.setup import build_kernels

if __name__ == "__main__":
    build_kernels("widerface_evaluate.kernel", "wider_openimagespersonface_evaluate.kernel")
