"""Time, memory and error of an op beside PyTorch and the installed peers.

`python -m liger_core.bench run norms` measures what `packages/liger-norms/benchmarks/bench.py`
lists: rows (an op of `tests/specs.py` at a shape) and peers (other implementations of it). Results
are JSON, one file per family; `python -m liger_core.bench tables` writes the README's table and
`docs/benchmarks.md` from them.

- `fwd`, `full`: ms of the forward, of forward plus backward; device events, L2 flushed, median.
- `gpu`: ms of the full pass as one CUDA-graph replay, L2 flushed: without launch cost.
- `host`: us of Python and launch work to enqueue one full pass; the queue is never saturated.
- `peak`: MiB above the resident inputs and incoming gradients during one full pass.
- `error`: ||result - reference|| / ||reference||, the reference computed in fp32.

On a CPU, times are wall times, and `gpu` and `peak` are absent.
"""

from .rows import Family, Peer, Row, compiled

__all__ = ["Family", "Peer", "Row", "compiled"]
