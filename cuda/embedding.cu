// Embeddings: vectors of tokens to rows that can be searched, and the search. The arithmetic, and the order of each
// sum, stand in src/post/embedding.rs and src/post/embedding/search.rs, whose bits these kernels give.
//
//   mean_pool4, mean_pool1        grid: sequences * tiles blocks of 256 threads; a tile has 128 or 32 columns
//   shape_*                       grid: any number of blocks of 256 threads; a warp has a row, a stride the rest
//   score_*                       grid: ceil(rows / rows of a block) * tiles of queries, 256 threads
//   keep_nearest                  grid: a block of 512 threads for each query
//
// A sum of products has 32 partial sums. A warp that has a row holds one in each lane; 8 lanes that have a row hold
// four each, since they load float4s. -fmad=false: nothing is contracted.

#define FULL 0xffffffffu

// --- Mean pool: thread (x, y) adds the tokens t = y mod 8 of its columns ---

template <typename V> __device__ __forceinline__ V zero();
template <> __device__ __forceinline__ float zero<float>() { return 0.0f; }
template <> __device__ __forceinline__ float4 zero<float4>() { return make_float4(0.0f, 0.0f, 0.0f, 0.0f); }

__device__ __forceinline__ float plus(float a, float b) { return a + b; }
__device__ __forceinline__ float4 plus(float4 a, float4 b) {
    return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}
__device__ __forceinline__ float over(float a, float n) { return __fdiv_rn(a, n); }
__device__ __forceinline__ float4 over(float4 a, float n) {
    return make_float4(over(a.x, n), over(a.y, n), over(a.z, n), over(a.w, n));
}

// `width` columns of type V; sequence s has the tokens from starts[s] to starts[s + 1].
template <typename V>
__device__ __forceinline__ void mean_pool(const V *tokens, const unsigned *starts, V *out, unsigned width,
                                          unsigned tiles) {
    __shared__ V sums[8][32];
    unsigned x = threadIdx.x & 31, y = threadIdx.x >> 5;
    unsigned sequence = blockIdx.x / tiles, column = blockIdx.x % tiles * 32 + x;
    unsigned start = starts[sequence], count = starts[sequence + 1] - start;
    V sum = zero<V>();
    if (column < width) {
        const V *from = tokens + (size_t)start * width + column;
        unsigned t = y;
        for (; t + 56 < count; t += 64) {
            V v[8];
#pragma unroll
            for (int u = 0; u < 8; u++) v[u] = __ldcs(&from[(size_t)(t + 8 * u) * width]);
#pragma unroll
            for (int u = 0; u < 8; u++) sum = plus(sum, v[u]);
        }
        for (; t < count; t += 8) sum = plus(sum, __ldcs(&from[(size_t)t * width]));
    }
    sums[y][x] = sum;
#pragma unroll
    for (int half = 4; half > 0; half /= 2) {
        __syncthreads();
        if (y < half) sums[y][x] = plus(sums[y][x], sums[y + half][x]);
    }
    if (y == 0 && column < width)
        out[(size_t)sequence * width + column] = count == 0 ? zero<V>() : over(sums[0][x], (float)count);
}

extern "C" __global__ void __launch_bounds__(256)
mean_pool4(const float4 *tokens, const unsigned *starts, float4 *out, unsigned width, unsigned tiles) {
    mean_pool(tokens, starts, out, width, tiles);
}

extern "C" __global__ void __launch_bounds__(256)
mean_pool1(const float *tokens, const unsigned *starts, float *out, unsigned width, unsigned tiles) {
    mean_pool(tokens, starts, out, width, tiles);
}

// --- Shape: truncate, normalise, quantise in one pass ---

// Partial sum j is in lane j.
__device__ __forceinline__ float tree32(float p) {
#pragma unroll
    for (int half = 16; half > 0; half /= 2) p += __shfl_down_sync(FULL, p, half);
    return __shfl_sync(FULL, p, 0);
}

__device__ __forceinline__ unsigned max32(unsigned p) {
#pragma unroll
    for (int half = 16; half > 0; half /= 2) p = max(p, __shfl_xor_sync(FULL, p, half));
    return p;
}

// What a row's values are divided by; 1 where they stay as they are. A sum that is no number is reported.
__device__ __forceinline__ float length_of(float squares, unsigned row, unsigned *bad) {
    if (!(squares <= 3.40282347e38f)) {
        if ((threadIdx.x & 31) == 0) atomicMin(bad, row);
        return 1.0f;
    }
    return squares > 0.0f ? __fsqrt_rn(squares) : 1.0f;
}

struct ToFloat {
    typedef float Out;
    float scale;
    __device__ __forceinline__ void row(unsigned) {}
    __device__ __forceinline__ void put(float *out, unsigned i, unsigned to, float v) {
        if (i < to) __stcs(&out[i], v);
    }
};

struct ToInt8 {
    typedef signed char Out;
    float scale;
    __device__ __forceinline__ void row(unsigned largest) {
        scale = __fdiv_rn(127.0f, __uint_as_float(largest));
        if (largest == 0 || !(scale <= 3.40282347e38f)) scale = 0.0f;
    }
    __device__ __forceinline__ void put(signed char *out, unsigned i, unsigned to, float v) {
        // The addition rounds to the nearest integer, to even where two are near.
        unsigned bits = __float_as_uint(v * scale + 12582912.0f);
        if (i < to) out[i] = (signed char)(bits - 0x4b400000u);
    }
};

struct ToBits {
    typedef unsigned char Out;
    float scale;
    __device__ __forceinline__ void row(unsigned) {}
    __device__ __forceinline__ void put(unsigned char *out, unsigned i, unsigned to, float v) {
        unsigned bits = __brev(__ballot_sync(FULL, i < to && v > 0.0f)), lane = threadIdx.x & 31;
        // Lane 0's bit is the highest of the first byte now; lane l < 4 writes byte l.
        if (lane < 4 && i - lane + 8 * lane < to) out[(i - lane) / 8 + lane] = (unsigned char)(bits >> (24 - 8 * lane));
    }
};

// The first `to` values of each row of `dims`; up to 32 R of them stay in registers.
template <int R, typename To>
__device__ __forceinline__ void shape(const float *rows, typename To::Out *out, unsigned count, unsigned dims,
                                      unsigned to, unsigned out_row, unsigned normalize, unsigned *bad) {
    unsigned lane = threadIdx.x & 31, warps = gridDim.x * 8;
    for (unsigned row = blockIdx.x * 8 + (threadIdx.x >> 5); row < count; row += warps) {
        const float *from = rows + (size_t)row * dims;
        typename To::Out *target = out + (size_t)row * out_row;
        float v[R];
#pragma unroll
        for (int k = 0; k < R; k++) v[k] = 32 * k + lane < to ? __ldcs(&from[32 * k + lane]) : 0.0f;
        if (normalize) {
            float p = 0.0f;
#pragma unroll
            for (int k = 0; k < R; k++) p += v[k] * v[k];
            float length = length_of(tree32(p), row, bad);
#pragma unroll
            for (int k = 0; k < R; k++) v[k] = __fdiv_rn(v[k], length);
        }
        unsigned largest = 0;
#pragma unroll
        for (int k = 0; k < R; k++) largest = max(largest, __float_as_uint(v[k]) & 0x7fffffffu);
        To shaped;
        shaped.row(sizeof(typename To::Out) == 1 ? max32(largest) : 0);
#pragma unroll
        for (int k = 0; k < R; k++)
            if (32 * k < to) shaped.put(target, 32 * k + lane, to, v[k]);
    }
}

// The same for rows of any length, which are read once for each thing that must be known of them first.
template <typename To>
__device__ __forceinline__ void shape_long(const float *rows, typename To::Out *out, unsigned count, unsigned dims,
                                           unsigned to, unsigned out_row, unsigned normalize, unsigned *bad) {
    unsigned lane = threadIdx.x & 31, warps = gridDim.x * 8, steps = (to + 31) / 32;
    for (unsigned row = blockIdx.x * 8 + (threadIdx.x >> 5); row < count; row += warps) {
        const float *from = rows + (size_t)row * dims;
        typename To::Out *target = out + (size_t)row * out_row;
        float length = 1.0f, p = 0.0f;
        unsigned largest = 0;
#pragma unroll 16
        for (unsigned k = 0; k < steps; k++) {
            float v = 32 * k + lane < to ? from[32 * k + lane] : 0.0f;
            p += v * v;
            largest = max(largest, __float_as_uint(v) & 0x7fffffffu);
        }
        if (normalize) length = length_of(tree32(p), row, bad);
        // A quotient grows with what is divided, so the largest stays the largest.
        float most = __fdiv_rn(__uint_as_float(max32(largest)), length);
        To shaped;
        shaped.row(__float_as_uint(most));
#pragma unroll 8
        for (unsigned k = 0; k < steps; k++) {
            float v = 32 * k + lane < to ? from[32 * k + lane] : 0.0f;
            shaped.put(target, 32 * k + lane, to, __fdiv_rn(v, length));
        }
    }
}

#define SHAPE(NAME, TO)                                                                                              \
    extern "C" __global__ void __launch_bounds__(256) shape_##NAME##_12(                                             \
        const float *rows, TO::Out *out, unsigned count, unsigned dims, unsigned to, unsigned out_row,               \
        unsigned normalize, unsigned *bad) {                                                                         \
        shape<12, TO>(rows, out, count, dims, to, out_row, normalize, bad);                                          \
    }                                                                                                                \
    extern "C" __global__ void __launch_bounds__(256) shape_##NAME##_32(                                             \
        const float *rows, TO::Out *out, unsigned count, unsigned dims, unsigned to, unsigned out_row,               \
        unsigned normalize, unsigned *bad) {                                                                         \
        shape<32, TO>(rows, out, count, dims, to, out_row, normalize, bad);                                          \
    }                                                                                                                \
    extern "C" __global__ void __launch_bounds__(256) shape_##NAME##_long(                                           \
        const float *rows, TO::Out *out, unsigned count, unsigned dims, unsigned to, unsigned out_row,               \
        unsigned normalize, unsigned *bad) {                                                                         \
        shape_long<TO>(rows, out, count, dims, to, out_row, normalize, bad);                                         \
    }
SHAPE(f32, ToFloat)
SHAPE(int8, ToInt8)
SHAPE(binary, ToBits)

// --- Search: scores of a part of the corpus; what may be among the nearest is appended ---

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

// Partial sums 4 l to 4 l + 3 are in lane l of 8; the sum is in lane 0.
__device__ __forceinline__ float tree8(float p[4]) {
#pragma unroll
    for (int half = 4; half > 0; half /= 2) {
#pragma unroll
        for (int c = 0; c < 4; c++) p[c] += __shfl_down_sync(FULL, p[c], half, 8);
    }
    return (p[0] + p[2]) + (p[1] + p[3]);
}

template <bool ALIGNED> __device__ __forceinline__ float4 load4(const float *row, unsigned i, unsigned dims);
template <> __device__ __forceinline__ float4 load4<true>(const float *row, unsigned i, unsigned dims) {
    return i < dims ? __ldg((const float4 *)(row + i)) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
}
template <> __device__ __forceinline__ float4 load4<false>(const float *row, unsigned i, unsigned dims) {
    float4 v;
    v.x = i < dims ? __ldg(row + i) : 0.0f;
    v.y = i + 1 < dims ? __ldg(row + i + 1) : 0.0f;
    v.z = i + 2 < dims ? __ldg(row + i + 2) : 0.0f;
    v.w = i + 3 < dims ? __ldg(row + i + 3) : 0.0f;
    return v;
}

__device__ __forceinline__ void add4(float p[4], float4 a, float4 b) {
    p[0] += a.x * b.x;
    p[1] += a.y * b.y;
    p[2] += a.z * b.z;
    p[3] += a.w * b.w;
}

// 8 lanes have R rows, each against Q queries.
template <int Q, int R, bool ALIGNED>
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
#pragma unroll 2
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

#define SCORE_F32(NAME, Q, R, ALIGNED)                                                                               \
    extern "C" __global__ void __launch_bounds__(256) score_f32_##NAME(                                              \
        const float *rows, unsigned count, unsigned dims, const float *queries, const float *lengths,                \
        unsigned query_count, unsigned first, const unsigned long long *bounds, unsigned *counts,                    \
        unsigned long long *keys, unsigned room, unsigned *bad) {                                                    \
        Found found = {bounds, counts, keys, room};                                                                  \
        score_f32<Q, R, ALIGNED>(rows, count, dims, queries, lengths, query_count, first, found, bad);               \
    }
SCORE_F32(1, 1, 4, true)
SCORE_F32(4, 4, 2, true)
SCORE_F32(8, 8, 2, true)
SCORE_F32(odd, 2, 2, false)

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

// Sums are integers, so that their order is of no account.
struct Products {
    __device__ static __forceinline__ int word(unsigned a, unsigned b, int sum) {
        sum += (int)(signed char)a * (int)(signed char)b;
        sum += (int)(signed char)(a >> 8) * (int)(signed char)(b >> 8);
        sum += (int)(signed char)(a >> 16) * (int)(signed char)(b >> 16);
        return sum + ((int)a >> 24) * ((int)b >> 24);
    }
    __device__ static __forceinline__ float score(int sum, float of_query, float length, unsigned) {
        return cosine((float)sum, of_query, length);
    }
};

struct Differences {
    __device__ static __forceinline__ int word(unsigned a, unsigned b, int sum) { return sum + __popc(a ^ b); }
    __device__ static __forceinline__ float score(int sum, float, float, unsigned bytes) {
        int dims = (int)bytes * 8;
        return __fdiv_rn((float)(dims - 2 * sum), (float)dims);
    }
};

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
#pragma unroll
        for (int r = 0; r < R; r++) squares[r] = words<Kind>(v[r], v[r], squares[r]);
#pragma unroll
        for (int q = 0; q < Q; q++) {
            uint4 w = load16<ALIGNED>(of[q], i, bytes);
#pragma unroll
            for (int r = 0; r < R; r++) sums[q][r] = words<Kind>(w, v[r], sums[q][r]);
        }
    }
#pragma unroll
    for (int r = 0; r < R; r++) {
        float length = __fsqrt_rn((float)sum8(squares[r]));
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
SCORE_BYTES(int8_1, Products, 1, 4, true)
SCORE_BYTES(int8_4, Products, 4, 2, true)
SCORE_BYTES(int8_odd, Products, 2, 2, false)
SCORE_BYTES(binary_1, Differences, 1, 4, true)
SCORE_BYTES(binary_4, Differences, 4, 4, true)
SCORE_BYTES(binary_odd, Differences, 2, 2, false)

// --- Select: the k largest of the keys that were kept and those that were appended ---

// `from` has kept[q] keys of query q at q * k, `to` room for k. All keys differ, so the result does not depend on
// the order in which they were appended. Radix select: 8 bits a pass, from the highest.
extern "C" __global__ void __launch_bounds__(512)
keep_nearest(const unsigned long long *from, unsigned long long *to, unsigned *kept, unsigned long long *bounds,
       unsigned *counts, const unsigned long long *keys, unsigned room, unsigned k) {
    __shared__ unsigned bins[256], taken, digit, above;
    unsigned query = blockIdx.x, old = kept[query], count = counts[query], all = old + count;
    const unsigned long long *old_keys = from + (size_t)query * k, *new_keys = keys + (size_t)query * room;
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
            if (threadIdx.x == 0) {
                unsigned sum = 0;
                int bin = 255;
                while (sum + bins[bin] < wanted) sum += bins[bin--];
                digit = bin;
                above = sum;
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
