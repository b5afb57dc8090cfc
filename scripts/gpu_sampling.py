#!/usr/bin/env python3
"""Sampling of cnse beside PyTorch's chain and FlashInfer's samplers on one card, shape by shape in turn: float32 logits
that lie on the card, top-k 50, top-p 0.9 and both, peaked (Zipf, p ~ rank^-1.6) and flat (normal). Times are of graph
replays over inputs that are rotated so that they are past the cache, of one batch: of cnse the mean of 16 steps of
generation, of the others the median of 15 replays whose inputs have random numbers of their own. FlashInfer's time has
the softmax that its samplers ask for. Prints a table, and the least ratio for each of the two bounds asked for.

    python3 scripts/gpu_sampling.py SAMPLING [LIBRARY]

SAMPLING is the program `cuda` of tests/cuda.rs, LIBRARY what scripts/gpu_flashinfer.sh makes; without it FlashInfer is
left out.
"""
import ctypes
import itertools
import statistics
import subprocess
import sys

import torch

ROWS, VOCABS = (1, 8, 64, 256), (32_000, 128_256, 256_000)
MODES = ('top-k', 'top-p', 'both')
K, P = 50, 0.9
REPLAYS, WARM_UP = 15, 3
INPUT_BYTES, INPUTS_MAX = 256 << 20, 256
# PyTorch's kernels take memory of their own for each call that a graph holds.
TORCH_INPUTS_MAX = 8


class FlashInfer:
    """The samplers of the library."""

    def __init__(self, path):
        pointer, number = ctypes.c_void_p, ctypes.c_uint
        self.library = ctypes.CDLL(path)
        self.library.fi_softmax.argtypes = [pointer, pointer, number, number, pointer, ctypes.c_size_t, pointer]
        tail = [ctypes.c_ulong, pointer]
        shape = [pointer, pointer, pointer, number, number]
        self.library.fi_top_k.argtypes = shape + [number] + tail
        self.library.fi_top_p.argtypes = shape + [ctypes.c_float] + tail
        self.library.fi_both.argtypes = shape + [number, ctypes.c_float] + tail
        self.room = torch.empty(64 << 20, dtype=torch.uint8, device='cuda')

    def sampler(self, mode, rows, vocab):
        probabilities = torch.empty(rows, vocab, device='cuda')
        out = torch.full((rows,), -1, dtype=torch.int32, device='cuda')
        valid = torch.zeros(rows, dtype=torch.bool, device='cuda')
        function = getattr(self.library, 'fi_' + mode.replace('-', '_'))
        how = {'top-k': (K,), 'top-p': (P,), 'both': (K, P)}[mode]
        seeds = itertools.count(1234)

        def sample(logits):
            stream = torch.cuda.current_stream().cuda_stream
            made = probabilities.data_ptr()
            code = self.library.fi_softmax(logits.data_ptr(), made, rows, vocab, self.room.data_ptr(),
                                           self.room.numel(), stream)
            code = code or function(made, out.data_ptr(), valid.data_ptr(), rows, vocab, *how, next(seeds), stream)
            if code:
                sys.exit(f'gpu_sampling.py: error: FlashInfer, {mode}, {rows} x {vocab}: code {code}')
            return out

        return sample


def nucleus(probabilities):
    before = probabilities.cumsum(-1) - probabilities
    return torch.where(before < P, probabilities, torch.zeros_like(probabilities))


def torch_top_k(logits):
    values, tokens = logits.topk(K)
    return tokens.gather(1, torch.multinomial(values.softmax(-1), 1))


def torch_top_p(logits):
    values, tokens = logits.sort(descending=True)
    return tokens.gather(1, torch.multinomial(nucleus(values.softmax(-1)), 1))


def torch_both(logits):
    values, tokens = logits.topk(K)
    return tokens.gather(1, torch.multinomial(nucleus(values.softmax(-1)), 1))


TORCH = {'top-k': torch_top_k, 'top-p': torch_top_p, 'both': torch_both}


def timed(sample, inputs):
    """Microseconds of one batch."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for logits in inputs[:2]:
            drawn = sample(logits)
        stream.synchronize()
        if not bool(((drawn >= 0) & (drawn < inputs[0].shape[1])).all()):
            sys.exit('gpu_sampling.py: error: a sampler gave no token')
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for logits in inputs:
                sample(logits)
        times = []
        for replay in range(WARM_UP + REPLAYS):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            graph.replay()
            end.record()
            stream.synchronize()
            if replay >= WARM_UP:
                times.append(begin.elapsed_time(end) * 1e3 / len(inputs))
    return statistics.median(times)


def inputs_of(rows, vocab, is_flat):
    """Batches whose rows are one row, turned."""
    if is_flat:
        base = torch.randn(vocab, device='cuda')
    else:
        ranks = torch.arange(1, vocab + 1, device='cuda', dtype=torch.float64)
        base = (-1.6 * ranks.log()).float()[torch.randperm(vocab, device='cuda')]
    count = max(2, min(INPUTS_MAX, -(-INPUT_BYTES // (rows * vocab * 4))))
    turns = [torch.randint(0, vocab, (rows,)).tolist() for _ in range(count)]
    return [torch.stack([base.roll(turn) for turn in of_batch]) for of_batch in turns]


def ours(program, rows, vocab):
    """Microseconds by (spread, mode), and the share of a copy's bandwidth, as the program prints them."""
    command = [program, 'bench', str(rows), str(vocab)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    found = {}
    for line in lines:
        words = line.split()
        if len(words) == 7 and words[:2] == command[2:]:
            found[words[2].lower(), words[3]] = float(words[5]), words[6]
    return found


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    if not torch.cuda.is_available():
        sys.exit('gpu_sampling.py: error: PyTorch sees no card')
    torch.manual_seed(1)
    flashinfer = FlashInfer(sys.argv[2]) if len(sys.argv) == 3 else None
    print(f'{torch.cuda.get_device_name()}, PyTorch {torch.__version__}; microseconds of a batch, and how many times cnse\'s')
    print(f"{'rows':>4} {'vocab':>7} {'spread':<7} {'mode':<6} {'cnse':>8} {'copy':>6} {'FlashInfer':>11} {'times':>6} "
          f"{'PyTorch':>9} {'times':>6}", flush=True)
    least = {}
    for vocab in VOCABS:
        for rows in ROWS:
            cnse = ours(sys.argv[1], rows, vocab)
            for spread in ('peaked', 'flat'):
                inputs = inputs_of(rows, vocab, spread == 'flat')
                for mode in MODES:
                    us, share = cnse[spread, mode]
                    theirs = timed(flashinfer.sampler(mode, rows, vocab), inputs) if flashinfer else float('nan')
                    chain = timed(TORCH[mode], inputs[:TORCH_INPUTS_MAX])
                    print(f'{rows:>4} {vocab:>7} {spread:<7} {mode:<6} {us:>8.1f} {share:>6} {theirs:>11.1f} '
                          f'{theirs / us:>6.2f} {chain:>9.1f} {chain / us:>6.2f}', flush=True)
                    bound = 'vocab 32,000, 1.7 times asked' if vocab < 128_000 else 'vocab 128,256 and more, 3 times asked'
                    least.setdefault(bound, []).append((theirs / us, f'{rows} x {vocab} {spread} {mode}'))
                del inputs
                torch.cuda.empty_cache()
    for bound, ratios in least.items():
        if flashinfer:
            ratio, where = min(ratios)
            print(f'least against FlashInfer, {bound}: {ratio:.2f} ({where})')


main()
