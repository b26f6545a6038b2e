"""Compiles the kernel of this evaluator, and the detector's for what follows the network on the CPU.

Example:
    python3 setup.py build_ext --inplace
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def build_kernels(*modules: str) -> None:
    """Runs the command line (`build_ext --inplace`) for ``modules``, dotted names below the project's root.

    It goes through `Distribution`, not `setup`: the kernels are no package of their own, and the project's
    `pyproject.toml` is none of their business.
    """
    from Cython.Build import cythonize
    from setuptools import Distribution, Extension

    os.chdir(ROOT)
    # Without this, compilers for ARM fuse a*b+c, which rounds differently from NumPy.
    flags = [] if sys.platform == "win32" else ["-O3", "-ffp-contract=off"]
    extensions = [
        Extension(name, [f"{name.replace('.', '/')}.pyx"], extra_compile_args=flags) for name in modules
    ]
    build = Distribution(
        {
            "name": "retinaface-2cls-kernels",
            "script_name": "setup.py",
            "script_args": sys.argv[1:],
            "ext_modules": cythonize(extensions, include_path=["."], build_dir="build/cython", quiet=True),
        }
    )
    if build.parse_command_line():
        build.run_commands()


if __name__ == "__main__":
    build_kernels("widerface_evaluate.kernel", "models.kernel")
