"""Where there is no GPU, Triton's interpreter runs the kernels.

It must be asked for before Triton is imported, and torch imports it: to compile, to count FLOPs.
"""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
