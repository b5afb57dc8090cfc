// Embeddings: vectors of tokens to rows that can be searched. The arithmetic, and the order of each sum, stand in
// src/post/embedding.rs, whose bits these kernels give.
//
//   mean_pool4, mean_pool1        grid: sequences * tiles blocks of 256 threads; a tile has 128 or 32 columns
//   shape_*                       grid: any number of blocks of 256 threads; a warp has a row, a stride the rest
//
// A sum of products has 32 partial sums; a warp that has a row holds one in each lane. -fmad=false: nothing is
// contracted.

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

// What rows become. `row` is told the largest magnitude if MAX; `put` gets value i of a row, in a warp 32 at once;
// `flush` comes after 1024 of them, and at the end with how many there are from `first` on.
struct ToFloat {
    typedef float Out;
    static const bool MAX = false;
    __device__ __forceinline__ void row(unsigned) {}
    __device__ __forceinline__ void put(float *out, unsigned i, unsigned to, float v) {
        if (i < to) __stcs(&out[i], v);
    }
    __device__ __forceinline__ void flush(float *, unsigned, unsigned) {}
};

struct ToInt8 {
    typedef signed char Out;
    static const bool MAX = true;
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
    __device__ __forceinline__ void flush(signed char *, unsigned, unsigned) {}
};

struct ToBits {
    typedef unsigned char Out;
    static const bool MAX = false;
    unsigned word;
    __device__ __forceinline__ void row(unsigned) { word = 0; }
    __device__ __forceinline__ void put(unsigned char *, unsigned i, unsigned to, float v) {
        // Lane 0's bit is the highest of the first byte. Lane k keeps the k-th word.
        unsigned bits = __byte_perm(__brev(__ballot_sync(FULL, i < to && v > 0.0f)), 0, 0x0123);
        if ((i >> 5 & 31) == (threadIdx.x & 31)) word = bits;
    }
    __device__ __forceinline__ void flush(unsigned char *out, unsigned first, unsigned to) {
        unsigned lane = threadIdx.x & 31, byte = first / 8 + 4 * lane, bytes = to / 8;
        if (bytes % 4 == 0) {
            if (byte < bytes) *(unsigned *)(out + byte) = word;
        } else {
#pragma unroll
            for (int b = 0; b < 4; b++)
                if (byte + b < bytes) out[byte + b] = (unsigned char)(word >> (8 * b));
        }
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
            for (int k = 0; k < R; k++)
                if (32 * k < to) v[k] = __fdiv_rn(v[k], length);
        }
        unsigned largest = 0;
        if (To::MAX) {
#pragma unroll
            for (int k = 0; k < R; k++) largest = max(largest, __float_as_uint(v[k]) & 0x7fffffffu);
            largest = max32(largest);
        }
        To shaped;
        shaped.row(largest);
#pragma unroll
        for (int k = 0; k < R; k++)
            if (32 * k < to) shaped.put(target, 32 * k + lane, to, v[k]);
        shaped.flush(target, 0, to);
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
            if (k % 32 == 31 || k + 1 == steps) shaped.flush(target, k / 32 * 1024, to);
        }
    }
}

#define SHAPE(NAME, SUFFIX, FUNCTION, TO)                                                                            \
    extern "C" __global__ void __launch_bounds__(256) shape_##NAME##_##SUFFIX(                                       \
        const float *rows, TO::Out *out, unsigned count, unsigned dims, unsigned to, unsigned out_row,               \
        unsigned normalize, unsigned *bad) {                                                                         \
        FUNCTION(rows, out, count, dims, to, out_row, normalize, bad);                                               \
    }
#define SHAPES(NAME, TO)                                                                                             \
    SHAPE(NAME, 8, (shape<8, TO>), TO)                                                                               \
    SHAPE(NAME, 16, (shape<16, TO>), TO)                                                                             \
    SHAPE(NAME, 32, (shape<32, TO>), TO)                                                                             \
    SHAPE(NAME, long, (shape_long<TO>), TO)
SHAPES(f32, ToFloat)
SHAPES(int8, ToInt8)
SHAPES(binary, ToBits)
