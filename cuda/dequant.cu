// Weights as GGUF files have them: Q8_0 and Q4_K to floats, and times a vector. The formats, and the order of each
// sum, stand in src/post/quant.rs, whose bits these kernels give.
//
// Nibbles and bytes become floats without a conversion: a byte put into the mantissa of 32768 is added to it exactly,
// and 32768 is taken off again exactly.
//
//   dequant_q8_0, dequant_q4_k   grid: any number of blocks of 256 threads; a stride covers the rest
//   matvec_q8_0, matvec_q4_k     grid: ceil(rows / 32) blocks of 256 threads; a warp has four rows
//
// A block holds TILE values of the vector in shared memory: all its rows meet them before the next.

#define WARPS 8
#define ROWS 4
#define TILE 4096

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

// Four bytes below 16 as floats: byte b at bits 8 to 15 makes 32768 + b.
__device__ __forceinline__ void small_bytes(unsigned word, float out[4]) {
    out[0] = __uint_as_float(__byte_perm(word, 0x47000000u, 0x7604)) - 32768.0f;
    out[1] = __uint_as_float(__byte_perm(word, 0x47000000u, 0x7614)) - 32768.0f;
    out[2] = __uint_as_float(__byte_perm(word, 0x47000000u, 0x7624)) - 32768.0f;
    out[3] = __uint_as_float(__byte_perm(word, 0x47000000u, 0x7634)) - 32768.0f;
}

// The low nibbles of a word's bytes, and the high ones.
__device__ __forceinline__ void low_nibbles(unsigned word, float out[4]) { small_bytes(word & 0x0f0f0f0fu, out); }
__device__ __forceinline__ void high_nibbles(unsigned word, float out[4]) { small_bytes(word >> 4 & 0x0f0f0f0fu, out); }

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

__device__ __forceinline__ void load_tile(float4 *tile, const float4 *x, unsigned first, unsigned count) {
    __syncthreads();
    for (unsigned i = threadIdx.x; i < count / 4; i += 256) tile[i] = __ldg(&x[first / 4 + i]);
    __syncthreads();
}

// The rows of a warp; past the last row it is that row again, whose sum is not written.
template <typename T>
__device__ __forceinline__ void rows_of_warp(const T *matrix, unsigned rows, size_t of_row, const T *at[ROWS]) {
    unsigned row = (blockIdx.x * WARPS + (threadIdx.x >> 5)) * ROWS;
#pragma unroll
    for (int r = 0; r < ROWS; r++) at[r] = matrix + min(row + r, rows - 1) * of_row;
}

__device__ __forceinline__ void write_sums(float sums[ROWS][4], float *out, unsigned rows) {
    unsigned row = (blockIdx.x * WARPS + (threadIdx.x >> 5)) * ROWS;
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        float sum = tree(sums[r]);
        if ((threadIdx.x & 31) == 0 && row + r < rows) out[row + r] = sum;
    }
}

// 8 threads have a block, a warp four blocks at once.
extern "C" __global__ void __launch_bounds__(256)
matvec_q8_0(const unsigned char *__restrict__ matrix, const float4 *__restrict__ x, float *__restrict__ out,
            unsigned rows, unsigned blocks) {
    __shared__ float4 tile[TILE / 4];
    unsigned lane = threadIdx.x & 31, g = lane & 7;
    const unsigned char *at[ROWS];
    float sums[ROWS][4] = {};
    rows_of_warp(matrix, rows, (size_t)blocks * 34, at);
    // Each lane's next factor and next four bytes.
    const unsigned char *head[ROWS], *bytes[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        head[r] = at[r] + (lane >> 3) * 34;
        bytes[r] = head[r] + 2 + 4 * g;
    }
    for (unsigned first = 0; first < blocks; first += TILE / 32) {
        unsigned count = min(blocks - first, TILE / 32);
        load_tile(tile, x, first * 32, count * 32);
#pragma unroll 4
        for (unsigned b = lane >> 3; b < count; b += 4) {
            float4 v = tile[b * 8 + g];
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                float value[4];
                times_bytes(half_at(head[r]), word_at(bytes[r]), value);
                add_products(sums[r], value, v);
                head[r] += 4 * 34;
                bytes[r] += 4 * 34;
            }
        }
    }
    write_sums(sums, out, rows);
}

extern "C" __global__ void __launch_bounds__(256, 4)
matvec_q4_k(const uint4 *__restrict__ matrix, const float4 *__restrict__ x, float *__restrict__ out,
            unsigned rows, unsigned blocks) {
    __shared__ float4 tile[TILE / 4];
    __shared__ __align__(16) float2 shared[WARPS][ROWS][32];
    unsigned lane = threadIdx.x & 31, g = lane & 7, quarter = lane >> 3, warp = threadIdx.x >> 5;
    const uint4 *at[ROWS];
    float sums[ROWS][4] = {};
    rows_of_warp(matrix, rows, (size_t)blocks * 9, at);
    for (unsigned start = 0; start < blocks; start += TILE / 256) {
        unsigned count = min(blocks - start, TILE / 256);
        load_tile(tile, x, start * 256, count * 256);
        // All lanes go round together, those without a block too: they meet at each __syncwarp.
        for (unsigned four = 0; four < count; four += 4) {
            unsigned b = four + quarter;
            bool is_there = b < count;
            unsigned word[ROWS][4];
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                uint4 head = make_uint4(0, 0, 0, 0);
                if (is_there) {
                    const uint4 *block = at[r] + (size_t)(start + b) * 9;
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
                    float4 v = tile[b * 64 + 16 * n + g], w = tile[b * 64 + 16 * n + 8 + g];
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
    }
    write_sums(sums, out, rows);
}
