// What the kernels that score rows share: keys, where those that may be among the nearest are appended, and rows of
// bytes. A block of 256 threads has 32 groups of 8, a group R rows, each against Q queries; the grid has
// ceil(rows / (32 R)) * ceil(queries / Q) blocks.
#pragma once

#define FULL 0xffffffffu

// Larger keys are nearer: the score's bits in order, then the row, the first in the corpus first.
__device__ __forceinline__ unsigned long long key_of(float score, unsigned row) {
    unsigned bits = __float_as_uint(score);
    bits = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return (unsigned long long)bits << 32 | ~row;
}

struct Found {
    const unsigned long long *bounds; // of each query: a key below its k nearest so far
    unsigned *counts;                 // of each query: how many were appended
    unsigned long long *keys;         // of each query: room for as many as there are rows in this part
    unsigned room;
    __device__ __forceinline__ void add(unsigned query, float score, unsigned row) const {
        unsigned long long key = key_of(score, row);
        if (key > bounds[query]) keys[(size_t)query * room + atomicAdd(&counts[query], 1u)] = key;
    }
};

__device__ __forceinline__ float cosine(float dot, float a, float b) {
    float lengths = a * b;
    return lengths > 0.0f ? __fdiv_rn(dot, lengths) + 0.0f : 0.0f;
}

// A word of a row of bytes; what is past its end is 0, which neither product nor difference sees.
template <bool ALIGNED> __device__ __forceinline__ uint4 load16(const unsigned char *row, unsigned i, unsigned bytes);
template <> __device__ __forceinline__ uint4 load16<true>(const unsigned char *row, unsigned i, unsigned bytes) {
    return i < bytes ? __ldg((const uint4 *)(row + i)) : make_uint4(0, 0, 0, 0);
}
template <> __device__ __forceinline__ uint4 load16<false>(const unsigned char *row, unsigned i, unsigned bytes) {
    unsigned word[4] = {0, 0, 0, 0};
#pragma unroll
    for (int b = 0; b < 16; b++)
        if (i + b < bytes) word[b / 4] |= (unsigned)__ldg(row + i + b) << (8 * (b % 4));
    return make_uint4(word[0], word[1], word[2], word[3]);
}

template <typename Kind> __device__ __forceinline__ int words(uint4 a, uint4 b, int sum) {
    sum = Kind::word(a.x, b.x, sum);
    sum = Kind::word(a.y, b.y, sum);
    sum = Kind::word(a.z, b.z, sum);
    return Kind::word(a.w, b.w, sum);
}

__device__ __forceinline__ int sum8(int p) {
#pragma unroll
    for (int half = 4; half > 0; half /= 2) p += __shfl_down_sync(FULL, p, half, 8);
    return p;
}

template <typename Kind, int Q, int R, bool ALIGNED>
__device__ __forceinline__ void score_bytes(const unsigned char *rows, unsigned count, unsigned bytes,
                                            const unsigned char *queries, const float *lengths, unsigned query_count,
                                            unsigned first, Found found) {
    unsigned g = threadIdx.x & 7, tiles = (query_count + Q - 1) / Q;
    unsigned query = blockIdx.x % tiles * Q, row = (blockIdx.x / tiles * 32 + (threadIdx.x >> 3)) * R;
    const unsigned char *at[R], *of[Q];
    int sums[Q][R], squares[R];
#pragma unroll
    for (int r = 0; r < R; r++) {
        at[r] = rows + (size_t)min(row + r, count - 1) * bytes;
        squares[r] = 0;
#pragma unroll
        for (int q = 0; q < Q; q++) sums[q][r] = 0;
    }
#pragma unroll
    for (int q = 0; q < Q; q++) of[q] = queries + (size_t)min(query + q, query_count - 1) * bytes;
#pragma unroll 2
    for (unsigned i = 16 * g; i < bytes + 16 * g; i += 128) {
        uint4 v[R];
#pragma unroll
        for (int r = 0; r < R; r++) v[r] = load16<ALIGNED>(at[r], i, bytes);
        if (Kind::HAS_LENGTH) {
#pragma unroll
            for (int r = 0; r < R; r++) squares[r] = words<Kind>(v[r], v[r], squares[r]);
        }
#pragma unroll
        for (int q = 0; q < Q; q++) {
            uint4 w = load16<ALIGNED>(of[q], i, bytes);
#pragma unroll
            for (int r = 0; r < R; r++) sums[q][r] = words<Kind>(w, v[r], sums[q][r]);
        }
    }
#pragma unroll
    for (int r = 0; r < R; r++) {
        float length = Kind::HAS_LENGTH ? __fsqrt_rn((float)sum8(squares[r])) : 0.0f;
#pragma unroll
        for (int q = 0; q < Q; q++) {
            int sum = sum8(sums[q][r]);
            if (g == 0 && row + r < count && query + q < query_count) {
                float of_query = lengths == 0 ? 0.0f : lengths[query + q];
                found.add(query + q, Kind::score(sum, of_query, length, bytes), first + row + r);
            }
        }
    }
}

#define SCORE_BYTES(NAME, KIND, Q, R, ALIGNED)                                                                       \
    extern "C" __global__ void __launch_bounds__(256) score_##NAME(                                                  \
        const unsigned char *rows, unsigned count, unsigned bytes, const unsigned char *queries,                     \
        const float *lengths, unsigned query_count, unsigned first, const unsigned long long *bounds,                \
        unsigned *counts, unsigned long long *keys, unsigned room, unsigned *bad) {                                  \
        Found found = {bounds, counts, keys, room};                                                                  \
        score_bytes<KIND, Q, R, ALIGNED>(rows, count, bytes, queries, lengths, query_count, first, found);           \
    }
