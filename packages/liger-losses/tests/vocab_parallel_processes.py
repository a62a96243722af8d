"""Two ranks that run all cases of vocab parallelism; a script of test_vocab_parallel.

Arguments: the file over which the ranks meet, and the backend.
"""

import importlib
import sys
import time
from datetime import timedelta

import torch
from liger_core.lang import INTERPRET
from liger_core.testing import interpreter
from torch import distributed as dist, multiprocessing

RANKS = 2


def work(rank: int, store: str, backend: str) -> None:
    torch.set_num_threads(1)
    if backend == "nccl":
        torch.cuda.set_device(rank)
    dist.init_process_group(
        backend,
        init_method=f"file://{store}",
        rank=rank,
        world_size=RANKS,
        timeout=timedelta(seconds=120),
    )
    for name in ("vocab_parallel_cases", "vocab_parallel_linear_cases"):
        cases = vars(importlib.import_module(name))
        for check in [case for name, case in cases.items() if name.startswith("check_")]:
            start = time.perf_counter()
            torch.manual_seed(0)
            check()
            if rank == 0:
                print(f"{time.perf_counter() - start:6.2f} s {check.__name__}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    if INTERPRET:
        interpreter.install()
    # forked, so that the imports are paid once
    multiprocessing.start_processes(work, sys.argv[1:], nprocs=RANKS, start_method="fork")
