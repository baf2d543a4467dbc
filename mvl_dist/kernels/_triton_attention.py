# mypy: allow-untyped-defs, disable-error-code="import-untyped"
# ruff: noqa: N803 (constants of a kernel are upper case, as Triton writes them)
"""Full attention in Triton, forward; and what both directions share.

    s = q k^T x scale log2(e)      lse = log2(sum_j 2^s)      o = sum_j 2^(s - lse) keep v / rate

One program owns BLOCK queries of one head and walks over all keys, STEP at a time, with the running
maximum and sum of Milakov and Gimelshein (2018), as FlashAttention does. Scores, probabilities and
sums stay in registers: the accumulator of one matrix product is laid out as the next one's operand.
A base-2 exponential is one instruction of the GPU; the scale is in its one multiply-add.

Layouts in memory: q, k, v (B, T, heads, D) with any strides but the last, which is 1; o
(B, T, heads, D); lse (B, heads, rows) float32 with `rows` = T rounded up to PAD, +inf behind T.
"""

import os

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET", "0") == "1")
"""Under the interpreter, on a CPU, there is no PTX."""

# Odd constants of the dropout's hash; `short_head_attention.keep_mask` has the same.
ROW = tl.constexpr(0x9E3779B1)
COLUMN = tl.constexpr(0x85EBCA6B)


@triton.jit
def dot(a, b, c):
    """a b + c in float32. float32 operands as three TF32 products, which keeps their precision."""
    return tl.dot(a, b, c, input_precision="tf32x3")


@triton.jit
def exp2(x, ON_FMA: tl.constexpr):
    """2^x for x of at most about 0: on the special function unit, or on the FMA units.

    A GPU has 16 special function lanes a multiprocessor and 128 FMA lanes. With 2^x = 2^n 2^f, n
    the nearest integer and f in [-1/2, 1/2], a cubic has a relative error of 7.5e-5, a fiftieth of
    what bfloat16 then rounds away (Cody and Waite 1980; used so by FlashAttention-4).
    """
    if ON_FMA:
        x = tl.maximum(x, -126.0)
        # 1.5 x 2^23 + x has no bits behind the point: its lowest bits are n.
        shifted = x + 12582912.0
        f = x - (shifted - 12582912.0)
        y = ((0.05517167 * f + 0.24261112) * f + 0.69326099) * f + 0.99992807
        bits = y.to(tl.int32, bitcast=True) + (shifted.to(tl.int32, bitcast=True) << 23)
        return bits.to(tl.float32, bitcast=True)
    return tl.math.exp2(x)


@triton.jit
def mix(x):
    """Hash of 32 bits, a bijection in which every bit depends on every other (lowbias32)."""
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def row_hash(seed_ptr, pair, row):
    """One random word for each query of a head; `pair` numbers the heads of all samples."""
    seed = mix(tl.load(seed_ptr).to(tl.uint32) + pair.to(tl.uint32) * ROW)
    return mix(seed + row.to(tl.uint32))


@triton.jit
def choose(row, column, limit, x, otherwise):
    """x where dropout keeps a score, else `otherwise`; all float32 (rows, columns).

    A score is kept if (hash of its query ^ its key x COLUMN) x ROW < limit, in 32 bits: four
    instructions a score. Philox takes about seventy for four words; the scores are so many that it
    would take longer than the attention. Written in PTX because LLVM would gather all comparisons
    of a thread in one vector of bits and take it apart again: five instructions more a score.
    """
    if INTERPRETED:
        return tl.where(((row ^ column) * ROW) < limit, x, otherwise)
    return tl.inline_asm_elementwise(
        """
        {
            .reg .pred keep;
            .reg .b32 word;
            xor.b32 word, $1, $2;
            mul.lo.u32 word, word, 0x9E3779B1;
            setp.lo.u32 keep, word, $3;
            selp.f32 $0, $4, $5, keep;
        }
        """,
        "=f,r,r,r,f,f",
        [row, column, limit, x, otherwise],
        dtype=tl.float32,
        is_pure=True,
        pack=1,
    )


@triton.jit
def load_rows(ptr, token, stride, T, D: tl.constexpr):
    """Rows (len(token), D); behind the end the last row again, so that nothing is masked."""
    token = tl.minimum(token, T - 1)
    return tl.load(ptr + token[:, None] * stride + tl.arange(0, D)[None, :])


@triton.jit
def store_rows(ptr, x, token, stride, T, D: tl.constexpr):
    """Store float32 rows (len(token), D) in the precision of `ptr`; none behind the end."""
    pointers = ptr + token[:, None] * stride + tl.arange(0, D)[None, :]
    tl.store(pointers, x.to(ptr.dtype.element_ty), mask=(token < T)[:, None])


@triton.jit
def forward_step(
    q, k, v, row, column, key, T, acc, total, top, scale, limit,
    DROPOUT: tl.constexpr, LAST: tl.constexpr, ON_FMA: tl.constexpr, SUM_BY_MMA: tl.constexpr,
):  # fmt: skip
    """Add STEP keys to the running output, sum and maximum."""
    s = dot(q, tl.trans(k), tl.zeros([q.shape[0], k.shape[0]], tl.float32))
    if LAST:
        s = tl.where((key < T)[None, :], s, -float("inf"))
    new_top = tl.maximum(top, tl.max(s, 1) * scale)
    shrink = tl.math.exp2(top - new_top)
    p = exp2(s * scale - new_top[:, None], ON_FMA and q.dtype != tl.float32)
    if SUM_BY_MMA:
        ones = tl.full([k.shape[0], 8], 1.0, tl.float32).to(v.dtype)
        total = dot(p.to(v.dtype), ones, total * shrink[:, None])
    else:
        total = total * shrink + tl.sum(p, 1)
    if DROPOUT:
        p = choose(row[:, None], column[None, :], limit, p, 0.0)
    acc = dot(p.to(v.dtype), v, acc * shrink[:, None])
    return acc, total, new_top


@triton.jit
def forward(
    q_ptr, k_ptr, v_ptr, o_ptr, lse_ptr, seed_ptr,
    q_batch, q_token, q_head, k_batch, k_token, k_head, v_batch, v_token, v_head,
    T, rows, heads, scale, limit, rate,
    GROUP: tl.constexpr, D: tl.constexpr, DROPOUT: tl.constexpr,
    BLOCK: tl.constexpr, STEP: tl.constexpr, STEPS: tl.constexpr, FMA_STEPS: tl.constexpr,
):  # fmt: skip
    """Write o and lse. Grid: (rows / BLOCK x heads x B,), the blocks of a head one after another.

    Args:
        rows: T rounded up to PAD.
        heads: of queries; GROUP of them share one head of k and v.
        scale: log2(e) / sqrt(D).
        limit: of the hash, 32 bits in an int32; below it a probability is kept.
        rate: that is kept, limit / 2^32.
        STEPS: steps of keys in one turn of the loop; FMA_STEPS of them use the FMA units' exp2.
    """
    # A column of ones beside v: the matrix unit, which has time here, sums the probabilities. It
    # does not pay where the products are as long as 128.
    SUM_BY_MMA: tl.constexpr = D <= 32
    blocks = rows // BLOCK
    pair = tl.program_id(0) // blocks
    batch, head = (pair // heads).to(tl.int64), pair % heads
    limit = limit.to(tl.uint32)
    query = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    q = load_rows(q_ptr + batch * q_batch + head * q_head, query, q_token, T, D)
    k_ptr += batch * k_batch + head // GROUP * k_head
    v_ptr += batch * v_batch + head // GROUP * v_head
    row = query.to(tl.uint32)
    if DROPOUT:
        row = row_hash(seed_ptr, pair, query)
    # Carried by the loop, or the compiler works it out from the lane's number for each key.
    column = tl.arange(0, STEP).to(tl.uint32) * COLUMN
    acc = tl.zeros([BLOCK, D], tl.float32)
    top = tl.full([BLOCK], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK, 8], tl.float32) if SUM_BY_MMA else tl.zeros([BLOCK], tl.float32)
    whole = T // (STEP * STEPS) * (STEP * STEPS)
    for start in range(0, whole, STEP * STEPS):
        for i in tl.static_range(STEPS):
            key = start + i * STEP + tl.arange(0, STEP)
            acc, total, top = forward_step(
                q, load_rows(k_ptr, key, k_token, T, D), load_rows(v_ptr, key, v_token, T, D),
                row, column, key, T, acc, total, top, scale, limit,
                DROPOUT, False, i < FMA_STEPS, SUM_BY_MMA,
            )  # fmt: skip
            column += STEP * COLUMN & 0xFFFFFFFF
    for start in range(whole, T, STEP):
        key = start + tl.arange(0, STEP)
        acc, total, top = forward_step(
            q, load_rows(k_ptr, key, k_token, T, D), load_rows(v_ptr, key, v_token, T, D),
            row, column, key, T, acc, total, top, scale, limit,
            DROPOUT, True, False, SUM_BY_MMA,
        )  # fmt: skip
        column += STEP * COLUMN & 0xFFFFFFFF
    if SUM_BY_MMA:
        total = tl.max(total, 1)
    o = acc / (total * rate)[:, None]
    store_rows(o_ptr + (batch * T * heads + head) * D, o, query, heads * D, T, D)
    lse = tl.where(query < T, top + tl.math.log2(total), float("inf"))
    tl.store(lse_ptr + pair.to(tl.int64) * rows + query, lse)
