// target: sm_80, PTX 7.0
//
// Many queries at once, for cards of compute capability 8.0 and later: which rows may be among the nearest of which
// query. Products are those of the tensor cores, whose factors have 11 bits: far too coarse to be a score, but not
// farther from it than `margin` says, so that whatever is above the bound by its score is found here. score_found in
// search.cu then makes the scores of what was found, which are few, and every one as if all had been made.
//
//   find_tf32_N   grid: ceil(rows / 128) * ceil(queries / N) blocks of 256 threads; a warp has 16 rows
//
// A warp's 32 lanes have 8 pairs of rows, g and g + 8, and 4 lanes each pair: lane t of them loads floats 4 t to 4 t + 3
// and 16 + 4 t to 16 + 4 t + 3 of every 32. A product of the cores takes 8 columns; which floats those are is of no
// account as long as rows and queries agree, so that each takes one float of either half from each lane, and nothing is
// exchanged. Queries lie in shared memory just as the lanes need them. The squares of a row, which tell whether it is a
// vector at all, are summed in the order of src/post/sums.rs: lane t has the partial sums of its floats.

#include "score.cuh"

#define WARPS 8
// Lengths between which products of floats neither overflow nor lose bits that count; others are found in any case.
#define LENGTH_MIN 0x1p-40f
#define LENGTH_MAX 0x1p60f

// 16 bytes to shared memory, behind the back of the registers; zeros where there is nothing.
__device__ __forceinline__ void copy_16(void *to, const void *from, bool is_there) {
    unsigned at = (unsigned)__cvta_generic_to_shared(to);
    unsigned bytes = is_there ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from), "r"(bytes) : "memory");
}
__device__ __forceinline__ void copies_begin() { asm volatile("cp.async.commit_group;" ::: "memory"); }
__device__ __forceinline__ void copies_end() { asm volatile("cp.async.wait_group 0;" ::: "memory"); }

// sums += a * b; a: column t of rows g and g + 8, column t + 4 of both; b: of query g.
__device__ __forceinline__ void multiply(float sums[4], const unsigned a[4], unsigned b0, unsigned b1) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ float part(float4 v, int s) { return s == 0 ? v.x : s == 1 ? v.y : s == 2 ? v.z : v.w; }

// Floats 4 t and 16 + 4 t of a chunk of 32, of both rows.
__device__ __forceinline__ void load_rows(const float *const at[2], unsigned begin, unsigned t, unsigned dims,
                                          float4 v[2][2]) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            unsigned i = begin + 16 * h + 4 * t;
            v[r][h] = i < dims ? __ldg((const float4 *)(at[r] + i)) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        }
    }
}

// Of 32 partial sums lane t has 4 t to 4 t + 3 and 16 + 4 t to 16 + 4 t + 3; all four lanes get the sum.
__device__ __forceinline__ float tree4(const float p[8]) {
    float q[4];
#pragma unroll
    for (int s = 0; s < 4; s++) {
        q[s] = p[s] + p[4 + s];
        q[s] += __shfl_xor_sync(FULL, q[s], 2);
        q[s] += __shfl_xor_sync(FULL, q[s], 1);
    }
    return (q[0] + q[2]) + (q[1] + q[3]);
}

// No score of a row below this times the lengths is above the bound; NaN or -inf where all are to be found.
__device__ __forceinline__ float least_of(unsigned long long bound, float length, float margin) {
    bool is_usual = length == 0.0f || (length >= LENGTH_MIN && length <= LENGTH_MAX);
    if (bound == 0 || !is_usual) return __uint_as_float(0xff800000u);
    unsigned bits = (unsigned)(bound >> 32);
    return __uint_as_float(bits & 0x80000000u ? bits & 0x7fffffffu : ~bits) - margin;
}

// TILES times 8 queries.
template <int TILES>
__device__ __forceinline__ void find(const float *rows, unsigned count, unsigned dims, const float *queries,
                                     const float *lengths, unsigned query_count, unsigned first,
                                     const unsigned long long *bounds, unsigned *counts, unsigned long long *keys,
                                     unsigned room, float margin, unsigned *bad) {
    // Chunks of 32 floats of all queries that are in shared memory at once, twice.
    const int AT_ONCE = TILES < 4 ? TILES : 4;
    const int QUERIES = 8 * TILES, CHUNKS = TILES == 8 ? 2 : 4, WORDS = CHUNKS * TILES * 64;
    __shared__ float4 tile[2][WORDS];
    __shared__ float least[QUERIES], of_query[QUERIES];
    unsigned lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3, tiles = (query_count + QUERIES - 1) / QUERIES;
    unsigned query = blockIdx.x % tiles * QUERIES;
    unsigned row = (blockIdx.x / tiles * WARPS + (threadIdx.x >> 5)) * 16 + g, chunks = (dims + 31) / 32;
    const float *at[2];
#pragma unroll
    for (int r = 0; r < 2; r++) at[r] = rows + (size_t)min(row + 8 * r, count - 1) * dims;
    float4 next[2][2];
    load_rows(at, 0, t, dims, next);

    auto copy_queries = [&](unsigned chunk, float4 *to) {
        // Word ((c * TILES + n) * 2 + h) * 32 + 4 g + t: floats 16 h + 4 t of chunk c of query 8 n + g.
        for (unsigned i = threadIdx.x; i < WORDS; i += 32 * WARPS) {
            unsigned q = i / 64 % TILES * 8 + (i >> 2 & 7);
            unsigned place = (chunk + i / (64 * TILES)) * 32 + (i >> 5 & 1) * 16 + (i & 3) * 4;
            bool is_there = query + q < query_count && place < dims;
            copy_16(&to[i], is_there ? queries + (size_t)(query + q) * dims + place : queries, is_there);
        }
        copies_begin();
    };
    copy_queries(0, tile[0]);
    for (unsigned q = threadIdx.x; q < QUERIES; q += 32 * WARPS) {
        bool is_there = query + q < query_count;
        of_query[q] = is_there ? lengths[query + q] : 0.0f;
        least[q] = is_there ? least_of(bounds[query + q], of_query[q], margin) : 0.0f;
    }

    float sums[TILES][4] = {}, squares[2][8] = {};
    for (unsigned begin = 0, turn = 0; begin < chunks; begin += CHUNKS, turn ^= 1) {
        copies_end();
        __syncthreads();
        // What lies in the other half was used up before the barrier.
        if (begin + CHUNKS < chunks) copy_queries(begin + CHUNKS, tile[turn ^ 1]);
        const float4 *words = tile[turn] + lane;
#pragma unroll 1
        for (unsigned c = begin; c < min(begin + CHUNKS, chunks); c++, words += 64 * TILES) {
            float4 v[2][2];
#pragma unroll
            for (int r = 0; r < 2; r++) v[r][0] = next[r][0], v[r][1] = next[r][1];
            load_rows(at, 32 * (c + 1), t, dims, next);
            unsigned a[4][4];
#pragma unroll
            for (int s = 0; s < 4; s++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    float x = part(v[i & 1][i >> 1], s);
                    squares[i & 1][4 * (i >> 1) + s] += x * x;
                    a[s][i] = __float_as_uint(x);
                }
            }
#pragma unroll
            for (int m = 0; m < TILES; m += AT_ONCE) {
                float4 low[AT_ONCE], high[AT_ONCE];
#pragma unroll
                for (int n = 0; n < AT_ONCE; n++) low[n] = words[64 * (m + n)], high[n] = words[64 * (m + n) + 32];
                // None waits for the one before it.
#pragma unroll
                for (int s = 0; s < 4; s++) {
#pragma unroll
                    for (int n = 0; n < AT_ONCE; n++)
                        multiply(sums[m + n], a[s], __float_as_uint(part(low[n], s)),
                                 __float_as_uint(part(high[n], s)));
                }
            }
        }
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float square = tree4(squares[r]), length = __fsqrt_rn(square);
        unsigned number = first + row + 8 * r;
        if (row + 8 * r >= count) continue;
        if (t == 0 && !(square <= 3.40282347e38f)) atomicMin(bad, number);
        bool is_usual = length >= LENGTH_MIN && length <= LENGTH_MAX;
#pragma unroll
        for (int n = 0; n < TILES; n++) {
#pragma unroll
            for (int j = 0; j < 2; j++) {
                unsigned q = 8 * n + 2 * t + j;
                float lowest = least[q] * (of_query[q] * length);
                bool is_far = length == 0.0f ? least[q] > 0.0f : is_usual && sums[n][2 * r + j] < lowest;
                if (!is_far && query + q < query_count) {
                    unsigned place = atomicAdd(&counts[query + q], 1u);
                    keys[(size_t)(query + q) * room + place] = number;
                }
            }
        }
    }
}

#define FIND(QUERIES)                                                                                                \
    extern "C" __global__ void __launch_bounds__(256, 2) find_tf32_##QUERIES(                                        \
        const float *rows, unsigned count, unsigned dims, const float *queries, const float *lengths,                \
        unsigned query_count, unsigned first, const unsigned long long *bounds, unsigned *counts,                    \
        unsigned long long *keys, unsigned room, float margin, unsigned *bad) {                                      \
        find<QUERIES / 8>(rows, count, dims, queries, lengths, query_count, first, bounds, counts, keys, room,       \
                          margin, bad);                                                                              \
    }
FIND(8)
FIND(16)
FIND(32)
FIND(64)
