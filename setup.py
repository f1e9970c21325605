"""The native part of the build; everything else is in pyproject.toml.

The kernel is optional: where it does not compile, the install goes on without it, and the package
computes the same in numpy, slower.
"""

from __future__ import annotations

from glob import glob

from setuptools import Extension, setup

NATIVE = "src/veilrun/mpc/_native"

setup(
    ext_modules=[
        Extension(
            "veilrun.mpc._kernel",
            sources=sorted(glob(f"{NATIVE}/*.c")),
            depends=sorted(glob(f"{NATIVE}/*.h")),
            extra_compile_args=["-O3", "-std=gnu11", "-fvisibility=hidden", "-pthread"],
            extra_link_args=["-pthread"],
            optional=True,
        )
    ]
)
