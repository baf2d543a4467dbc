# mypy: allow-untyped-defs, disable-error-code="import-untyped"
# ruff: noqa: N803 (constants of a kernel are upper case, as Triton writes them)
"""Full attention in Triton, backward, in two kernels that write each gradient once.

    p = 2^(s - lse)                         dp = keep (do v^T)          delta = rowsum(o do) rate
    ds = p (dp - delta)                     dq = ds k x c               dk = ds^T q x c
    dv = (p keep)^T do / rate               c = 1 / (sqrt(D) rate)

`queries` owns BLOCK queries and walks over the keys; `keys` owns BLOCK keys and walks over the
queries. So p and ds are computed twice, but they never leave the registers: as accumulators they
are laid out as the next product's left operand. One kernel for all three would save an exponential
and two of seven products a score, but must turn ds around through shared memory between two
barriers in every step and add up dq in memory with atomics, in an order that changes from run to
run; at head size 16 both of these cost per score what the exponential does. The exponential that is
computed twice goes in part to the FMA units instead (`exp2`). Two kernels repeat bit for bit.
"""

import triton
import triton.language as tl

from mvl_dist.kernels._triton_attention import (
    COLUMN,
    choose,
    dot,
    exp2,
    load_rows,
    row_hash,
    store_rows,
)


@triton.jit
def queries_step(
    q, do, k, v, lse, minus_delta, row, column, key, T, dq, scale, limit,
    DROPOUT: tl.constexpr, LAST: tl.constexpr, ON_FMA: tl.constexpr,
):  # fmt: skip
    """Add STEP keys to dq."""
    s = dot(q, tl.trans(k), tl.zeros([q.shape[0], k.shape[0]], tl.float32))
    p = exp2(s * scale - lse[:, None], ON_FMA and q.dtype != tl.float32)
    if LAST:
        p = tl.where((key < T)[None, :], p, 0.0)
    # The accumulator begins at -delta: the subtraction costs nothing.
    base = tl.broadcast_to(minus_delta[:, None], s.shape)
    dp = dot(do, tl.trans(v), base)
    if DROPOUT:
        dp = choose(row[:, None], column[None, :], limit, dp, base)
    return dot((p * dp).to(k.dtype), k, dq)


@triton.jit
def queries(
    q_ptr, k_ptr, v_ptr, o_ptr, do_ptr, lse_ptr, minus_delta_ptr, hash_ptr, dq_ptr, seed_ptr,
    q_batch, q_token, q_head, k_batch, k_token, k_head, v_batch, v_token, v_head,
    dq_batch, dq_token, dq_head,
    T, rows, heads, scale, limit, rate, unscale,
    GROUP: tl.constexpr, D: tl.constexpr, DROPOUT: tl.constexpr,
    BLOCK: tl.constexpr, STEP: tl.constexpr, STEPS: tl.constexpr, FMA_STEPS: tl.constexpr,
):  # fmt: skip
    """Write dq, and -delta and the queries' hashes (B, heads, rows), which `keys` reads.

    Grid and arguments are `forward`'s; o and do are (B, T, heads, D); `unscale` is c.
    """
    blocks = rows // BLOCK
    pair = tl.program_id(0) // blocks
    batch, head = (pair // heads).to(tl.int64), pair % heads
    limit = limit.to(tl.uint32)
    query = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    q = load_rows(q_ptr + batch * q_batch + head * q_head, query, q_token, T, D)
    packed = (batch * T * heads + head) * D
    do = load_rows(do_ptr + packed, query, heads * D, T, D)
    o = load_rows(o_ptr + packed, query, heads * D, T, D)
    k_ptr += batch * k_batch + head // GROUP * k_head
    v_ptr += batch * v_batch + head // GROUP * v_head
    per_row = pair.to(tl.int64) * rows + query
    lse = tl.load(lse_ptr + per_row)
    minus_delta = tl.sum(o.to(tl.float32) * do.to(tl.float32), 1) * -rate
    tl.store(minus_delta_ptr + per_row, minus_delta)
    row = query.to(tl.uint32)
    if DROPOUT:
        row = row_hash(seed_ptr, pair, query)
        tl.store(hash_ptr + per_row, row.to(tl.int32, bitcast=True))
    column = tl.arange(0, STEP).to(tl.uint32) * COLUMN
    dq = tl.zeros([BLOCK, D], tl.float32)
    whole = T // (STEP * STEPS) * (STEP * STEPS)
    for start in range(0, whole, STEP * STEPS):
        for i in tl.static_range(STEPS):
            key = start + i * STEP + tl.arange(0, STEP)
            dq = queries_step(
                q, do, load_rows(k_ptr, key, k_token, T, D), load_rows(v_ptr, key, v_token, T, D),
                lse, minus_delta, row, column, key, T, dq, scale, limit,
                DROPOUT, False, i < FMA_STEPS,
            )  # fmt: skip
            column += STEP * COLUMN & 0xFFFFFFFF
    for start in range(whole, T, STEP):
        key = start + tl.arange(0, STEP)
        dq = queries_step(
            q, do, load_rows(k_ptr, key, k_token, T, D), load_rows(v_ptr, key, v_token, T, D),
            lse, minus_delta, row, column, key, T, dq, scale, limit,
            DROPOUT, True, False,
        )  # fmt: skip
        column += STEP * COLUMN & 0xFFFFFFFF
    dq_ptr += batch * dq_batch + head * dq_head
    store_rows(dq_ptr, dq * unscale, query, dq_token, T, D)


@triton.jit
def keys(
    q_ptr, k_ptr, v_ptr, do_ptr, lse_ptr, minus_delta_ptr, hash_ptr, dk_ptr, dv_ptr,
    q_batch, q_token, q_head, k_batch, k_token, k_head, v_batch, v_token, v_head,
    dk_batch, dk_token, dk_head,
    T, rows, kv_heads, scale, limit, rate, unscale,
    GROUP: tl.constexpr, D: tl.constexpr, DROPOUT: tl.constexpr,
    BLOCK: tl.constexpr, STEP: tl.constexpr, STEPS: tl.constexpr, FMA_STEPS: tl.constexpr,
):  # fmt: skip
    """Write dk and dv, summed over the GROUP query heads that share them.

    Grid: (rows / BLOCK x kv_heads x B,). Queries behind T have lse = +inf, hence p = 0: no masks.
    """
    blocks = rows // BLOCK
    pair = tl.program_id(0) // blocks
    batch, kv_head = (pair // kv_heads).to(tl.int64), pair % kv_heads
    limit = limit.to(tl.uint32)
    key = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    k = load_rows(k_ptr + batch * k_batch + kv_head * k_head, key, k_token, T, D)
    v = load_rows(v_ptr + batch * v_batch + kv_head * v_head, key, v_token, T, D)
    heads = kv_heads * GROUP
    column = key.to(tl.uint32) * COLUMN
    dk = tl.zeros([BLOCK, D], tl.float32)
    dv = tl.zeros([BLOCK, D], tl.float32)
    for member in range(GROUP):
        head = kv_head * GROUP + member
        head_q = q_ptr + batch * q_batch + head * q_head
        head_do = do_ptr + (batch * T * heads + head) * D
        head_row = (batch * heads + head) * rows
        for start in range(0, T, STEP * STEPS):
            for i in tl.static_range(STEPS):
                query = start + i * STEP + tl.arange(0, STEP)
                q = load_rows(head_q, query, q_token, T, D)
                do = load_rows(head_do, query, heads * D, T, D)
                lse = tl.load(lse_ptr + head_row + query)
                minus_delta = tl.load(minus_delta_ptr + head_row + query)
                s = dot(k, tl.trans(q), tl.zeros([BLOCK, STEP], tl.float32))
                p = exp2(s * scale - lse[None, :], i < FMA_STEPS and q.dtype != tl.float32)
                base = tl.broadcast_to(minus_delta[None, :], s.shape)
                dp = dot(v, tl.trans(do), base)
                if DROPOUT:
                    row = tl.load(hash_ptr + head_row + query).to(tl.uint32, bitcast=True)
                    dp = choose(row[None, :], column[:, None], limit, dp, base)
                    kept = choose(row[None, :], column[:, None], limit, p, 0.0)
                    dv = dot(kept.to(do.dtype), do, dv)
                else:
                    dv = dot(p.to(do.dtype), do, dv)
                dk = dot((p * dp).to(q.dtype), q, dk)
    base_offset = batch * dk_batch + kv_head * dk_head
    store_rows(dk_ptr + base_offset, dk * unscale, key, dk_token, T, D)
    store_rows(dv_ptr + base_offset, dv / rate, key, dk_token, T, D)
