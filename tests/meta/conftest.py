"""One thread: the other tests share the machine, and small matrices gain nothing from two."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
