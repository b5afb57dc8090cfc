// Weights as GGUF files have them: Q8_0 and Q4_K to floats, and times a vector. The formats, and the order of each
// sum, stand in src/post/quant.rs, whose bits these kernels give.
//
// Nibbles and bytes become floats without a conversion: put into the mantissa of 2^(23 - s) at bit s, an integer
// is added to that number exactly, and taken off again exactly.
//
//   dequant_q8_0, dequant_q4_k   grid: any number of blocks of 256 threads; a stride covers the rest
//   matvec_q8_0, matvec_q4_k     grid: ceil(rows / ROWS_OF_BLOCK) blocks of 256 threads; a warp has two rows

#define WARPS 8
#define ROWS 2

__device__ __forceinline__ float half_at(const unsigned char *at) {
    float value;
    unsigned short bits = __ldg((const unsigned short *)at);
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}

__device__ __forceinline__ float half_of(unsigned bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"((unsigned short)bits));
    return value;
}

// Four bytes at a multiple of two.
__device__ __forceinline__ unsigned word_at(const unsigned char *at) {
    unsigned low = __ldg((const unsigned short *)at), high = __ldg((const unsigned short *)at + 1);
    return low | high << 16;
}

// Four signed bytes as floats: with the sign's bit flipped, byte b at bits 8 to 15 makes 32768 + 128 + b.
__device__ __forceinline__ void signed_bytes(unsigned word, float out[4]) {
    word ^= 0x80808080u;
    out[0] = __uint_as_float(__byte_perm(word, 0x47000000u, 0x7604)) - 32896.0f;
    out[1] = __uint_as_float(__byte_perm(word, 0x47000000u, 0x7614)) - 32896.0f;
    out[2] = __uint_as_float(__byte_perm(word, 0x47000000u, 0x7624)) - 32896.0f;
    out[3] = __uint_as_float(__byte_perm(word, 0x47000000u, 0x7634)) - 32896.0f;
}

// d times four signed bytes in one instruction each, exactly: d * 32896 has 20 bits.
__device__ __forceinline__ void times_bytes(float d, unsigned word, float out[4]) {
    float offset = -d * 32896.0f;
    word ^= 0x80808080u;
    out[0] = __fmaf_rn(d, __uint_as_float(__byte_perm(word, 0x47000000u, 0x7604)), offset);
    out[1] = __fmaf_rn(d, __uint_as_float(__byte_perm(word, 0x47000000u, 0x7614)), offset);
    out[2] = __fmaf_rn(d, __uint_as_float(__byte_perm(word, 0x47000000u, 0x7624)), offset);
    out[3] = __fmaf_rn(d, __uint_as_float(__byte_perm(word, 0x47000000u, 0x7634)), offset);
}

// The nibble at bit S as a float.
template <int S> __device__ __forceinline__ float nibble(unsigned word) {
    const unsigned power = (127u + 23u - S) << 23;
    return __uint_as_float((word & 0xfu << S) | power) - __uint_as_float(power);
}

// The low nibbles of a word's bytes, and the high ones.
__device__ __forceinline__ void low_nibbles(unsigned word, float out[4]) {
    out[0] = nibble<0>(word);
    out[1] = nibble<8>(word);
    out[2] = nibble<16>(word);
    out[3] = nibble<8>(word >> 16);
}

__device__ __forceinline__ void high_nibbles(unsigned word, float out[4]) {
    out[0] = nibble<4>(word);
    out[1] = nibble<12>(word);
    out[2] = nibble<4>(word >> 16);
    out[3] = nibble<12>(word >> 16);
}

// Scale and minimum of sub-block j, from a block's first 16 bytes: d, m and the 12 bytes of packed sixes.
__device__ __forceinline__ float2 factors(uint4 head, unsigned j) {
    unsigned shift = 8 * (j & 3);
    unsigned a = head.y >> shift, b = head.z >> shift, c = head.w >> shift;
    unsigned scale = j < 4 ? a & 63 : (c & 15) | (a >> 6 & 3) << 4;
    unsigned minimum = j < 4 ? b & 63 : (c >> 4 & 15) | (b >> 6 & 3) << 4;
    return make_float2(half_of(head.x & 0xffff) * (float)scale, half_of(head.x >> 16) * (float)minimum);
}

// 8 threads have a block of 32 values: 4 each.
extern "C" __global__ void __launch_bounds__(256)
dequant_q8_0(const unsigned char *__restrict__ in, float4 *__restrict__ out, unsigned long long quads) {
    unsigned long long stride = (unsigned long long)gridDim.x * blockDim.x;
    unsigned long long first = (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x;
    for (unsigned long long at = first; at < quads; at += 4 * stride) {
        unsigned word[4];
        float d[4];
#pragma unroll
        for (int u = 0; u < 4; u++) {
            unsigned long long quad = at + u * stride;
            if (quad < quads) {
                const unsigned char *block = in + (quad >> 3) * 34;
                d[u] = half_at(block);
                word[u] = word_at(block + 2 + 4 * (quad & 7));
            }
        }
#pragma unroll
        for (int u = 0; u < 4; u++) {
            unsigned long long quad = at + u * stride;
            if (quad < quads) {
                // Not times_bytes: of a zero, whose sign a sum never sees, the sign is right here, too.
                float q[4];
                signed_bytes(word[u], q);
                __stcs(&out[quad], make_float4(d[u] * q[0], d[u] * q[1], d[u] * q[2], d[u] * q[3]));
            }
        }
    }
}

// A warp has a block of 256 values: a thread 4 of a low sub-block and 4 of the high one beside it.
extern "C" __global__ void __launch_bounds__(256)
dequant_q4_k(const uint4 *__restrict__ in, float4 *__restrict__ out, unsigned long long blocks) {
    unsigned lane = threadIdx.x & 31, n = lane >> 3;
    unsigned long long stride = (unsigned long long)gridDim.x * WARPS;
    unsigned long long first = (unsigned long long)blockIdx.x * WARPS + (threadIdx.x >> 5);
    for (unsigned long long at = first; at < blocks; at += 4 * stride) {
        uint4 head[4];
        unsigned word[4];
#pragma unroll
        for (int u = 0; u < 4; u++) {
            unsigned long long block = at + u * stride;
            if (block < blocks) {
                head[u] = __ldg(&in[block * 9]);
                word[u] = __ldg((const unsigned *)&in[block * 9 + 1] + lane);
            }
        }
#pragma unroll
        for (int u = 0; u < 4; u++) {
            unsigned long long block = at + u * stride;
            if (block < blocks) {
                float2 low = factors(head[u], 2 * n), high = factors(head[u], 2 * n + 1);
                float a[4], b[4];
                low_nibbles(word[u], a);
                high_nibbles(word[u], b);
#pragma unroll
                for (int c = 0; c < 4; c++) {
                    a[c] = __fmaf_rn(low.x, a[c], -low.y);
                    b[c] = __fmaf_rn(high.x, b[c], -high.y);
                }
                float4 *to = out + block * 64 + 16 * n + (lane & 7);
                __stcs(to, make_float4(a[0], a[1], a[2], a[3]));
                __stcs(to + 8, make_float4(b[0], b[1], b[2], b[3]));
            }
        }
    }
}

__device__ __forceinline__ void add_products(float sums[4], const float value[4], float4 x) {
    sums[0] = __fadd_rn(sums[0], __fmul_rn(value[0], x.x));
    sums[1] = __fadd_rn(sums[1], __fmul_rn(value[1], x.y));
    sums[2] = __fadd_rn(sums[2], __fmul_rn(value[2], x.z));
    sums[3] = __fadd_rn(sums[3], __fmul_rn(value[3], x.w));
}

// The tree of 128 partial sums: lane l has those from 4 l on.
__device__ __forceinline__ float tree(float sums[4]) {
#pragma unroll
    for (int half = 16; half > 0; half /= 2) {
#pragma unroll
        for (int c = 0; c < 4; c++) sums[c] += __shfl_down_sync(0xffffffffu, sums[c], half);
    }
    return (sums[0] + sums[2]) + (sums[1] + sums[3]);
}

// 8 threads have a block, a warp four blocks at once.
extern "C" __global__ void __launch_bounds__(256)
matvec_q8_0(const unsigned char *__restrict__ matrix, const float4 *__restrict__ x, float *__restrict__ out,
            unsigned rows, unsigned blocks) {
    unsigned lane = threadIdx.x & 31, g = lane & 7;
    unsigned row = (blockIdx.x * WARPS + (threadIdx.x >> 5)) * ROWS;
    if (row >= rows) return;
    const unsigned char *at[ROWS];
    float sums[ROWS][4];
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        // The last warp of an odd count has one row twice.
        unsigned of = row + r < rows ? row + r : row;
        at[r] = matrix + (unsigned long long)of * blocks * 34;
#pragma unroll
        for (int c = 0; c < 4; c++) sums[r][c] = 0.0f;
    }
#pragma unroll 4
    for (unsigned b = lane >> 3; b < blocks; b += 4) {
        float4 v = __ldg(&x[b * 8 + g]);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            const unsigned char *block = at[r] + (unsigned long long)b * 34;
            float value[4];
            times_bytes(half_at(block), word_at(block + 2 + 4 * g), value);
            add_products(sums[r], value, v);
        }
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        float sum = tree(sums[r]);
        if (lane == 0 && row + r < rows) out[row + r] = sum;
    }
}

extern "C" __global__ void __launch_bounds__(256)
matvec_q4_k(const uint4 *__restrict__ matrix, const float4 *__restrict__ x, float *__restrict__ out,
            unsigned rows, unsigned blocks) {
    __shared__ __align__(16) float2 shared[WARPS][ROWS][32];
    unsigned lane = threadIdx.x & 31, g = lane & 7, quarter = lane >> 3, warp = threadIdx.x >> 5;
    unsigned row = (blockIdx.x * WARPS + warp) * ROWS;
    if (row >= rows) return;
    const uint4 *at[ROWS];
    float sums[ROWS][4];
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        unsigned of = row + r < rows ? row + r : row;
        at[r] = matrix + (unsigned long long)of * blocks * 9;
#pragma unroll
        for (int c = 0; c < 4; c++) sums[r][c] = 0.0f;
    }
    // All lanes go round together, those without a block too: they meet at each __syncwarp.
    for (unsigned first = 0; first < blocks; first += 4) {
        unsigned b = first + quarter;
        bool is_there = b < blocks;
        unsigned word[ROWS][4];
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            uint4 head = make_uint4(0, 0, 0, 0);
            if (is_there) {
                const uint4 *block = at[r] + (unsigned long long)b * 9;
                head = __ldg(block);
#pragma unroll
                for (int n = 0; n < 4; n++) word[r][n] = __ldg((const unsigned *)(block + 1) + 8 * n + g);
            }
            shared[warp][r][lane] = factors(head, g);
        }
        __syncwarp();
        if (is_there) {
#pragma unroll
            for (int n = 0; n < 4; n++) {
                float4 v = __ldg(&x[b * 64 + 16 * n + g]), w = __ldg(&x[b * 64 + 16 * n + 8 + g]);
#pragma unroll
                for (int r = 0; r < ROWS; r++) {
                    float4 f = *(const float4 *)&shared[warp][r][8 * quarter + 2 * n];
                    float value[4];
                    low_nibbles(word[r][n], value);
#pragma unroll
                    for (int c = 0; c < 4; c++) value[c] = __fmaf_rn(f.x, value[c], -f.y);
                    add_products(sums[r], value, v);
                    high_nibbles(word[r][n], value);
#pragma unroll
                    for (int c = 0; c < 4; c++) value[c] = __fmaf_rn(f.z, value[c], -f.w);
                    add_products(sums[r], value, w);
                }
            }
        }
        __syncwarp();
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        float sum = tree(sums[r]);
        if (lane == 0 && row + r < rows) out[row + r] = sum;
    }
}
