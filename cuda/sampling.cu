// Drawing tokens from logits. The definition, and why both machines get the same token, is in
// src/post/sampling/mod.rs; src/post/weight.rs holds the arithmetic that is repeated here.
//
//   sampling_edit   one thread an edit: what the edited logit is          (only where there are edits)
//   sampling_scan   one block a chunk: the one read of the logits          grid (chunks, rows)
//   sampling_draw   one block a row: cut, draw, logarithms                 grid (rows)
//
// A chunk is 256 * PER logits, PER being what a thread of the scan holds; a row has at most 128. The
// scan leaves, for each chunk, its largest logit, the sums of masses of the 255 bins from the top of
// that logit's octave down, and for each group of 32 logits the bin of its largest. From the sums the
// draw knows at which bin a rule cuts; from the groups' bins where the few logits above it are. Only
// those are read again: the groups that hold a narrow nucleus, or the one chunk that a wide one is
// drawn from. Where a draw lands in the edge of a wide one, the row is passed over once to see
// whether the token is kept; only what is wide and cut by number, or was drawn in vain 4 times,
// takes more passes, at most 30.
//
// Bounds: vocab <= 2^18, 256 threads a block, 32 KiB of shared memory. Nothing here needs more than
// sm_50 and PTX 6.4: what is called between threads of a warp is of the _sync kind.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

// NVRTC brings no math.h.
#ifndef INFINITY
#define INFINITY __int_as_float(0x7f800000)
#endif
#ifndef NAN
#define NAN __int_as_float(0x7fffffff)
#endif

#define THREADS 256
#define WARPS 8
#define BINS 255
#define CHUNKS_MAX 128
#define GROUPS_MAX 8192
#define GROUP 32
// Logits that a draw keeps at once; more are a wide nucleus.
#define LIST_MAX 1024
#define ALL 0xffffffffu
// Least and greatest mass (weight.rs).
#define MASS_MIN 125515u
#define MASS_MAX 136875u

// src/post/sampling/params.rs
struct Row {
    u64 seed, stream, top_p;
    u32 step, top_k;
    float scale, min_p, repetition_penalty, presence_penalty, frequency_penalty;
    u32 unused;
};

struct Edit {
    u32 token, count;
    float bias;
};

// src/cuda/sampling.rs
struct Result {
    u32 status, token;
    float ln_probability, entropy;
};

struct Top {
    u32 token;
    float ln_probability;
};

enum Status { DONE, IS_NAN, ALL_MASKED, INFINITE, OUT_OF_RANGE };
enum Type { F32, F16, BF16 };

// ---- weight.rs ----

#define ROUND 12582912.0f
#define SCALED_MIN -4194303.0f
#define SCALED_MAX 4000000.0f
#define LN_2 0.69314718055994530942

// The bin of a row's or a group's largest.
__device__ __forceinline__ int bin_of(float y) {
    return __float_as_int(__fadd_rn(fmaxf(y, SCALED_MIN), ROUND)) - __float_as_int(ROUND);
}

// How far below `top` the bin of y is. What is below SCALED_MIN, where the sum is no integer or
// even negative, comes out as 255 or more, as everything does that is far below: its bits are
// those of a float below ROUND, or have the sign set, and `top` is 4,000,007 at most.
__device__ __forceinline__ u32 bin_below(int top, float y) {
    return (u32)(top + __float_as_int(ROUND)) - __float_as_uint(__fadd_rn(y, ROUND));
}

__device__ __forceinline__ float place_in_bin(float y) {
    return __fadd_rn(y, -__fadd_rn(__fadd_rn(y, ROUND), -ROUND));
}

// 64 and the power, of which 17 bits behind the point are left.
__device__ __forceinline__ float power_of(float f) {
    float p = __fadd_rn(__fmul_rn(f, 0.000108406464f), 0.0037535392f);
    p = __fadd_rn(__fmul_rn(f, p), 0.0866434f);
    return __fadd_rn(__fmul_rn(f, p), 65.0f);
}

__device__ __forceinline__ u32 fixed(float above_64) {
    return __float_as_uint(above_64) - __float_as_uint(64.0f);
}

// Of a y that is in the window.
__device__ __forceinline__ u32 mass_of(float y) { return fixed(power_of(place_in_bin(y))); }

__device__ __forceinline__ u32 moment_of(float f, float power) {
    return fixed(__fadd_rn(64.0f, __fmul_rn(__fadd_rn(power, -64.0f), __fadd_rn(f, 0.5f))));
}

__constant__ u32 FACTOR[8] = {67108864,  73182735,  79806339,  87029429,
                              94906266, 103496017, 112863206, 123078199};

__device__ __forceinline__ u64 weigh(u32 t, u64 sum) {
    return (sum * FACTOR[7 - (t & 7)]) >> (t >> 3);
}

__device__ __forceinline__ u64 unweigh(u32 t, u64 weight) {
    u64 factor = FACTOR[7 - (t & 7)];
    return ((weight << (t >> 3)) + factor - 1) / factor;
}

__device__ __forceinline__ u32 key_of(float x) {
    u32 bits = __float_as_uint(x);
    return bits ^ ((u32)((int)bits >> 31) | 0x80000000u);
}

__device__ __forceinline__ float logit_of(u32 key) {
    return __uint_as_float(key ^ ((u32)((int)~key >> 31) | 0x80000000u));
}

__device__ double ln(double x) {
    u64 bits = (u64)__double_as_longlong(x) - 0x3fe6a09e667f3bcdull;
    double e = (double)(int)((long long)bits >> 52);
    double m = __longlong_as_double((long long)((bits & 0x000fffffffffffffull) + 0x3fe6a09e667f3bcdull));
    double s = __ddiv_rn(__dadd_rn(m, -1.0), __dadd_rn(m, 1.0));
    double z = __dmul_rn(s, s);
    double sum = 1.0 / 21.0;
    const double series[9] = {1.0 / 19.0, 1.0 / 17.0, 1.0 / 15.0, 1.0 / 13.0, 1.0 / 11.0,
                              1.0 / 9.0,  1.0 / 7.0,  1.0 / 5.0,  1.0 / 3.0};
#pragma unroll
    for (int i = 0; i < 9; i++) sum = __dadd_rn(__dmul_rn(sum, z), series[i]);
    return __dadd_rn(__dmul_rn(e, LN_2),
                     __dmul_rn(__dadd_rn(s, s), __dadd_rn(__dmul_rn(sum, z), 1.0)));
}

__device__ __forceinline__ double ln_weight(u64 sum) {
    return __dadd_rn(ln(__ull2double_rn(sum)), -(43.0 * LN_2));
}

__device__ __forceinline__ double ln_scaled(float y, int octave) {
    return __dmul_rn(__dadd_rn(__dmul_rn((double)y, 0.125), -(double)octave), LN_2);
}

// ---- philox.rs ----

__device__ __forceinline__ void philox(const Row& row, u32 attempt, u64* a, u64* b) {
    u32 c0 = attempt, c1 = row.step, c2 = (u32)row.stream, c3 = (u32)(row.stream >> 32);
    u32 k0 = (u32)row.seed, k1 = (u32)(row.seed >> 32);
    for (int round = 0; round < 10; round++) {
        u64 p = (u64)c0 * 0xd2511f53u, q = (u64)c2 * 0xcd9e8d57u;
        c0 = (u32)(q >> 32) ^ c1 ^ k0;
        c1 = (u32)q;
        c2 = (u32)(p >> 32) ^ c3 ^ k1;
        c3 = (u32)p;
        k0 += 0x9e3779b9u;
        k1 += 0xbb67ae85u;
    }
    *a = c0 | (u64)c1 << 32;
    *b = c2 | (u64)c3 << 32;
}

// ---- Logits ----

__device__ __forceinline__ float widen_f16(u32 half) {
    float wide;
    asm("{ .reg .b16 h; cvt.u16.u32 h, %1; cvt.f32.f16 %0, h; }" : "=f"(wide) : "r"(half));
    return wide;
}

template <int T>
__device__ __forceinline__ float load_one(const void* logits, u64 at) {
    if (T == F32) return __ldg((const float*)logits + at);
    u32 half = __ldg((const u16*)logits + at);
    return T == F16 ? widen_f16(half) : __uint_as_float(half << 16);
}

// 16 bytes: 4 logits or 8.
template <int T>
__device__ __forceinline__ void load_vector(const void* logits, u64 at, float* into) {
    if (T == F32) {
        float4 v = __ldg((const float4*)((const float*)logits + at));
        into[0] = v.x, into[1] = v.y, into[2] = v.z, into[3] = v.w;
    } else {
        uint4 v = __ldg((const uint4*)((const u16*)logits + at));
        const u32 words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            into[2 * i] = T == F16 ? widen_f16(words[i] & 0xffff) : __uint_as_float(words[i] << 16);
            into[2 * i + 1] =
                T == F16 ? widen_f16(words[i] >> 16) : __uint_as_float(words[i] & 0xffff0000u);
        }
    }
}

// ---- Between threads of a block ----

__device__ __forceinline__ u32 lane() { return threadIdx.x & 31; }

// Sum of `value` over the threads up to and with this one, in a block of up to 8 warps, or in the
// first 8 of one. `scratch` has room for 8; the caller syncs before it is used again.
template <typename V>
__device__ __forceinline__ V scan(V value, V* scratch) {
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
        V below = __shfl_up_sync(ALL, value, d);
        if (lane() >= d) value += below;
    }
    u32 warp = threadIdx.x / 32;
    if (lane() == 31 && warp < WARPS) scratch[warp] = value;
    __syncthreads();
    V before = 0;
#pragma unroll
    for (u32 w = 0; w < WARPS - 1; w++) before += w < warp ? scratch[w] : 0;
    return value + before;
}

// ---- Edits ----

// grid (ceil(most edits of a row / 256), rows)
template <int T>
__device__ __forceinline__ void edit(const void* logits, u32 vocab, const Row* rows,
                                     const u32* starts, const Edit* edits, float* edited) {
    u32 at = starts[blockIdx.y] + blockIdx.x * THREADS + threadIdx.x;
    if (at >= starts[blockIdx.y + 1]) return;
    const Row& row = rows[blockIdx.y];
    Edit e = edits[at];
    float x = load_one<T>(logits, (u64)blockIdx.y * vocab + e.token);
    if (e.count > 0) {
        x = x > 0.0f ? __fdiv_rn(x, row.repetition_penalty) : __fmul_rn(x, row.repetition_penalty);
        x = __fadd_rn(x, -__fmul_rn(__uint2float_rn(e.count), row.frequency_penalty));
        x = __fadd_rn(x, -row.presence_penalty);
    }
    edited[at] = __fadd_rn(x, e.bias);
}

// Puts the edited logits of this block's chunk where the read ones are. A bit for each logit of the
// chunk says whether it is edited; edits are sorted, so the count of bits before it says where its
// new value is.
template <int W, int L>
__device__ __forceinline__ void apply_edits(float* x, u32 begin, u32 count, const u32* starts,
                                            const Edit* edits, const float* edited) {
    __shared__ u32 bits[THREADS], before[THREADS], sums[WARPS];
    __shared__ u32 first;
    u32 t = threadIdx.x, start = starts[blockIdx.y], end = starts[blockIdx.y + 1];
    bits[t] = 0;
    if (t == 0) first = start;
    __syncthreads();
    for (u32 at = start + t; at < end; at += THREADS) {
        u32 token = edits[at].token;
        if (token < begin) {
            atomicAdd(&first, 1);
        } else if (token - begin < count) {
            atomicOr(&bits[(token - begin) / 32], 1u << ((token - begin) & 31));
        }
    }
    __syncthreads();
    u32 own = __popc(bits[t]);
    before[t] = scan(own, sums) - own;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < L; i++) {
        u32 place = i * (THREADS * W) + t * W;
        u32 word = bits[place / 32], here = (word >> (place & 31)) & ((1u << W) - 1);
        if (here) {
            u32 at = first + before[place / 32] + __popc(word & ((1u << (place & 31)) - 1));
#pragma unroll
            for (int j = 0; j < W; j++) {
                if (here >> j & 1) x[i * W + j] = edited[at++];
            }
        }
    }
}

// ---- The scan ----

// Adds each logit's mass to its bin; four copies of each bin, for neighbouring lanes, so that fewer
// meet in one word.
template <int PER, bool MOMENTS>
__device__ __forceinline__ void tally(const float* x, float scale, int top, u32* masses,
                                      u32* moments) {
    masses += threadIdx.x & 3;
    moments += threadIdx.x & 3;
#pragma unroll
    for (int i = 0; i < PER; i++) {
        float y = __fmul_rn(x[i], scale);
        u32 t = bin_below(top, y);
        float f = place_in_bin(y), power = power_of(f);
        if (t < BINS) {
            atomicAdd(&masses[t * 4], fixed(power));
            if (MOMENTS) atomicAdd(&moments[t * 4], moment_of(f, power));
        }
    }
}

template <int T, int PER>
__device__ __forceinline__ void scan_chunk(const void* logits, u32 vocab, const Row* rows,
                                           const u32* starts, const Edit* edits,
                                           const float* edited, float* largest, u8* used,
                                           u32* masses, u32* moments, u8* group_bins) {
    const int W = T == F32 ? 4 : 8, L = PER / W, LANES = GROUP / PER;
    __shared__ uint4 bins[256], bin_moments[256];
    __shared__ float warp_max[WARPS];
    u32 t = threadIdx.x, begin = blockIdx.x * (THREADS * PER);
    u64 row = (u64)blockIdx.y * vocab, chunk = (u64)blockIdx.y * gridDim.x + blockIdx.x;

    float x[PER];
    if (vocab % W == 0) {
#pragma unroll
        for (int i = 0; i < L; i++) {
            u32 at = begin + i * (THREADS * W) + t * W;
            if (at < vocab) {
                load_vector<T>(logits, row + at, x + i * W);
            } else {
#pragma unroll
                for (int j = 0; j < W; j++) x[i * W + j] = -INFINITY;
            }
        }
    } else {
#pragma unroll
        for (int i = 0; i < PER; i++) {
            u32 at = begin + i / W * (THREADS * W) + t * W + i % W;
            x[i] = at < vocab ? load_one<T>(logits, row + at) : -INFINITY;
        }
    }
    bins[t] = make_uint4(0, 0, 0, 0);
    if (moments) bin_moments[t] = make_uint4(0, 0, 0, 0);
    if (starts && starts[blockIdx.y] < starts[blockIdx.y + 1]) {
        apply_edits<W, L>(x, begin, THREADS * PER, starts, edits, edited);
    }

    float scale = __ldg(&rows[blockIdx.y].scale), most = x[0];
    bool is_nan = false;
#pragma unroll
    for (int i = 0; i < PER; i++) {
        most = fmaxf(most, x[i]);
        is_nan |= x[i] != x[i];
    }
#pragma unroll
    for (int d = 1; d < LANES; d *= 2) most = fmaxf(most, __shfl_xor_sync(ALL, most, d));
    float all = most;
#pragma unroll
    for (int d = LANES; d < 32; d *= 2) all = fmaxf(all, __shfl_xor_sync(ALL, all, d));
    if (lane() == 0) warp_max[t / 32] = all;
    is_nan = __syncthreads_or(is_nan);
    all = warp_max[0];
#pragma unroll
    for (int w = 1; w < WARPS; w++) all = fmaxf(all, warp_max[w]);
    if (t == 0) largest[chunk] = is_nan ? NAN : all;

    int top = (bin_of(__fmul_rn(all, scale)) >> 3) * 8 + 7;
    if (t % LANES == 0) {
        u32 below = (u32)(top - bin_of(__fmul_rn(most, scale)));
        group_bins[chunk * (THREADS / LANES) + t / LANES] = (u8)min(below, (u32)BINS);
    }
    if (all == -INFINITY) return;
    if (moments) {
        tally<PER, true>(x, scale, top, (u32*)bins, (u32*)bin_moments);
    } else {
        tally<PER, false>(x, scale, top, (u32*)bins, 0);
    }
    __syncthreads();
    uint4 four = bins[t];
    u32 sum = four.x + four.y + four.z + four.w, filled = __ballot_sync(ALL, sum > 0);
    // A bit for each of the warp's four octaves.
    u32 octaves = 0;
#pragma unroll
    for (int o = 0; o < 4; o++) octaves |= (filled >> (8 * o) & 255 ? 1 : 0) << o;
    if (lane() == 0) used[chunk * WARPS + t / 32] = octaves;
    if (octaves >> (lane() / 8) & 1) {
        masses[chunk * 256 + t] = sum;
        if (moments) {
            four = bin_moments[t];
            moments[chunk * 256 + t] = four.x + four.y + four.z + four.w;
        }
    }
}

#define KERNELS(NAME, T)                                                                           \
    extern "C" __global__ void sampling_edit_##NAME(const void* logits, u32 vocab,                 \
                                                    const Row* rows, const u32* starts,            \
                                                    const Edit* edits, float* edited) {            \
        edit<T>(logits, vocab, rows, starts, edits, edited);                                       \
    }                                                                                              \
    SCAN(NAME, T, 8)                                                                               \
    SCAN(NAME, T, 32)
#define SCAN(NAME, T, PER)                                                                         \
    extern "C" __global__ void __launch_bounds__(THREADS, 5) sampling_scan_##NAME##_##PER(         \
        const void* logits, u32 vocab, const Row* rows, const u32* starts, const Edit* edits,      \
        const float* edited, float* largest, u8* used, u32* masses, u32* moments,                  \
        u8* group_bins) {                                                                          \
        scan_chunk<T, PER>(logits, vocab, rows, starts, edits, edited, largest, used, masses,      \
                           moments, group_bins);                                                   \
    }
KERNELS(f32, F32)
KERNELS(f16, F16)
KERNELS(bf16, BF16)

// ---- The draw ----

#define DRAW_THREADS 256
#define DRAW_WARPS 8
// Draws from a whole edge, before what is kept of it is found out.
#define DRAWS 4

// Where a row's logits are.
struct Source {
    const void* logits;
    const Edit* edits;
    const float* edited;
    u64 row;
    u32 type, vocab, start, end;
    float scale;
    int top;

    // A logit as it lies there, to be widened when it has come.
    __device__ __forceinline__ u32 bits(u32 index) const {
        return type == F32 ? __ldg((const u32*)logits + row + index)
                           : __ldg((const u16*)logits + row + index);
    }

    __device__ __forceinline__ float widen(u32 bits) const {
        if (type == F16) return widen_f16(bits);
        return __uint_as_float(type == F32 ? bits : bits << 16);
    }

    // The logit `x` of this index, or what it was edited to.
    __device__ __forceinline__ float edit(u32 index, float x) const {
        u32 low = start, high = end;
        while (low < high) {
            u32 middle = (low + high) / 2;
            if (edits[middle].token < index) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        return low < end && edits[low].token == index ? edited[low] : x;
    }

    __device__ __forceinline__ float load(u32 index) const {
        float x = widen(bits(index));
        return start < end ? edit(index, x) : x;
    }

    // N times 4 logits, `stride` apart; what is past the vocabulary is -inf. No load waits for
    // another, nor for a branch: places past the end are read at the end, and then replaced.
    template <int N>
    __device__ __forceinline__ void load_tiles(u32 first, u32 stride, float (*x)[4]) const {
        if (vocab % 4 != 0) {
            u32 words[4 * N];
#pragma unroll
            for (int i = 0; i < 4 * N; i++) {
                words[i] = bits(min(first + i / 4 * stride + i % 4, vocab - 1));
            }
#pragma unroll
            for (int i = 0; i < 4 * N; i++) x[i / 4][i % 4] = widen(words[i]);
        } else if (type == F32) {
#pragma unroll
            for (int i = 0; i < N; i++) {
                load_vector<F32>(logits, row + min(first + i * stride, vocab - 4), x[i]);
            }
        } else {
            uint2 halves[N];
#pragma unroll
            for (int i = 0; i < N; i++) {
                u64 at = row + min(first + i * stride, vocab - 4);
                halves[i] = __ldg((const uint2*)((const u16*)logits + at));
            }
#pragma unroll
            for (int i = 0; i < 4 * N; i++) {
                u32 word = i % 4 < 2 ? halves[i / 4].x : halves[i / 4].y;
                u32 half = word >> (i % 2 * 16) & 0xffff;
                x[i / 4][i % 4] = type == F16 ? widen_f16(half) : __uint_as_float(half << 16);
            }
        }
#pragma unroll
        for (int i = 0; i < 4 * N; i++) {
            if (first + i / 4 * stride + i % 4 >= vocab) x[i / 4][i % 4] = -INFINITY;
        }
        if (start < end) {
#pragma unroll 1
            for (int i = 0; i < 4 * N; i++) {
                u32 index = first + i / 4 * stride + i % 4;
                float edited_one = load(min(index, vocab - 1));
#pragma unroll
                for (int j = 0; j < 4 * N; j++) {
                    if (j == i && index < vocab) x[j / 4][j % 4] = edited_one;
                }
            }
        }
    }
};

// The order as numbers: least first.
__device__ __forceinline__ u64 order_of(float x, u32 index) {
    return (u64)~key_of(x) << 32 | index;
}

__device__ __forceinline__ float scaled_of(u64 order, float scale) {
    return __fmul_rn(logit_of(~(u32)(order >> 32)), scale);
}

// What is kept of the edge's bin.
struct Filter {
    u64 last;  // in order, up to and with this
    float scaled_min;

    __device__ __forceinline__ bool keeps(u64 order, float scale) const {
        return order <= last && scaled_of(order, scale) >= scaled_min;
    }
};

struct Shared {
    // What all threads know of the row: here, since there are few registers.
    Row row;
    Source source;
    u64 weights[256];  // of all bins from the top to this
    u64 masses[256];   // of this bin
    u32 at_least[256], at_most[256];  // logits in all bins from the top to this
    u32 counts[256];                  // the same, exactly, where they were counted
    u64 sums[DRAW_WARPS], more_sums[WARPS];
    u32 few_sums[WARPS];
    // The list: logits of the bins from the top to some bin, bin by bin.
    u64 order[LIST_MAX];
    u32 mass[LIST_MAX];
    // Until the list is made, its logits as they are found; before, the groups' bins.
    union {
        u8 group_bins[GROUPS_MAX];
        u64 found_order[LIST_MAX];
        u64 digits[256];
    };
    u16 groups[LIST_MAX];
    u32 used[CHUNKS_MAX];
    u16 offsets[CHUNKS_MAX];
    float warp_max[DRAW_WARPS];
    u32 parts[64];
    u32 group_count, count, found;
    u64 found_sum, total;
    double ln_total;
};

// First place where the running sums reach `goal`; BINS where none does.
template <typename V>
__device__ __forceinline__ u32 first_reaching(const V* running, V goal) {
    return __syncthreads_count(threadIdx.x < BINS && running[threadIdx.x] < goal);
}

// Sum over the block; every thread gets it.
__device__ __forceinline__ u64 sum_all(Shared& s, u64 value) {
#pragma unroll
    for (int d = 16; d > 0; d /= 2) value += __shfl_down_sync(ALL, value, d);
    __syncthreads();
    if (lane() == 0) s.sums[threadIdx.x / 32] = value;
    __syncthreads();
    value = 0;
#pragma unroll
    for (int w = 0; w < DRAW_WARPS; w++) value += s.sums[w];
    return value;
}

// Running sum over the block.
__device__ __forceinline__ u64 scan_all(Shared& s, u64 value) {
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
        u64 below = __shfl_up_sync(ALL, value, d);
        if (lane() >= d) value += below;
    }
    u32 warp = threadIdx.x / 32;
    __syncthreads();
    if (lane() == 31) s.sums[warp] = value;
    __syncthreads();
    for (u32 w = 0; w < warp; w++) value += s.sums[w];
    return value;
}

// The last of the shortest prefix of a bin's order whose masses (or, with `counting`, whose number)
// reach `need`, from the whole row: eight bits of the order at a time.
__device__ __noinline__ u64 cut_in_row(Shared& s, u32 bin, u64 need, bool counting) {
    const Source source = s.source;
    u32 t = threadIdx.x;
    u64 prefix = 0;
    for (int shift = 56; shift >= 0; shift -= 8) {
        if (shift == 24) continue;  // indices have 18 bits
        __syncthreads();
        if (t < 256) s.digits[t] = 0;
        __syncthreads();
        for (u32 index = t; index < source.vocab; index += DRAW_THREADS) {
            float x = source.load(index), y = __fmul_rn(x, source.scale);
            u64 order = order_of(x, index);
            bool in = shift == 56 || order >> (shift + 8) == prefix >> (shift + 8);
            if (in && bin_below(source.top, y) == bin) {
                atomicAdd(&s.digits[order >> shift & 255], counting ? 1ull : (u64)mass_of(y));
            }
        }
        __syncthreads();
        u64 own = t < 256 ? s.digits[t] : 0, running = scan_all(s, own);
        if (running >= need && running - own < need) {
            s.found = t;
            s.found_sum = running - own;
        }
        __syncthreads();
        prefix |= (u64)s.found << shift;
        need -= s.found_sum;
    }
    return prefix;
}

// The mass that a filter keeps of a bin, from the whole row. One block has it to itself, so it is
// short: the row is fetched into the second cache at once, and a few logits of the bin in a hundred
// are first marked, then looked at.
__device__ __noinline__ u64 mass_in_row(Shared& s, u32 bin, Filter filter) {
    const Source source = s.source;
    const u32 want = (u32)(source.top + __float_as_int(ROUND)) - bin;  // as in `bin_below`
    const u32 width = source.type == F32 ? 4 : 2;
    const char* begins = (const char*)source.logits + source.row * width;
    for (u32 at = threadIdx.x * 128; at < source.vocab * width; at += DRAW_THREADS * 128) {
        asm volatile("prefetch.global.L2 [%0];" ::"l"(begins + at));
    }
    u64 sum = 0;
    for (u32 begin = threadIdx.x * 4; begin < source.vocab; begin += 8 * 4 * DRAW_THREADS) {
        float x[8][4];
        source.load_tiles<8>(begin, 4 * DRAW_THREADS, x);
        u32 marks = 0;
#pragma unroll
        for (int i = 0; i < 32; i++) {
            float y = __fmul_rn(x[i / 4][i % 4], source.scale);
            marks |= __float_as_uint(__fadd_rn(y, ROUND)) == want ? 1u << i : 0;
        }
        while (marks) {
            u32 i = __ffs(marks) - 1, index = begin + i / 4 * (4 * DRAW_THREADS) + i % 4;
            marks &= marks - 1;
            float logit = source.load(index), y = __fmul_rn(logit, source.scale);
            bool kept = y >= filter.scaled_min && order_of(logit, index) <= filter.last;
            sum += kept ? mass_of(y) : 0;
        }
    }
    return sum_all(s, sum);
}

// Counts the row's logits in the bins from the top to each.
__device__ __noinline__ void counts_in_row(Shared& s) {
    const Source source = s.source;
    u32 t = threadIdx.x;
    __syncthreads();
    if (t < 256) s.counts[t] = 0;
    __syncthreads();
    for (u32 index = t; index < source.vocab; index += DRAW_THREADS) {
        u32 bin = bin_below(source.top, __fmul_rn(source.load(index), source.scale));
        if (bin < BINS) atomicAdd(&s.counts[bin], 1);
    }
    __syncthreads();
    u32 running = scan_all(s, t < 256 ? s.counts[t] : 0);
    if (t < 256) s.counts[t] = running;
    __syncthreads();
}

// In index order, the logit of `bin` at which the kept masses pass `rest`.
__device__ __noinline__ u32 pick_in_row(Shared& s, u32 bin, u64 rest, Filter filter) {
    const Source source = s.source;
    u32 t = threadIdx.x;
    for (u32 begin = 0; begin < source.vocab; begin += DRAW_THREADS) {
        u32 index = begin + t, own = 0;
        if (index < source.vocab) {
            float x = source.load(index), y = __fmul_rn(x, source.scale);
            bool in = bin_below(source.top, y) == bin;
            if (in && filter.keeps(order_of(x, index), source.scale)) own = mass_of(y);
        }
        if (t == 0) s.found = ALL;
        u64 running = scan_all(s, own);
        if (rest < running && rest >= running - own) s.found = index;
        if (t == DRAW_THREADS - 1) s.total = running;
        __syncthreads();
        u32 found = s.found;
        rest -= s.total;
        __syncthreads();
        if (found != ALL) return found;
    }
    return 0;
}

// As `pick_in_row`, in the one chunk that has it (of 2 or 8 tiles), without a filter. Parts are of the 128 logits that a warp has in a row.
__device__ __noinline__ u32 pick_in_chunk(Shared& s, u32 begin, u32 tiles, u32 bin,
                                          u32 rest) {
    const Source source = s.source;
    u32 t = threadIdx.x, warp = t / 32;
    float x[8][4];
    if (tiles == 8) {
        source.load_tiles<8>(begin + t * 4, 4 * DRAW_THREADS, x);
    } else {
        source.load_tiles<2>(begin + t * 4, 4 * DRAW_THREADS, x);
    }
#pragma unroll
    for (u32 tile = 0; tile < 8; tile++) {
        u32 sum = 0;
        if (tile < tiles) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float y = __fmul_rn(x[tile][i], source.scale);
                if (bin_below(source.top, y) == bin) sum += mass_of(y);
            }
        }
#pragma unroll
        for (int d = 16; d > 0; d /= 2) sum += __shfl_down_sync(ALL, sum, d);
        if (lane() == 0) s.parts[tile * DRAW_WARPS + warp] = sum;
    }
    __syncthreads();
    if (warp == 0) {
        u32 first = s.parts[2 * t], both = first + s.parts[2 * t + 1], running = both;
#pragma unroll
        for (int d = 1; d < 32; d *= 2) {
            u32 below = __shfl_up_sync(ALL, running, d);
            if (lane() >= d) running += below;
        }
        u32 before = running - both;
        if (rest < running && rest >= before) {
            bool second = rest >= before + first;
            s.found = 2 * t + second;
            s.total = rest - before - (second ? first : 0);
        }
    }
    __syncthreads();
    u32 part = s.found;
    rest = s.total;
    __syncthreads();
    if (warp == part % DRAW_WARPS) {
        u32 index = begin + part / DRAW_WARPS * (4 * DRAW_THREADS) + t * 4, sum = 0, masses[4];
        float four[1][4];
        source.load_tiles<1>(index, 0, four);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float y = __fmul_rn(four[0][i], source.scale);
            masses[i] = bin_below(source.top, y) == bin ? mass_of(y) : 0;
            sum += masses[i];
        }
        u32 up_to = sum;
#pragma unroll
        for (int d = 1; d < 32; d *= 2) {
            u32 below = __shfl_up_sync(ALL, up_to, d);
            if (lane() >= d) up_to += below;
        }
        u32 before = up_to - sum;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (rest >= before && rest < before + masses[i]) s.found = index + i;
            before += masses[i];
        }
    }
    __syncthreads();
    return s.found;
}

// Makes the list of the logits in the bins from the top to `last`, from the groups that have any.
// Lane e of a warp takes logit e of a group, of which the scan's threads had `run` in a row.
__device__ __forceinline__ void gather(Shared& s, u32 chunk_groups, u32 per, u32 vector,
                                       u32 chunks, u32 last) {
    const Source source = s.source;
    u32 t = threadIdx.x, words = chunks * chunk_groups / 4;
    for (u32 word = t; word < words; word += DRAW_THREADS) {
        u32 four = ((const u32*)s.group_bins)[word];
        u32 offset = s.offsets[word * 4 / chunk_groups];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            u32 bin = four >> (8 * i) & 255;
            if (bin + offset <= last) {
                u32 at = atomicAdd(&s.group_count, 1);
                if (at < LIST_MAX) s.groups[at] = word * 4 + i;
            }
        }
    }
    __syncthreads();
    u32 groups = min(s.group_count, (u32)LIST_MAX), run = GROUP * vector / per;
    u32 inside = lane() / run * (THREADS * vector) + lane() % run;
    for (u32 g = t / 32; g < groups; g += 8 * DRAW_WARPS) {
        u32 indices[8], words[8];
#pragma unroll
        for (int i = 0; i < 8; i++) {
            u32 group = s.groups[min(g + i * DRAW_WARPS, groups - 1)];
            u32 chunk = group / chunk_groups, member = group % chunk_groups;
            indices[i] = chunk * (THREADS * per) + member * run + inside;
            words[i] = source.bits(min(indices[i], source.vocab - 1));
        }
#pragma unroll
        for (int i = 0; i < 8; i++) {
            if (g + i * DRAW_WARPS >= groups || indices[i] >= source.vocab) continue;
            float logit = source.widen(words[i]);
            if (source.start < source.end) logit = source.edit(indices[i], logit);
            u32 bin = bin_below(source.top, __fmul_rn(logit, source.scale));
            if (bin <= last) {
                u32 at = atomicAdd(&s.count, 1);
                if (at < LIST_MAX) s.found_order[at] = order_of(logit, indices[i]);
                atomicAdd(&s.counts[bin], 1);
            }
        }
    }
    __syncthreads();
    u32 own = t < 256 ? s.counts[t] : 0, running = scan(own, s.few_sums);
    if (t < 256) {
        s.counts[t] = running;
        s.at_least[t] = running - own;  // from here on: where the bin's next goes
    }
    __syncthreads();
    for (u32 e = t; e < s.count; e += DRAW_THREADS) {
        u64 order = s.found_order[e];
        float y = scaled_of(order, source.scale);
        u32 at = atomicAdd(&s.at_least[bin_below(source.top, y)], 1);
        s.order[at] = order;
        s.mass[at] = mass_of(y);
    }
    __syncthreads();
}

// Places of a bin in the list.
__device__ __forceinline__ u32 first_of(const Shared& s, u32 bin) {
    return bin > 0 ? s.counts[bin - 1] : 0;
}

// As `cut_in_row`, from the list; the mass up to the cut is then in `total`.
__device__ __forceinline__ u64 cut_in_list(Shared& s, u32 bin, u64 need, bool counting) {
    u32 first = first_of(s, bin), end = s.counts[bin];
    __syncthreads();
    for (u32 e = first + threadIdx.x; e < end; e += DRAW_THREADS) {
        u64 order = s.order[e], mass = 0;
        u32 count = 0;
        for (u32 i = first; i < end; i++) {
            bool is_before = s.order[i] < order;
            count += is_before;
            mass += is_before ? s.mass[i] : 0;
        }
        u64 before = counting ? count : mass, own = counting ? 1 : s.mass[e];
        if (before < need && need <= before + own) {
            s.found_sum = order;
            s.total = mass + s.mass[e];
        }
    }
    __syncthreads();
    return s.found_sum;
}

__device__ __forceinline__ u64 mass_in_list(Shared& s, u32 bin, Filter filter) {
    float scale = s.source.scale;
    u64 sum = 0;
    for (u32 e = first_of(s, bin) + threadIdx.x; e < s.counts[bin]; e += DRAW_THREADS) {
        if (filter.keeps(s.order[e], scale)) sum += s.mass[e];
    }
    return sum_all(s, sum);
}

// As `pick_in_row`, from the list, and in order's numbers.
__device__ __forceinline__ u64 pick_in_list(Shared& s, u32 bin, u64 rest, Filter filter) {
    float scale = s.source.scale;
    u32 first = first_of(s, bin), end = s.counts[bin];
    __syncthreads();
    for (u32 e = first + threadIdx.x; e < end; e += DRAW_THREADS) {
        u64 order = s.order[e], before = 0;
        if (!filter.keeps(order, scale)) continue;
        for (u32 i = first; i < end; i++) {
            bool is_before = (u32)s.order[i] < (u32)order && filter.keeps(s.order[i], scale);
            before += is_before ? s.mass[i] : 0;
        }
        if (before <= rest && rest < before + s.mass[e]) s.found_sum = order;
    }
    __syncthreads();
    return s.found_sum;
}

// The lowest index whose logit cannot be: not a number, or +inf.
__device__ __noinline__ u32 first_bad(Shared& s, bool nan) {
    if (threadIdx.x == 0) s.found = ALL;
    __syncthreads();
    const Source source = s.source;
    for (u32 index = threadIdx.x; index < source.vocab; index += DRAW_THREADS) {
        float x = source.load(index);
        if (nan ? x != x : x == INFINITY) atomicMin(&s.found, index);
    }
    __syncthreads();
    return s.found;
}

// A part of a sum, rounded up; `part` is in units of 2^-32.
__device__ __forceinline__ u64 part_of(u64 sum, u64 part) {
    return __umul64hi(sum << 1, part << 31) + ((sum * part & 0xffffffffu) != 0);
}

// A row on its way through the draw.
struct Draw {
    Shared& s;
    const u32* masses;  // of the row's chunks
    u32 chunks, per;
    u32 listed;  // bins from the top that are in the list

    __device__ __forceinline__ u64 above(u32 bin) const { return bin > 0 ? s.weights[bin - 1] : 0; }

    __device__ __forceinline__ u32 mass_of_chunk(u32 chunk, u32 bin) const {
        u32 offset = s.offsets[chunk];
        if (offset > bin || !(s.used[chunk] >> ((bin - offset) / 8) & 1)) return 0;
        return __ldg(masses + chunk * 256 + bin - offset);
    }

    // The logit of `bin` at which the kept masses pass `rest`, in order's numbers.
    __device__ __forceinline__ u64 pick(u32 bin, u64 rest, bool whole, Filter filter) {
        if (bin < listed) return pick_in_list(s, bin, rest, filter);
        u32 t = threadIdx.x, index;
        if (whole) {
            u32 own = t < chunks ? mass_of_chunk(t, bin) : 0;
            u64 running = scan_all(s, own);
            if (rest < running && rest >= running - own) {
                s.found = t;
                s.found_sum = rest - (running - own);
            }
            __syncthreads();
            u32 begin = s.found * (THREADS * per);
            index = pick_in_chunk(s, begin, per / 4, bin, (u32)s.found_sum);
        } else {
            index = pick_in_row(s, bin, rest, filter);
        }
        return order_of(s.source.load(index), index);
    }

    // Draws from the bins above the edge, and of the edge from what the filter keeps.
    __device__ __forceinline__ u64 once(u32 edge, u64 mass, u32 attempt, Filter filter, u32* bin) {
        u64 a, b;
        philox(s.row, attempt, &a, &b);
        u64 point = __umul64hi(a, above(edge) + weigh(edge, mass));
        *bin = min(first_reaching(s.weights, point + 1), edge);
        bool is_edge = *bin == edge;
        Filter none = {~0ull, -INFINITY};
        u64 rest = __umul64hi(b, is_edge ? mass : s.masses[*bin]);
        return pick(*bin, rest, !is_edge || attempt < DRAWS, is_edge ? filter : none);
    }

    __device__ __forceinline__ u64 cut(u32 bin, u64 need, bool counting) {
        if (bin < listed) return cut_in_list(s, bin, need, counting);
        return cut_in_row(s, bin, need, counting);
    }

    __device__ __forceinline__ u64 mass(u32 bin, Filter filter) {
        if (bin < listed) return mass_in_list(s, bin, filter);
        return mass_in_row(s, bin, filter);
    }
};

// Sum of this thread's bin of a row from those of its chunks, all seen from the row's top.
__device__ __forceinline__ u64 sum_chunks(const Shared& s, const u32* sums, u32 chunks) {
    const u32 AT_ONCE = 32;
    u32 bin = threadIdx.x;
    u64 sum = 0;
    for (u32 first = 0; first < chunks; first += AT_ONCE) {
        u32 values[AT_ONCE], has = 0;
        // As in `load_tiles`: what is not there is read elsewhere.
#pragma unroll
        for (u32 i = 0; i < AT_ONCE; i++) {
            u32 c = min(first + i, chunks - 1), below = bin - s.offsets[c];
            bool here = first + i < chunks && below < BINS && s.used[c] >> (below / 8) & 1;
            values[i] = __ldg(sums + (here ? c * 256 + below : 0));
            has |= (u32)here << i;
        }
#pragma unroll
        for (u32 i = 0; i < AT_ONCE; i++) sum += has >> i & 1 ? values[i] : 0;
    }
    return sum;
}

// The likeliest `n`, in order, into `top`, from the list if it has them.
__device__ __noinline__ void list_top(Shared& s, bool in_list, u32 n, int octave, Top* top) {
    const Source source = s.source;
    u32 t = threadIdx.x;
    __syncthreads();
    if (!in_list) {
        counts_in_row(s);
        u32 bin = first_reaching(s.counts, n);
        u64 last = ~0ull;
        if (bin < BINS) last = cut_in_row(s, bin, n - first_of(s, bin), true);
        __syncthreads();
        if (t == 0) s.count = 0;
        __syncthreads();
        for (u32 index = t; index < source.vocab; index += DRAW_THREADS) {
            float x = source.load(index);
            u64 order = order_of(x, index);
            if (order <= last && bin_below(source.top, __fmul_rn(x, source.scale)) < BINS) {
                s.order[atomicAdd(&s.count, 1)] = order;
            }
        }
        __syncthreads();
    }
    u32 count = s.count;
    for (u32 e = t; e < count; e += DRAW_THREADS) {
        u64 order = s.order[e];
        u32 rank = 0;
        for (u32 i = 0; i < count; i++) rank += s.order[i] < order;
        if (rank < n) {
            double p = ln_scaled(scaled_of(order, source.scale), octave);
            top[rank] = {(u32)order, __double2float_rn(__dadd_rn(p, -s.ln_total))};
        }
    }
    for (u32 rank = count + t; rank < n; rank += DRAW_THREADS) top[rank] = {ALL, -INFINITY};
}

// Entropy in nats: the logarithm of the sum, less the mean of the weights' logarithms.
__device__ __noinline__ float entropy_of(Shared& s, const u32* moments, u32 chunks) {
    __syncthreads();
    u64 sum = sum_chunks(s, moments, chunks);
    u32 t = threadIdx.x;
    u64 distance = 0;
    if (t < BINS) {
        u64 weight = weigh(t, s.masses[t]);
        distance = (weight >> 10) * t + (weight >> 11) - (weigh(t, sum) >> 10);
    }
    distance = sum_all(s, distance);
    double mean = __ddiv_rn(__ll2double_rn((long long)distance),
                            __dmul_rn(__ull2double_rn(s.weights[BINS - 1]), 1.0 / 1024.0));
    double spread = __dmul_rn(__dadd_rn(0.875, -__dmul_rn(mean, 0.125)), LN_2);
    return __double2float_rn(__dadd_rn(s.ln_total, -spread));
}

// What a row gets that cannot be sampled.
__device__ __noinline__ void refuse(Shared& s, float most, bool is_nan,
                                    u32 top_n, Result* result, Top* top) {
    Result refused = {OUT_OF_RANGE, ALL, -INFINITY, 0.0f};
    if (is_nan || most == INFINITY) {
        refused.status = is_nan ? IS_NAN : INFINITE;
        refused.token = first_bad(s, is_nan);
    } else if (most == -INFINITY) {
        refused.status = ALL_MASKED;
    }
    if (threadIdx.x == 0) *result = refused;
    for (u32 i = threadIdx.x; i < top_n; i += DRAW_THREADS) top[i] = {ALL, -INFINITY};
}

extern "C" __global__ void __launch_bounds__(DRAW_THREADS, 2)
    sampling_draw(const void* logits, u32 type, u32 vocab, const Row* rows, const u32* starts,
                  const Edit* edits, const float* edited, u32 chunks, u32 per, u32 top_n,
                  const float* largest, const u8* used, const u32* masses, const u32* moments,
                  const u8* group_bins, Result* results, Top* tops) {
    __shared__ Shared s;
    u32 t = threadIdx.x, chunk_groups = THREADS * per / GROUP;
    u64 number = blockIdx.x, first_chunk = number * chunks;
    masses += first_chunk * 256;
    tops += number * top_n;

    // All that is asked for at once: what the scan left, but for the sums.
    const uint4* from = (const uint4*)(group_bins + first_chunk * chunk_groups);
    uint4 group_bins_here[2];
    u32 quads = chunks * chunk_groups / 16;
    group_bins_here[0] = __ldg(from + min(t, quads - 1));
    group_bins_here[1] = __ldg(from + min(t + DRAW_THREADS, quads - 1));
    uint2 used_here = make_uint2(0, 0);
    float own = -INFINITY;
    if (t < chunks) {
        own = __ldg(largest + first_chunk + t);
        used_here = __ldg((const uint2*)used + first_chunk + t);
    }
    if (t < sizeof(Row) / 4) ((u32*)&s.row)[t] = __ldg((const u32*)(rows + number) + t);

    float most = own;
#pragma unroll
    for (int d = 1; d < 32; d *= 2) most = fmaxf(most, __shfl_xor_sync(ALL, most, d));
    if (lane() == 0) s.warp_max[t / 32] = most;
    if (t < 256) s.counts[t] = 0;
    if (t == 0) s.group_count = s.count = 0;
    ((uint4*)s.group_bins)[t] = group_bins_here[0];
    ((uint4*)s.group_bins)[t + DRAW_THREADS] = group_bins_here[1];
    bool is_nan = __syncthreads_or(own != own);
    most = s.warp_max[0];
#pragma unroll
    for (int w = 1; w < CHUNKS_MAX / 32; w++) most = fmaxf(most, s.warp_max[w]);
    const Row& row = s.row;
    float scaled_max = __fmul_rn(most, row.scale);
    int octave = bin_of(scaled_max) >> 3;
    if (t == 0) {
        u32 start = starts ? starts[number] : 0, end = starts ? starts[number + 1] : 0;
        s.source = {logits, edits,  edited, number * vocab, type,
                    vocab,  start, end,    row.scale,      octave * 8 + 7};
    }
    if (is_nan || !(fabsf(scaled_max) <= SCALED_MAX)) {
        refuse(s, most, is_nan, top_n, results + number, tops);
        return;
    }
    if (t < chunks) {
        int below = octave - (bin_of(__fmul_rn(own, row.scale)) >> 3);
        s.offsets[t] = own == -INFINITY ? 256 : min(below, 32) * 8;
        u32 octaves = 0;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            octaves |= (used_here.x >> (8 * i) & 15) << (4 * i);
            octaves |= (used_here.y >> (8 * i) & 15) << (4 * i + 16);
        }
        s.used[t] = octaves;
    }
    __syncthreads();

    u64 mass = sum_chunks(s, masses, chunks);
    {
        u64 weight = t < BINS ? weigh(t, mass) : 0;
        u64 bounds = (mass / MASS_MIN) << 32 | (mass + MASS_MAX - 1) / MASS_MAX;
#pragma unroll
        for (int d = 1; d < 32; d *= 2) {
            u64 below = __shfl_up_sync(ALL, weight, d), fewer = __shfl_up_sync(ALL, bounds, d);
            if (lane() >= d) weight += below, bounds += fewer;
        }
        u32 warp = t / 32;
        if (lane() == 31 && warp < WARPS) s.sums[warp] = weight, s.more_sums[warp] = bounds;
        __syncthreads();
        if (t < 256) {
            for (u32 w = 0; w < warp; w++) weight += s.sums[w], bounds += s.more_sums[w];
            s.masses[t] = mass;
            s.weights[t] = weight;
            s.at_least[t] = (u32)bounds;
            s.at_most[t] = (u32)(bounds >> 32);
        }
        __syncthreads();
    }
    u64 total = s.weights[BINS - 1];
    // A thread that has little else to do; the next barrier is before it is read.
    if (t == DRAW_THREADS - 1) s.ln_total = ln_weight(total);

    // How far down the list must reach, and whether it can.
    bool by_count = row.top_k <= s.at_most[BINS - 1], by_mass = row.top_p < 1ull << 32;
    Draw draw = {s, masses, chunks, per, 0};
    u32 reach = 0;
    if (by_count || by_mass) {
        reach = by_count ? first_reaching(s.at_least, row.top_k)
                         : first_reaching(s.weights, part_of(total, row.top_p));
        reach = min(reach, BINS - 1);
        if (s.at_most[reach] <= LIST_MAX) draw.listed = reach + 1;
    }
    bool in_list = false;
    if (top_n > 0) {
        u32 bin = min(first_reaching(s.at_least, top_n), BINS - 1);
        in_list = s.at_most[bin] <= LIST_MAX;
        if (in_list) draw.listed = max(draw.listed, bin + 1);
    }
    if (draw.listed > 0) {
        gather(s, chunk_groups, per, type == F32 ? 4 : 8, chunks, draw.listed - 1);
    }

    // The edge. What its cut must reach is `need`; the cut is found when it is wanted.
    Filter filter = {~0ull, -INFINITY};
    u32 edge = BINS - 1;
    u64 need = 0, kept = total;
    bool is_cut = false, counting = false;
    if (by_count) {
        if (reach >= draw.listed) counts_in_row(s);
        u32 bin = first_reaching(s.counts, row.top_k);
        if (bin < BINS) {
            edge = bin;
            need = row.top_k - first_of(s, edge);
            is_cut = counting = true;
        }
    }
    if (by_mass) {
        if (is_cut) {
            filter.last = draw.cut(edge, need, true);
            u64 up_to = edge < draw.listed ? s.total : mass_in_row(s, edge, filter);
            kept = draw.above(edge) + weigh(edge, up_to);
        }
        u64 goal = part_of(kept, row.top_p);
        edge = first_reaching(s.weights, goal);
        need = unweigh(edge, goal - draw.above(edge));
        filter.last = ~0ull;
        is_cut = true;
        counting = false;
    }
    float scaled_min = __fadd_rn(scaled_max, row.min_p);
    u32 min_bin = octave * 8 + 7 - bin_of(scaled_min);
    if (min_bin <= edge) {
        filter.scaled_min = scaled_min;
        if (min_bin < edge) is_cut = false;
        edge = min_bin;
    }

    // The draws: from the whole edge, and if that was in vain too often, from what is kept of it.
    u32 bin;
    u64 order, inside = s.masses[edge];
    Filter drawn_from = {~0ull, -INFINITY};
    for (u32 attempt = 0;; attempt++) {
        order = draw.once(edge, inside, attempt, drawn_from, &bin);
        if (bin < edge || attempt == DRAWS) break;
        bool keeps = scaled_of(order, row.scale) >= filter.scaled_min;
        if (keeps && is_cut && !counting && edge >= draw.listed) {
            Filter before = {order - 1, -INFINITY};
            keeps = mass_in_row(s, edge, before) < need;
        } else if (keeps) {
            if (is_cut) filter.last = draw.cut(edge, need, counting);
            is_cut = false;
            keeps = order <= filter.last;
        }
        if (keeps) break;
        if (attempt == DRAWS - 1) {
            if (is_cut) filter.last = draw.cut(edge, need, counting);
            inside = draw.mass(edge, filter);
            drawn_from = filter;
        }
    }

    float entropy = 0.0f;
    __syncthreads();
    if (top_n > 0) list_top(s, in_list, top_n, octave, tops);
    if (moments) entropy = entropy_of(s, moments + first_chunk * 256, chunks);
    if (t == 0) {
        double p = ln_scaled(scaled_of(order, row.scale), octave);
        p = __dadd_rn(p, -s.ln_total);
        results[number] = {DONE, (u32)order, __double2float_rn(p), entropy};
    }
}
