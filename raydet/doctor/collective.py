"""`python -m raydet.doctor.collective RANK WORLD_SIZE URL BACKEND DEVICE`: one rank of a sum over all GPUs.

Exits with 0 if the sum is right. A run would notice only after minutes that NCCL fails between two nodes.
"""

from __future__ import annotations

import sys
import warnings
from datetime import timedelta

TIMEOUT_S = 40.0


def main(rank: int, world_size: int, url: str, backend: str, device: str) -> int:
    """Take part in the sum; returns the exit code."""
    import torch
    import torch.distributed as dist

    if device != "cpu":
        torch.cuda.set_device(device)
    dist.init_process_group(
        backend, init_method=url, rank=rank, world_size=world_size, timeout=timedelta(seconds=TIMEOUT_S)
    )
    number = torch.full((1024,), float(rank + 1), device=device)
    dist.all_reduce(number)
    expected = world_size * (world_size + 1) / 2
    is_right = bool((number == expected).all())
    dist.destroy_process_group()
    if not is_right:
        sys.stderr.write(f"expected a sum of {expected}, got {number[0].item()}\n")
    return 0 if is_right else 1


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:6]))
