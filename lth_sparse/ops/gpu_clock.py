"""Time on a GPU: a call captured once in a CUDA graph and replayed between events, the L2 cache cold before each."""

from __future__ import annotations

from collections.abc import Callable

import torch

__all__ = ["GraphClock"]

#: Bytes written before each run, at least: more than any L2 cache holds.
FLUSH_BYTES = 256 * 2**20
ROUNDS, WARM_UPS = 15, 3


class GraphClock:
    """Times calls on one device. A graph leaves out what Python and the driver take to launch kernels."""

    def __init__(self, device: torch.device | str = "cuda") -> None:
        self.device = torch.device(device)
        cache = getattr(torch.cuda.get_device_properties(self.device), "L2_cache_size", 0)
        self.flush = torch.empty(max(FLUSH_BYTES, 2 * cache), dtype=torch.int8, device=self.device)

    def __call__(self, call: Callable[[], object], rounds: int = ROUNDS, *, cold: bool = True) -> list[float]:
        """Seconds of each round. ``call`` must be one that a CUDA graph can hold."""
        with torch.cuda.device(self.device):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):  # compiles and chooses algorithms outside of the capture
                for _ in range(WARM_UPS):
                    call()
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                call()
            pairs = [
                (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(rounds)
            ]
            for start, end in pairs:
                if cold:
                    self.flush.zero_()
                start.record()
                graph.replay()
                end.record()
            torch.cuda.synchronize()
            return [start.elapsed_time(end) * 1e-3 for start, end in pairs]
