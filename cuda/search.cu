// The nearest rows of a corpus: scores of a part of it, and the k nearest so far. Scores, and the order of each sum,
// stand in src/post/embedding/search.rs, whose bits these kernels give.
//
//   score_*        grid: as score.cuh says, 256 threads; score_f32_8 and _16: 8 rows and as many queries a warp
//   score_found    grid: `blocks` of 256 threads for each query
//   keep_nearest   grid: a block of 512 threads for each query
//
// 8 lanes that have a row hold four of the 32 partial sums each, since they load float4s. -fmad=false: nothing is
// contracted.

#include "floats.cuh"
#include "score.cuh"

// 8 lanes have R rows, each against Q queries.
template <int Q, int R, bool ALIGNED, int UNROLL>
__device__ __forceinline__ void score_f32(const float *rows, unsigned count, unsigned dims, const float *queries,
                                          const float *lengths, unsigned query_count, unsigned first, Found found,
                                          unsigned *bad) {
    unsigned g = threadIdx.x & 7, tiles = (query_count + Q - 1) / Q;
    unsigned query = blockIdx.x % tiles * Q, row = (blockIdx.x / tiles * 32 + (threadIdx.x >> 3)) * R;
    const float *at[R], *of[Q];
    float sums[Q][R][4], squares[R][4];
#pragma unroll
    for (int r = 0; r < R; r++) at[r] = rows + (size_t)min(row + r, count - 1) * dims;
#pragma unroll
    for (int q = 0; q < Q; q++) of[q] = queries + (size_t)min(query + q, query_count - 1) * dims;
#pragma unroll
    for (int r = 0; r < R; r++) {
#pragma unroll
        for (int c = 0; c < 4; c++) {
            squares[r][c] = 0.0f;
#pragma unroll
            for (int q = 0; q < Q; q++) sums[q][r][c] = 0.0f;
        }
    }
#pragma unroll(UNROLL)
    for (unsigned i = 4 * g; i < dims + 4 * g; i += 32) {
        float4 v[R];
#pragma unroll
        for (int r = 0; r < R; r++) {
            v[r] = load4<ALIGNED>(at[r], i, dims);
            add4(squares[r], v[r], v[r]);
        }
#pragma unroll
        for (int q = 0; q < Q; q++) {
            float4 w = load4<ALIGNED>(of[q], i, dims);
#pragma unroll
            for (int r = 0; r < R; r++) add4(sums[q][r], w, v[r]);
        }
    }
#pragma unroll
    for (int r = 0; r < R; r++) {
        float square = tree8(squares[r]), length = __fsqrt_rn(square);
        bool is_there = g == 0 && row + r < count;
        if (is_there && !(square <= 3.40282347e38f)) atomicMin(bad, first + row + r);
#pragma unroll
        for (int q = 0; q < Q; q++) {
            float dot = tree8(sums[q][r]);
            if (is_there && query + q < query_count)
                found.add(query + q, cosine(dot, lengths[query + q], length), first + row + r);
        }
    }
}

#define SCORE_F32_OF(NAME, BODY)                                                                                     \
    extern "C" __global__ void __launch_bounds__(256) score_f32_##NAME(                                              \
        const float *rows, unsigned count, unsigned dims, const float *queries, const float *lengths,                \
        unsigned query_count, unsigned first, const unsigned long long *bounds, unsigned *counts,                    \
        unsigned long long *keys, unsigned room, unsigned *bad) {                                                    \
        Found found = {bounds, counts, keys, room};                                                                  \
        BODY(rows, count, dims, queries, lengths, query_count, first, found, bad);                                   \
    }
#define SCORE_F32(NAME, Q, R, ALIGNED, UNROLL) SCORE_F32_OF(NAME, (score_f32<Q, R, ALIGNED, UNROLL>))
SCORE_F32(1, 1, 1, true, 8)
SCORE_F32(4, 4, 2, true, 2)
SCORE_F32(odd, 2, 2, false, 2)

// Half of the sums of a pair of lanes stay with each, which adds the other's part of them: afterwards the first COUNT
// are left. `bit` tells the lanes of a pair apart.
template <int COUNT> __device__ __forceinline__ void halve(float *sums, int bit) {
    bool is_upper = threadIdx.x & bit;
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        float sent = is_upper ? sums[i] : sums[i + COUNT];
        sums[i] = (is_upper ? sums[i + COUNT] : sums[i]) + __shfl_xor_sync(FULL, sent, bit);
    }
}

// Many queries: a warp has 8 rows, each against 8 queries, and a lane one of the 32 partial sums of each pair, so that
// it loads a float for 8 products. A block's warps have 8 / GROUPS times those rows, and GROUPS times those queries.
template <int GROUPS>
__device__ __forceinline__ void score_f32_many(const float *rows, unsigned count, unsigned dims, const float *queries,
                                               const float *lengths, unsigned query_count, unsigned first, Found found,
                                               unsigned *bad) {
    unsigned lane = threadIdx.x & 31, warp = threadIdx.x >> 5, tiles = (query_count + 8 * GROUPS - 1) / (8 * GROUPS);
    unsigned query = (blockIdx.x % tiles * GROUPS + warp % GROUPS) * 8;
    unsigned row = (blockIdx.x / tiles * (8 / GROUPS) + warp / GROUPS) * 8;
    if (query >= query_count || row >= count) return;
    const float *at[8], *of[8];
    float sums[64] = {}, squares[8] = {};
#pragma unroll
    for (int i = 0; i < 8; i++) {
        at[i] = rows + (size_t)min(row + i, count - 1) * dims;
        of[i] = queries + (size_t)min(query + i, query_count - 1) * dims;
    }
    for (unsigned i = lane; i < dims + lane; i += 32) {
        float v[8], w[8];
#pragma unroll
        for (int r = 0; r < 8; r++) {
            v[r] = i < dims ? __ldg(at[r] + i) : 0.0f;
            w[r] = i < dims ? __ldg(of[r] + i) : 0.0f;
        }
#pragma unroll
        for (int r = 0; r < 8; r++) {
            squares[r] += v[r] * v[r];
#pragma unroll
            for (int q = 0; q < 8; q++) sums[8 * q + r] += w[q] * v[r];
        }
    }
    // Afterwards lane l has pairs 2 l and 2 l + 1.
    halve<32>(sums, 16);
    halve<16>(sums, 8);
    halve<8>(sums, 4);
    halve<4>(sums, 2);
    halve<2>(sums, 1);
#pragma unroll
    for (int bit = 16; bit > 2; bit /= 2) {
#pragma unroll
        for (int r = 0; r < 8; r++) squares[r] += __shfl_xor_sync(FULL, squares[r], bit);
    }
    halve<4>(squares, 2);
    halve<2>(squares, 1);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        unsigned r = row + (2 * lane & 7) + i, q = query + lane / 4;
        if (r >= count || q >= query_count) continue;
        if (!(squares[i] <= 3.40282347e38f)) atomicMin(bad, first + r);
        found.add(q, cosine(sums[i], lengths[q], __fsqrt_rn(squares[i])), first + r);
    }
}
SCORE_F32_OF(8, score_f32_many<1>)
SCORE_F32_OF(16, score_f32_many<2>)

// What search_tf32.cu found of each query, numbers of rows, become keys. `first` is the number of the first of `rows`.
extern "C" __global__ void __launch_bounds__(256)
score_found(const float *rows, unsigned dims, const float *queries, const float *lengths, unsigned first,
            const unsigned *counts, unsigned long long *keys, unsigned room, unsigned blocks) {
    unsigned query = blockIdx.x / blocks, g = threadIdx.x & 7, count = counts[query];
    const float *of = queries + (size_t)query * dims;
    unsigned long long *found = keys + (size_t)query * room;
    // All lanes of a warp go round together: they meet in the tree.
    unsigned i = blockIdx.x % blocks * 32 + (threadIdx.x >> 3);
    for (; i - (threadIdx.x >> 3 & 3) < count; i += blocks * 32) {
        bool is_there = i < count;
        unsigned row = is_there ? (unsigned)found[i] : first;
        const float *at = rows + (size_t)(row - first) * dims;
        float sums[4] = {}, squares[4] = {};
#pragma unroll 4
        for (unsigned j = 4 * g; j < dims; j += 32) {
            float4 v = load4<true>(at, j, dims);
            add4(squares, v, v);
            add4(sums, load4<true>(of, j, dims), v);
        }
        float length = __fsqrt_rn(tree8(squares)), dot = tree8(sums);
        if (g == 0 && is_there) found[i] = key_of(cosine(dot, lengths[query], length), row);
    }
}

// Sums are integers, so that their order is of no account.
// For cards before compute capability 6.1; search_int8.cu has the others. The compiler would make dp4a of shifts.
struct Products {
    static const bool HAS_LENGTH = true;
    template <int S> __device__ static __forceinline__ int part(unsigned word) {
        int value;
        asm("bfe.s32 %0, %1, %2, 8;" : "=r"(value) : "r"(word), "n"(S));
        return value;
    }
    __device__ static __forceinline__ int word(unsigned a, unsigned b, int sum) {
        sum += part<0>(a) * part<0>(b);
        sum += part<8>(a) * part<8>(b);
        sum += part<16>(a) * part<16>(b);
        return sum + part<24>(a) * part<24>(b);
    }
    __device__ static __forceinline__ float score(int sum, float of_query, float length, unsigned) {
        return cosine((float)sum, of_query, length);
    }
};

struct Differences {
    static const bool HAS_LENGTH = false;
    __device__ static __forceinline__ int word(unsigned a, unsigned b, int sum) { return sum + __popc(a ^ b); }
    __device__ static __forceinline__ float score(int sum, float, float, unsigned bytes) {
        int dims = (int)bytes * 8;
        return __fdiv_rn((float)(dims - 2 * sum), (float)dims);
    }
};

SCORE_BYTES(int8_1, Products, 1, 4, true)
SCORE_BYTES(int8_4, Products, 4, 2, true)
SCORE_BYTES(int8_odd, Products, 2, 2, false)
SCORE_BYTES(binary_1, Differences, 1, 4, true)
SCORE_BYTES(binary_4, Differences, 4, 4, true)
SCORE_BYTES(binary_odd, Differences, 2, 2, false)


// --- Select: the k largest of the keys that were kept and those that were appended ---

// Keys of which each thread looks at all.
#define FEW 256

// `from` has kept[q] keys of query q at q * k, `to` room for k. All keys differ, so the result does not depend on
// the order in which they were appended. Of a few, each counts those above it; of more, radix select: 8 bits a pass,
// from the highest.
extern "C" __global__ void __launch_bounds__(512)
keep_nearest(const unsigned long long *from, unsigned long long *to, unsigned *kept, unsigned long long *bounds,
       unsigned *counts, const unsigned long long *keys, unsigned room, unsigned k) {
    __shared__ unsigned bins[256], taken, digit, above;
    __shared__ unsigned long long few[FEW];
    unsigned query = blockIdx.x, old = kept[query], count = counts[query], all = old + count;
    const unsigned long long *old_keys = from + (size_t)query * k, *new_keys = keys + (size_t)query * room;
    if (all <= FEW) {
        unsigned t = threadIdx.x, rank = 0;
        unsigned long long key = t < old ? old_keys[t] : t < all ? new_keys[t - old] : 0;
        if (t < FEW) few[t] = key;
        __syncthreads();
        for (unsigned i = 0; i < all; i++) rank += few[i] > key;
        if (t < all && rank < k) to[(size_t)query * k + rank] = key;
        if (t < all && rank == k - 1 && all > k) bounds[query] = key == 0 ? 0 : key - 1;
        if (t == 0) {
            kept[query] = min(k, all);
            counts[query] = 0;
        }
        return;
    }
    unsigned long long prefix = 0, mask = 0;
    unsigned wanted = min(k, all);
    if (all > k) {
        for (int shift = 56; shift >= 0; shift -= 8) {
            for (unsigned i = threadIdx.x; i < 256; i += blockDim.x) bins[i] = 0;
            __syncthreads();
            for (unsigned i = threadIdx.x; i < all; i += blockDim.x) {
                unsigned long long key = i < old ? old_keys[i] : new_keys[i - old];
                if ((key & mask) == prefix) atomicAdd(&bins[key >> shift & 255], 1u);
            }
            __syncthreads();
            // A warp looks for the bin in which the last wanted key is, from the highest: 8 bins a lane.
            if (threadIdx.x < 32) {
                unsigned top = 255 - 8 * threadIdx.x, own = 0;
                for (unsigned b = 0; b < 8; b++) own += bins[top - b];
                unsigned sum = own;
                for (int step = 1; step < 32; step *= 2) {
                    unsigned other = __shfl_up_sync(FULL, sum, step);
                    if (threadIdx.x >= step) sum += other;
                }
                unsigned before = sum - own;
                if (before < wanted && wanted <= sum) {
                    while (before + bins[top] < wanted) before += bins[top--];
                    digit = top;
                    above = before;
                }
            }
            __syncthreads();
            wanted -= above;
            prefix |= (unsigned long long)digit << shift;
            mask |= 255ull << shift;
            bool is_whole = bins[digit] == wanted;
            __syncthreads();
            // Everything with this prefix is wanted.
            if (is_whole) break;
        }
    }
    if (threadIdx.x == 0) taken = 0;
    __syncthreads();
    for (unsigned i = threadIdx.x; i < all; i += blockDim.x) {
        unsigned long long key = i < old ? old_keys[i] : new_keys[i - old];
        if (key >= prefix) to[(size_t)query * k + atomicAdd(&taken, 1u)] = key;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        kept[query] = min(k, all);
        counts[query] = 0;
        // Once there are k, a key below all of them.
        if (all > k) bounds[query] = prefix == 0 ? 0 : prefix - 1;
    }
}
