"""What a model costs: FLOP, memory of its activations, time; and the paper's figures beside it.

FLOP and memory are counted with fake tensors: torch runs the step on shapes alone, so nothing is
allocated and 128^3 voxels through Llama-3.1-8B's block take seconds on any machine. A model may
hold meta tensors (see `models.weightless`).
"""
