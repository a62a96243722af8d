"""Kernels that compile_check.py must object to, and one that it must not."""

import triton
import triton.language as tl


@triton.jit
def clean(X, Y, stride, N, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    x = tl.load(X + row * stride + cols, mask=cols < N, other=0.0).to(tl.float32)
    tl.store(Y + row * stride + cols, (x / tl.sum(x, axis=0)).to(Y.dtype.element_ty), mask=cols < N)


@triton.jit
def int32_address(X, Y, stride, N, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    cols = tl.arange(0, BLOCK)
    tl.store(
        Y + row * stride + cols, tl.load(X + row * stride + cols, mask=cols < N), mask=cols < N
    )


@triton.jit
def int32_carried(X, Y, stride, N, BLOCK: tl.constexpr):
    offset = 0
    for i in range(N):
        offset += i * stride
        if offset > 5:
            offset = stride
    tl.store(Y + offset, tl.load(X))


@triton.jit
def float_atomic(X, Y, N, BLOCK: tl.constexpr):
    cols = tl.arange(0, BLOCK)
    tl.atomic_add(Y, tl.sum(tl.load(X + cols, mask=cols < N, other=0.0), axis=0))


@triton.jit
def matmul(A, B, C, N, K, TWICE: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr):
    rows, cols = tl.arange(0, BLOCK).to(tl.int64), tl.arange(0, BLOCK_K)
    acc = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)
    for k in range(0, K, BLOCK_K):
        a = tl.load(A + rows[:, None] * K + k + cols[None, :])
        b = tl.load(B + rows[None, :] * K + k + cols[:, None])
        acc = tl.dot(a, b, acc)
        if TWICE:
            acc = tl.dot(a, b, acc)
    tl.store(C + rows[:, None] * N + rows[None, :], acc)
