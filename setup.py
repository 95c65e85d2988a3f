"""Package metadata lives in pyproject.toml; this file will build the optional C++/CUDA extension."""

from setuptools import setup

setup()
