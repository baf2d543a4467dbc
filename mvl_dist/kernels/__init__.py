"""Fused operations of the training step, one file each, and who decides which way they run.

Every operation's file offers the same names, with the same arguments:

    reference(...)      plain PyTorch, readable as mathematics, any device and dtype
    torch_fast(...)     the best plain PyTorch way; absent where it is the reference
    triton_fused(...)   Triton kernels, forward and backward
    cannot(...)         why Triton cannot run these very arguments, '' if it can

Models and losses call `dispatch.run(operation, ...)`, and `--kernels auto|triton|torch` decides:
docs/kernels.md.
"""
