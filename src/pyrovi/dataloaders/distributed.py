"""Where this process stands among those that train together."""

from __future__ import annotations

import torch.distributed


def distributed_rank_and_size() -> tuple[int, int]:
    """Rank of this process and number of processes; ``(0, 1)`` outside ``torch.distributed``."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1
