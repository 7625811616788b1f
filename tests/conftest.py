"""Shared test settings: no hub, no W&B server, few threads a worker."""

from __future__ import annotations

import os

import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# Tiny models gain nothing from threads, and the tests run in two workers on two cores.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"
