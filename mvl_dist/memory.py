"""What a run needs of each GPU, and of each node while it starts, under every ZeRO stage.

Counted are the tensors that a rank keeps: weights, gradients, Adam's state, DeepSpeed's buckets and
gathered weights, activations. Not counted is what lies outside torch's tensors: the CUDA context
and NCCL (1 to 2 GiB a GPU), and an allocator's fragments.

Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models", 2020,
section 3: with S trainable parameters, K bytes of optimizer state each and N ranks, stage 1 keeps
K S / N, stage 2 also the gradients' Nth part, stage 3 also the weights'.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

GIB = 2**30
# Left to the CUDA context, NCCL and what an allocator fragments.
RESERVED_GIB = 4.0
# float32 master weight and Adam's two moments; DeepSpeed keeps the master in float32 runs too.
OPTIMIZER_BYTES = 12
# DeepSpeed's defaults where its config names none.
DEFAULTS = {
    "reduce_bucket_size": 500_000_000,
    "allgather_bucket_size": 500_000_000,
    "stage3_prefetch_bucket_size": 50_000_000,
    "stage3_param_persistence_threshold": 100_000,
}


@dataclass(frozen=True)
class Layers:
    """What of a network decides its memory.

    Attributes:
        trainable, frozen: numbers of elements, a parameter each.
        largest_layer: elements of the parameters that one forward call needs together.
        activation_bytes: of a training step of one sample.
    """

    trainable: tuple[int, ...]
    frozen: tuple[int, ...]
    largest_layer: int
    activation_bytes: int


@dataclass(frozen=True)
class RankMemory:
    """Bytes of a rank: on its GPU, and (offloaded) of the node's memory.

    Attributes:
        buckets: where gradients wait for a collective.
        gathered: stage 3's whole weights of the layers that are computing, or come next.
    """

    weights: int
    gradients: int
    optimizer: int
    buckets: int
    gathered: int
    activations: int
    host: int

    @property
    def gpu(self) -> int:
        """All that is on the GPU."""
        kept = self.weights + self.gradients + self.optimizer
        return kept + self.buckets + self.gathered + self.activations


def rank_memory(
    layers: Layers, settings: Mapping[str, Any], ranks: int, batch_size: int
) -> RankMemory:
    """What one rank keeps in a training step.

    Args:
        settings: a DeepSpeed config, as deepspeed_configs/ holds them.
        ranks: GPUs of the run.
        batch_size: samples a step over all ranks.
    """
    zero = settings["zero_optimization"]
    stage = zero["stage"]
    width = 2 if settings.get("bf16", {}).get("enabled") else 4
    trainable, frozen = sum(layers.trainable), sum(layers.frozen)
    samples = -(-batch_size // ranks)
    gradients = width * trainable
    optimizer = OPTIMIZER_BYTES * trainable
    weights = width * (trainable + frozen)
    buckets = gathered = 0
    if stage == 0 and width == 4:
        optimizer = 8 * trainable  # torch's Adam on the weights themselves
    if stage >= 1:
        optimizer = -(-optimizer // ranks)
        buckets = width * min(_setting(zero, "reduce_bucket_size"), trainable)
    if stage >= 2:
        gradients = -(-gradients // ranks)
    if stage == 3:
        weights, gathered = _partitioned(layers, zero, ranks, width)
        buckets = width * _setting(zero, "reduce_bucket_size")  # made whole, however few gradients
    host = 0
    if zero.get("offload_optimizer", {}).get("device", "none") != "none":
        host += optimizer + gradients
        optimizer = gradients = 0
    if zero.get("offload_param", {}).get("device", "none") != "none":
        host += weights
        weights = 0
    activations = samples * layers.activation_bytes
    return RankMemory(weights, gradients, optimizer, buckets, gathered, activations, host)


def fits_into(need: RankMemory, gpu_gib: float) -> bool:
    """Whether a rank has room on a GPU of so many GiB."""
    return need.gpu / GIB + RESERVED_GIB <= gpu_gib


def starting_host_bytes(layers: Layers, ranks_a_node: int) -> int:
    """A node's memory while a run starts: each rank builds the whole network before it is cut."""
    return 4 * (sum(layers.trainable) + sum(layers.frozen)) * ranks_a_node


def _partitioned(
    layers: Layers, zero: Mapping[str, Any], ranks: int, width: int
) -> tuple[int, int]:
    """Stage 3's weights: a rank's shares with the small ones that stay whole; those gathered."""
    threshold = _setting(zero, "stage3_param_persistence_threshold")
    sizes: Sequence[int] = (*layers.trainable, *layers.frozen)
    shares = sum(-(-size // ranks) for size in sizes)
    whole = sum(size for size in sizes if size < threshold)
    gathered = min(layers.largest_layer + _setting(zero, "stage3_prefetch_bucket_size"), sum(sizes))
    return width * (shares + whole), width * gathered


def _setting(zero: Mapping[str, Any], name: str) -> int:
    return int(zero.get(name, DEFAULTS[name]))
