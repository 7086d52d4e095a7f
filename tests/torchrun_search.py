"""A data-parallel search as a user writes it: torchrun --nproc-per-node 2 torchrun_search.py OUT die|resume

With `die` rank 1 kills itself in the middle of level 1, and torchrun ends rank 0.
"""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import torch
from parallel_search import OPTIONS, Trainer, die, network

import lth_sparse as ls


def main(out: Path, task: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    train = Trainer(rank, die if rank == 1 and task == "die" else None)
    ls.find_ticket(network(rank), train, directory=out / "run", **OPTIONS)
    (out / f"trained_{rank}").write_text("\n".join(train.trained))
    gc.collect()  # DistributedDataParallel before its process group, see tests/nn/test_compile.py
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
