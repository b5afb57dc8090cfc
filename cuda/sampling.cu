// Drawing tokens from logits. The definition, and why both machines get the same token, is in
// src/post/sampling/mod.rs; src/post/weight.rs holds the arithmetic that is repeated here.
//
//   sampling_edit   one thread an edit: what the edited logit is          (only where there are edits)
//   sampling_scan   one block a chunk: the one read of the logits          grid (chunks, rows)
//   sampling_draw   one block a row: cut, draw, logarithms                 grid (rows)
//
// A chunk is 256 * PER logits, PER being what a thread of the scan holds; a row has at most 32. The
// scan leaves, for each chunk, its largest logit, the sums of masses of the 255 bins from the top
// of that logit's octave down, and for each group of 32 logits the bin of its largest. From the
// sums the draw knows at which bin a rule cuts; from the groups' bins where the few logits above it
// are. Only those are read again: the groups that hold a narrow nucleus, or the one chunk that a
// wide one is drawn from. Where a draw lands in the edge of a wide one, the row is passed over once
// to see whether the token is kept; only what is wide and cut by number, or was drawn in vain 4
// times, takes more passes, at most 30.
//
// Such a pass is the draw's worst case: few rows of a batch need one, each reads a megabyte, and
// one block alone reads at a hundredth of the card's rate while the others have long ended. So
// blocks whose own edge is wide stay when they are done, as a crew: a pass is put up in a list
// (`Passes`), its tiles are handed out one by one, and whoever is free sums some. On an H100 the
// batch then takes 119 instead of 154 us for 256 rows of 256,000 flat logits and top-p 0.9, 72
// instead of 85 us for 128,256; where no row needs a pass it costs up to 0.6 us. Rows of up to
// ALONE_MAX logits, and one that is alone, are passed over by their block. Sums are of integers: in
// which order makes no difference.
//
// No block can wait for ever, and no order in which blocks start is relied on. Whoever put a pass
// up takes tiles until there are none, then waits for those that others took; they took them while
// they ran, and wait for nobody before they are added. A block that looks for work owes none: it
// leaves when no row will need a pass, at once if a block of a row has yet to start (which may want
// its place), and after LOOKS_MAX looks in any case. A pass that finds the list full is done alone.
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
#define CHUNKS_MAX 32
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

// 16 bytes: 4 logits or 8. What is loaded ONCE is the first to leave the second cache, where it
// would be in the way of what is written to be read soon: 4 of 112 us at 256 x 256,000.
template <int T, bool ONCE>
__device__ __forceinline__ void load_vector(const void* logits, u64 at, float* into) {
    if (T == F32) {
        const float4* from = (const float4*)((const float*)logits + at);
        float4 v = ONCE ? __ldcs(from) : __ldg(from);
        into[0] = v.x, into[1] = v.y, into[2] = v.z, into[3] = v.w;
    } else {
        const uint4* from = (const uint4*)((const u16*)logits + at);
        uint4 v = ONCE ? __ldcs(from) : __ldg(from);
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

// ---- Passes over a row ----

// Logits of a thread in a tile of a pass: with 32, fewer blocks find one (4 us more at 128,256);
// with 8 nothing is gained.
#define TILE 16
// Times that a block looks for work before it no longer believes in it: some 10 ms.
#define LOOKS_MAX 20000
// Passes that blocks share; further ones a block does alone.
#define PASSES_MAX 128
// Logits of a row that one block passes over as fast as a crew gathers: on an H100 256 rows of 32,000
// flat logits take 35 us with top-p 0.9, and 38 with a crew.
#define ALONE_MAX 65536

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

// A pass over a row that any block may work on.
struct Pass {
    Filter filter;
    u64 sum;
    u32 bin, row;
    int top;
    u32 next, done;  // tiles that were handed out, and that are in the sum
    u32 is_open;
};

// Of one launch; the scan empties it.
struct Passes {
    u32 count;             // passes of the list, and those that found it full
    u32 started, settled;  // rows that are at work, and that will hardly need a pass any more
    u32 unused;
    Pass list[PASSES_MAX];
};
static_assert(sizeof(Passes) == 6160, "src/cuda/sampling.rs takes the memory");

__device__ __forceinline__ bool has_crew(u32 vocab) { return gridDim.x > 1 && vocab > ALONE_MAX; }

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
                                           u32* masses, u32* moments, u8* group_bins,
                                           Passes* passes) {
    const int W = T == F32 ? 4 : 8, L = PER / W, LANES = GROUP / PER;
    __shared__ uint4 bins[256], bin_moments[256];
    __shared__ float warp_max[WARPS];
    u32 t = threadIdx.x, begin = blockIdx.x * (THREADS * PER);
    u64 row = (u64)blockIdx.y * vocab, chunk = (u64)blockIdx.y * gridDim.x + blockIdx.x;

    // No draw runs beside a scan.
    if (chunk == 0 && t < PASSES_MAX) {
        if (t == 0) passes->count = passes->started = passes->settled = 0;
        passes->list[t].is_open = 0;
    }

    float x[PER];
    if (vocab % W == 0) {
#pragma unroll
        for (int i = 0; i < L; i++) {
            u32 at = begin + i * (THREADS * W) + t * W;
            if (at < vocab) {
                load_vector<T, true>(logits, row + at, x + i * W);
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
    SCAN(NAME, T, 16, 5)                                                                           \
    SCAN(NAME, T, 32, 4)
// BLOCKS to a multiprocessor, by the registers that it leaves to each: one more at once makes all of
// them slower, by up to 2 %.
#define SCAN(NAME, T, PER, BLOCKS)                                                                 \
    extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) sampling_scan_##NAME##_##PER(    \
        const void* logits, u32 vocab, const Row* rows, const u32* starts, const Edit* edits,      \
        const float* edited, float* largest, u8* used, u32* masses, u32* moments,                  \
        u8* group_bins, Passes* passes) {                                                          \
        scan_chunk<T, PER>(logits, vocab, rows, starts, edits, edited, largest, used, masses,      \
                           moments, group_bins, passes);                                           \
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

    // N times 4 logits before they are edited, `stride` apart; what is past the vocabulary is -inf.
    // No load waits for another, nor for a branch: places past the end are read at the end, and
    // then replaced.
    template <int N>
    __device__ __forceinline__ void load_unedited(u32 first, u32 stride, float (*x)[4]) const {
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
                load_vector<F32, false>(logits, row + min(first + i * stride, vocab - 4), x[i]);
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
    }

    // The same, edited.
    template <int N>
    __device__ __forceinline__ void load_tiles(u32 first, u32 stride, float (*x)[4]) const {
        load_unedited<N>(first, stride, x);
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

__device__ __forceinline__ u32 tiles_of(u32 vocab) {
    return (vocab + DRAW_THREADS * TILE - 1) / (DRAW_THREADS * TILE);
}

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
    // Bins from the row's top to each chunk's, and a bit for each octave of it that was written.
    uint2 windows[CHUNKS_MAX];
    float most;
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

// Whether a chunk's sums of the octave of this bin, counted from the chunk's top, were written.
// Bins above the top are far below when counted so.
__device__ __forceinline__ bool is_written(u32 octaves, u32 below) {
    return below < 256 && octaves >> (below / 8) & 1;
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

// What of a row is summed: the masses of a bin's logits that a filter keeps.
struct Wanted {
    Filter filter;
    u32 bits;                        // of the bin's y and ROUND
    float least, middle, scaled_min;  // of logits in the bin: all above `least`, some that equal it

    __device__ __forceinline__ Wanted(int top, u32 bin, Filter of) : filter(of) {
        bits = (u32)(top + __float_as_int(ROUND)) - bin;  // as in `bin_below`
        middle = __fadd_rn(__uint_as_float(bits), -ROUND);
        least = of.last == ~0ull ? -INFINITY : logit_of(~(u32)(of.last >> 32));
        scaled_min = of.scaled_min;
    }

    // The mass of a logit that is kept, else 0.
    __device__ __forceinline__ u32 mass(float x, u32 index, float scale) const {
        float y = __fmul_rn(x, scale);
        bool in = __float_as_uint(__fadd_rn(y, ROUND)) == bits;
        return in && filter.keeps(order_of(x, index), scale) ? mass_of(y) : 0;
    }

    // The sum of `COUNT` of this thread's logits from `begin`, without what was edited. Almost all
    // are told by their value alone, and no branch depends on one.
    template <int COUNT>
    __device__ __forceinline__ u32 sum(const Source& source, u32 begin, float (*x)[4]) const {
        u32 sum = 0;
        bool ties = false;
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            float logit = x[i / 4][i % 4], y = __fmul_rn(logit, source.scale);
            bool in = __float_as_uint(__fadd_rn(y, ROUND)) == bits;
            bool kept = in && logit > least && y >= scaled_min;
            ties |= logit == least;
            u32 mass = fixed(power_of(__fadd_rn(y, -middle)));
            sum += kept ? mass : 0;
        }
        if (ties) {
#pragma unroll 1
            for (u32 i = 0; i < COUNT; i++) {
                u32 index = begin + i / 4 * (4 * DRAW_THREADS) + i % 4;
                if (index >= source.vocab) break;
                float logit = source.widen(source.bits(index));
                if (logit == least) sum += mass(logit, index, source.scale);
            }
        }
        return sum;
    }

    __device__ __forceinline__ u32 tile(const Source& source, u32 begin) const {
        float x[TILE / 4][4];
        source.load_unedited<TILE / 4>(begin, 4 * DRAW_THREADS, x);
        return sum<TILE>(source, begin, x);
    }

    // The sum of this thread's part of the whole row.
    __device__ __forceinline__ u64 row(const Source& source) const {
        u64 all = 0;
#pragma unroll 1
        for (u32 begin = 0; begin < source.vocab; begin += DRAW_THREADS * TILE) {
            all += tile(source, begin + threadIdx.x * 4);
        }
        return all;
    }
};

// Sums tiles of a pass as long as there are any.
__device__ __noinline__ void take_tiles(Shared& s, Pass& pass, const Source source,
                                        const Wanted wanted) {
    u32 t = threadIdx.x, tiles = tiles_of(source.vocab), taken = 0;
    u64 sum = 0;
    __syncthreads();
    if (t == 0) s.found = atomicAdd(&pass.next, 1);
    __syncthreads();
    while (s.found < tiles) {
        u32 tile = s.found, next = 0;
        if (t == 0) next = atomicAdd(&pass.next, 1);
        sum += wanted.tile(source, (tile * DRAW_THREADS * (TILE / 4) + t) * 4);
        taken++;
        __syncthreads();
        if (t == 0) s.found = next;
        __syncthreads();
    }
    sum = sum_all(s, sum);
    if (t == 0 && taken > 0) {
        atomicAdd(&pass.sum, sum);
        __threadfence();
        atomicAdd(&pass.done, taken);
    }
}

// The mass that a filter keeps of a bin, from the whole row. Blocks that are done with their rows
// help with it: the tiles of the row are handed out one by one.
__device__ __noinline__ u64 mass_in_row(Shared& s, u32 bin, Filter filter, Passes* passes) {
    const Source source = s.source;
    const Wanted wanted(source.top, bin, filter);
    u32 t = threadIdx.x, tiles = tiles_of(source.vocab);
    __syncthreads();
    if (t == 0) {
        u32 slot = has_crew(source.vocab) ? atomicAdd(&passes->count, 1) : PASSES_MAX;
        if (slot < PASSES_MAX) {
            Pass& pass = passes->list[slot];
            pass.filter = filter;
            pass.bin = bin;
            pass.row = blockIdx.x;
            pass.top = source.top;
            pass.next = pass.done = 0;
            pass.sum = 0;
            __threadfence();
            atomicExch(&pass.is_open, 1);
        }
        s.found = slot;
    }
    u64 sum = 0;
    // Edits, since tiles are summed without: each takes its logit out and puts its own in.
    for (u32 e = source.start + t; e < source.end; e += DRAW_THREADS) {
        u32 index = source.edits[e].token;
        sum += wanted.mass(source.edited[e], index, source.scale);
        sum -= wanted.mass(source.widen(source.bits(index)), index, source.scale);
    }
    __syncthreads();
    u32 slot = s.found;
    if (slot >= PASSES_MAX) return sum_all(s, sum + wanted.row(source));
    take_tiles(s, passes->list[slot], source, wanted);
    if (t == 0) {
        while (*(volatile u32*)&passes->list[slot].done < tiles) {
        }
        __threadfence();
        s.found_sum = *(volatile u64*)&passes->list[slot].sum;
    }
    sum = sum_all(s, sum);
    return sum + s.found_sum;
}

// Works on the passes of other blocks as long as there may be any: while a row is not settled, and
// only if all have begun, so that none of them waits for this block's place. What is in `s` but the
// source is of no more use.
__device__ __noinline__ void help(Shared& s, const Row* rows, Passes* passes) {
    u32 t = threadIdx.x, tiles = tiles_of(s.source.vocab);
    __syncthreads();
    for (u32 looks = 0; looks < LOOKS_MAX; looks++) {
        // The first warp looks for passes with tiles left, and takes one of them.
        if (t < 32) {
            const volatile Passes* there = passes;
            u32 settled = there->settled, started = there->started;
            __threadfence();
            u32 passes_here = min(there->count, (u32)PASSES_MAX), found = ALL;
            for (u32 first = 0; first < passes_here && found == ALL; first += 32) {
                u32 i = first + t;
                bool has_work =
                    i < passes_here && there->list[i].is_open && there->list[i].next < tiles;
                u32 which = __ballot_sync(ALL, has_work);
                if (which) {
                    for (u32 n = blockIdx.x % __popc(which); n > 0; n--) which &= which - 1;
                    found = first + __ffs(which) - 1;
                }
            }
            bool waits = started >= gridDim.x && settled < gridDim.x;
            if (t == 0) s.parts[0] = found, s.parts[1] = waits;
        }
        __syncthreads();
        u32 found = s.parts[0], waits = s.parts[1];
        __syncthreads();
        if (found == ALL) {
            if (!waits) return;
            continue;
        }
        __threadfence();
        Pass& pass = passes->list[found];
        const volatile Pass& there = pass;
        Filter filter;
        filter.last = there.filter.last;
        filter.scaled_min = there.filter.scaled_min;
        u32 row = there.row;
        Source source = s.source;
        source.row = (u64)row * source.vocab;
        source.scale = __ldg(&rows[row].scale);
        source.top = there.top;
        take_tiles(s, pass, source, Wanted(source.top, there.bin, filter));
    }
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

// As `pick_in_row`, in the one chunk that has it, of TILES times 1,024 logits, without a filter,
// and in order's numbers. Parts are of the 128 logits that a warp has in a row.
template <int TILES>
__device__ __noinline__ u64 pick_in_chunk(Shared& s, u32 begin, u32 bin, u32 rest) {
    const Source source = s.source;
    u32 t = threadIdx.x, warp = t / 32, sums[TILES];
    float x[TILES][4];
    source.load_tiles<TILES>(begin + t * 4, 4 * DRAW_THREADS, x);
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) {
        sums[tile] = 0;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float y = __fmul_rn(x[tile][i], source.scale);
            if (bin_below(source.top, y) == bin) sums[tile] += mass_of(y);
        }
    }
#pragma unroll
    for (int d = 16; d > 0; d /= 2) {
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
            sums[tile] += __shfl_down_sync(ALL, sums[tile], d);
        }
    }
    if (lane() == 0) {
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) s.parts[tile * DRAW_WARPS + warp] = sums[tile];
    }
    __syncthreads();
    // Every warp finds out which part has it.
    bool has = lane() < TILES * DRAW_WARPS / 2;
    u32 first = has ? s.parts[2 * lane()] : 0, both = has ? first + s.parts[2 * lane() + 1] : 0;
    u32 running = both;
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
        u32 below = __shfl_up_sync(ALL, running, d);
        if (lane() >= d) running += below;
    }
    u32 before = running - both;
    u32 finder = __ffs(__ballot_sync(ALL, rest < running && rest >= before)) - 1;
    bool is_second = rest >= before + first;
    u32 part = __shfl_sync(ALL, 2 * lane() + is_second, finder);
    rest -= __shfl_sync(ALL, before + (is_second ? first : 0), finder);
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
            if (rest >= before && rest < before + masses[i]) {
                s.found_sum = order_of(four[0][i], index + i);
            }
            before += masses[i];
        }
    }
    __syncthreads();
    return s.found_sum;
}

// Makes the list of the logits in the bins from the top to `last`, from the groups that have any.
// Lane e of a warp takes logit e of a group, of which the scan's threads had `run` in a row.
__device__ __forceinline__ void gather(Shared& s, u32 chunk_groups, u32 per, u32 vector,
                                       u32 chunks, u32 last) {
    const Source source = s.source;
    u32 t = threadIdx.x, words = chunks * chunk_groups / 4;
    for (u32 word = t; word < words; word += DRAW_THREADS) {
        u32 four = ((const u32*)s.group_bins)[word];
        u32 offset = s.windows[word * 4 / chunk_groups].x;
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
    Passes* passes;
    u64 a, b;  // the random numbers of attempt 0
    bool is_settled;

    // Tells the crew, if there is one, that there is nothing to wait for here.
    __device__ __forceinline__ void settle() {
        if (!is_settled && threadIdx.x == 0) atomicAdd(&passes->settled, 1);
        is_settled = true;
    }

    __device__ __forceinline__ u64 above(u32 bin) const { return bin > 0 ? s.weights[bin - 1] : 0; }

    __device__ __forceinline__ u32 mass_of_chunk(u32 chunk, u32 bin) const {
        uint2 window = s.windows[chunk];
        u32 below = bin - window.x;
        return is_written(window.y, below) ? __ldg(masses + chunk * 256 + below) : 0;
    }

    // The logit of `bin` at which the kept masses pass `rest`, in order's numbers.
    __device__ __forceinline__ u64 pick(u32 bin, u64 rest, bool whole, Filter filter) {
        if (bin < listed) return pick_in_list(s, bin, rest, filter);
        u32 t = threadIdx.x;
        if (whole) {
            u32 own = t < chunks ? mass_of_chunk(t, bin) : 0;
            u64 running = scan_all(s, own);
            if (rest < running && rest >= running - own) {
                s.found = t;
                s.found_sum = rest - (running - own);
            }
            __syncthreads();
            u32 begin = s.found * (THREADS * per), inside = (u32)s.found_sum;
            __syncthreads();
            if (per == 16) return pick_in_chunk<4>(s, begin, bin, inside);
            return pick_in_chunk<8>(s, begin, bin, inside);
        }
        u32 index = pick_in_row(s, bin, rest, filter);
        return order_of(s.source.load(index), index);
    }

    // Draws from the bins above the edge, and of the edge from what the filter keeps.
    __device__ __forceinline__ u64 once(u32 edge, u64 mass, u32 attempt, Filter filter, u32* bin) {
        if (attempt > 0) philox(s.row, attempt, &a, &b);
        u64 point = __umul64hi(a, above(edge) + weigh(edge, mass));
        *bin = min(first_reaching(s.weights, point + 1), edge);
        bool is_edge = *bin == edge;
        if (!is_edge) settle();
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
        return mass_in_row(s, bin, filter, passes);
    }
};

// Sum of this thread's bin of a row from those of its chunks, all seen from the row's top. Calls
// `meanwhile` while the first of them are on their way.
template <typename F>
__device__ __forceinline__ u64 sum_chunks(const Shared& s, const u32* sums, u32 chunks,
                                          F meanwhile) {
    const u32 AT_ONCE = 16;
    u64 sum = 0;
    for (u32 first = 0; first < chunks; first += AT_ONCE) {
        u32 values[AT_ONCE], has = 0;
        // As in `load_unedited`: what is not there is read elsewhere.
#pragma unroll
        for (u32 i = 0; i < AT_ONCE; i++) {
            u32 c = min(first + i, chunks - 1);
            uint2 window = s.windows[c];
            u32 below = threadIdx.x - window.x;
            bool here = is_written(window.y, below) && first + i < chunks;
            values[i] = __ldg(sums + (here ? c * 256 + below : 0));
            has |= (u32)here << i;
        }
        if (first == 0) meanwhile();
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
    u64 sum = sum_chunks(s, moments, chunks, [] {});
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
                  const u8* group_bins, Result* results, Top* tops, Passes* passes) {
    __shared__ Shared s;
    bool helps = has_crew(vocab);
    if (helps && threadIdx.x == 0) atomicAdd(&passes->started, 1);
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
    if (t == 0) s.most = most;
    if (t < 256) s.counts[t] = 0;
    if (t == 0) s.group_count = s.count = 0;
    ((uint4*)s.group_bins)[t] = group_bins_here[0];
    ((uint4*)s.group_bins)[t + DRAW_THREADS] = group_bins_here[1];
    bool is_nan = __syncthreads_or(own != own);
    most = s.most;
    const Row& row = s.row;
    float scaled_max = __fmul_rn(most, row.scale);
    int octave = bin_of(scaled_max) >> 3;
    if (t == 0) {
        u32 start = starts ? starts[number] : 0, end = starts ? starts[number + 1] : 0;
        s.source = {logits, edits,  edited, number * vocab, type,
                    vocab,  start, end,    row.scale,      octave * 8 + 7};
    }
    if (is_nan || !(fabsf(scaled_max) <= SCALED_MAX)) {
        if (helps && t == 0) atomicAdd(&passes->settled, 1);
        refuse(s, most, is_nan, top_n, results + number, tops);
        return;
    }
    if (t < chunks) {
        int below = octave - (bin_of(__fmul_rn(own, row.scale)) >> 3);
        u32 octaves = 0;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            octaves |= (used_here.x >> (8 * i) & 15) << (4 * i);
            octaves |= (used_here.y >> (8 * i) & 15) << (4 * i + 16);
        }
        s.windows[t] = own == -INFINITY ? make_uint2(256, 0)
                                        : make_uint2(min(below, 32) * 8, octaves);
    }
    __syncthreads();

    Draw draw = {s, masses, chunks, per, 0, passes, 0, 0, !helps};
    u64 mass = sum_chunks(s, masses, chunks, [&] { philox(s.row, 0, &draw.a, &draw.b); });
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
            u64 up_to = edge < draw.listed ? s.total : mass_in_row(s, edge, filter, passes);
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

    bool is_mass_wide = by_mass && edge >= draw.listed;
    if (!is_mass_wide) draw.settle();
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
            keeps = mass_in_row(s, edge, before, passes) < need;
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

    draw.settle();
    float entropy = 0.0f;
    __syncthreads();
    if (top_n > 0) list_top(s, in_list, top_n, octave, tops);
    if (moments) entropy = entropy_of(s, moments + first_chunk * 256, chunks);
    if (t == 0) {
        double p = ln_scaled(scaled_of(order, row.scale), octave);
        p = __dadd_rn(p, -s.ln_total);
        results[number] = {DONE, (u32)order, __double2float_rn(p), entropy};
    }
    // The edge is wide, as others' may be, which draw from theirs.
    if (helps && is_mass_wide) help(s, rows, passes);
}
