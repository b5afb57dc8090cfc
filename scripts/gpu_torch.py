#!/usr/bin/env python3
"""PyTorch on the same card, for the figures of `cnse bench gpu` to stand beside: a copy, mean pool, normalisation,
quantisation, dequantisation and matmul + topk, in the same shapes. Prints one JSON object.

    python3 scripts/gpu_torch.py > torch.json
"""
import json
import statistics
import sys

import torch

SAMPLES = 21


def timed(call, inputs=1):
    """Microseconds of one call, by events around as many as fill 2 ms: the median of the samples."""
    for i in range(3):
        call(i % inputs)
    torch.cuda.synchronize()

    def sample(count):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for i in range(count):
            call(i % inputs)
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) * 1e3 / count

    count = max(inputs, min(4096, int(2000 / max(sample(inputs), 1e-3)) + 1))
    return statistics.median(sample(count) for _ in range(SAMPLES))


def main():
    if not torch.cuda.is_available():
        sys.exit('gpu_torch.py: PyTorch sees no card')
    torch.manual_seed(1)
    torch.backends.cuda.matmul.allow_tf32 = False
    mib = 256
    dims, tokens = 1024, 512
    rows = mib * 2**20 // 4 // dims
    x = [torch.randn(rows, dims, device='cuda') for _ in range(2)]
    out = torch.empty_like(x[0])
    runs = []

    def add(name, shape, moved, us):
        runs.append({'name': name, 'shape': shape, 'bytes': moved, 'time_us': us, 'gb_per_s': moved / us / 1e3})

    size = x[0].numel() * 4
    add('copy', f'{mib} MiB', 2 * size, timed(lambda i: out.copy_(x[i]), 2))
    add('mean_pool', f'[{rows // tokens} x {tokens}, {dims}]', size,
        timed(lambda i: x[i].view(-1, tokens, dims).mean(1), 2))
    add('normalize', f'[{rows}, {dims}]', 2 * size, timed(lambda i: torch.nn.functional.normalize(x[i]), 2))

    def int8(v):
        return torch.round(v * (127 / v.abs().amax(1, keepdim=True))).to(torch.int8)

    add('quantize int8', f'[{rows}, {dims}]', size * 5 // 4, timed(lambda i: int8(x[i]), 2))
    add('truncate=256, normalize, int8', f'[{rows}, {dims}]', rows * 256 * 5,
        timed(lambda i: int8(torch.nn.functional.normalize(x[i][:, :256])), 2))
    del x, out
    corpus = torch.randn(4 * mib * 2**20 // 4 // 768, 768, device='cuda')
    unit = torch.nn.functional.normalize(corpus)
    for queries in (1, 8, 64):
        q = torch.nn.functional.normalize(torch.randn(queries, 768, device='cuda'))
        shape = f'{queries} x [{len(corpus)}, 768], k = 10'
        # Of rows that are normalised already, which costs the corpus a pass of its own.
        us = timed(lambda _: torch.topk(q @ unit.T, 10))
        add('search f32, rows of length 1', shape, corpus.numel() * 4, us)
        us = timed(lambda _: torch.topk((q @ corpus.T) / corpus.norm(dim=1), 10))
        add('search f32', shape, corpus.numel() * 4, us)
    print(json.dumps({'torch': torch.__version__, 'gpu': torch.cuda.get_device_name(), 'runs': runs}, indent=1))
    for run in runs:
        print(f"{run['name']:<34} {run['shape']:<34} {run['time_us']:>11.3f} us {run['gb_per_s']:>9.1f} GB/s", file=sys.stderr)


main()
