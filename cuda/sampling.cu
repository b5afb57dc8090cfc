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
// drawn from. Where the edge of a wide one must be looked into, the draw passes over the whole row,
// at most 18 times.
//
// Bounds: vocab <= 2^18, 256 threads a block, 31 KiB of shared memory. Nothing here needs more than
// sm_50 and PTX 6.4: what is called between threads of a warp is of the _sync kind.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

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

__device__ __forceinline__ int bin_of(float y) {
    return __float_as_int(__fadd_rn(fmaxf(y, SCALED_MIN), ROUND)) - __float_as_int(ROUND);
}

__device__ __forceinline__ float place_in_bin(float y) {
    y = fmaxf(y, SCALED_MIN);
    return __fadd_rn(y, -__fadd_rn(__fadd_rn(y, ROUND), -ROUND));
}

__device__ __forceinline__ float power_of(float f) {
    float p = __fadd_rn(__fmul_rn(f, 0.000108406464f), 0.0037535392f);
    p = __fadd_rn(__fmul_rn(f, p), 0.0866434f);
    return __fadd_rn(__fmul_rn(f, p), 1.0f);
}

__device__ __forceinline__ u32 fixed(float v) {
    return __float_as_uint(__fadd_rn(64.0f, v)) - __float_as_uint(64.0f);
}

__device__ __forceinline__ u32 mass_of(float y) { return fixed(power_of(place_in_bin(y))); }

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

__device__ void philox(const Row& row, u32 attempt, u64* a, u64* b) {
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

// Sum of `value` over the threads up to and with this one. `scratch` has room for 8; the caller
// syncs before it is used again.
template <typename V>
__device__ __forceinline__ V scan(V value, V* scratch) {
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
        V below = __shfl_up_sync(ALL, value, d);
        if (lane() >= d) value += below;
    }
    u32 warp = threadIdx.x / 32;
    if (lane() == 31) scratch[warp] = value;
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
    u32 copy = threadIdx.x & 3;
#pragma unroll
    for (int i = 0; i < PER; i++) {
        float y = __fmul_rn(x[i], scale);
        u32 t = (u32)(top - bin_of(y));
        float f = place_in_bin(y), power = power_of(f);
        if (t < BINS) {
            atomicAdd(&masses[t * 4 + copy], fixed(power));
            if (MOMENTS) {
                atomicAdd(&moments[t * 4 + copy], fixed(__fmul_rn(power, __fadd_rn(f, 0.5f))));
            }
        }
    }
}

template <int T, int PER>
__device__ __forceinline__ void scan_chunk(const void* logits, u32 vocab, const Row* rows,
                                           const u32* starts, const Edit* edits,
                                           const float* edited, float* largest, u32* masses,
                                           u32* moments, u8* group_bins) {
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
    uint4 sum = bins[t];
    masses[chunk * 256 + t] = sum.x + sum.y + sum.z + sum.w;
    if (moments) {
        sum = bin_moments[t];
        moments[chunk * 256 + t] = sum.x + sum.y + sum.z + sum.w;
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
    extern "C" __global__ void __launch_bounds__(THREADS) sampling_scan_##NAME##_##PER(            \
        const void* logits, u32 vocab, const Row* rows, const u32* starts, const Edit* edits,      \
        const float* edited, float* largest, u32* masses, u32* moments, u8* group_bins) {          \
        scan_chunk<T, PER>(logits, vocab, rows, starts, edits, edited, largest, masses, moments,   \
                           group_bins);                                                            \
    }
KERNELS(f32, F32)
KERNELS(f16, F16)
KERNELS(bf16, BF16)

// ---- The draw ----

// Where a row's logits are.
struct Source {
    const void* logits;
    const Edit* edits;
    const float* edited;
    u64 row;
    u32 type, vocab, start, end;
    float scale;
    int top;

    __device__ __forceinline__ float raw(u32 index) const {
        return type == F32   ? load_one<F32>(logits, row + index)
               : type == F16 ? load_one<F16>(logits, row + index)
                             : load_one<BF16>(logits, row + index);
    }

    __device__ float edit(u32 index, float x) const {
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
        float x = raw(index);
        return start < end ? edit(index, x) : x;
    }

    __device__ __forceinline__ float scaled(u32 index) const {
        return __fmul_rn(load(index), scale);
    }

    __device__ __forceinline__ u32 bin(float y) const { return (u32)(top - bin_of(y)); }
};

// The order as numbers: least first.
__device__ __forceinline__ u64 order_of(float x, u32 index) {
    return (u64)~key_of(x) << 32 | index;
}

__device__ __forceinline__ float order_scaled(u64 order, float scale) {
    return __fmul_rn(logit_of(~(u32)(order >> 32)), scale);
}

// What is kept of the edge's bin.
struct Filter {
    u64 last;  // in order, up to and with this
    float scaled_min;

    __device__ __forceinline__ bool keeps(u64 order, float y) const {
        return order <= last && y >= scaled_min;
    }
};

struct Shared {
    u64 weights[256];  // of all bins from the top to this
    u64 masses[256];   // of this bin
    u32 at_least[256], at_most[256];  // logits in all bins from the top to this
    u64 sums[WARPS];
    u32 counts[WARPS];
    u64 order[LIST_MAX];
    u32 mass[LIST_MAX];
    u8 bin[LIST_MAX];
    u16 groups[LIST_MAX];
    u8 group_bins[GROUPS_MAX];
    u16 offsets[CHUNKS_MAX];
    float warp_max[WARPS];
    u32 group_count, count, found;
    u64 found_sum, total;
};

// First place where the running sums reach `goal`; BINS where none does. Every thread gets it.
template <typename V>
__device__ __forceinline__ u32 first_reaching(Shared& s, const V* running, V goal) {
    u32 t = threadIdx.x;
    __syncthreads();
    if (t == 0) s.found = BINS;
    __syncthreads();
    if (t < BINS && running[t] >= goal && (t == 0 || running[t - 1] < goal)) s.found = t;
    __syncthreads();
    return s.found;
}

// Sum over the block; every thread gets it.
__device__ __forceinline__ u64 sum_all(Shared& s, u64 value) {
    __syncthreads();
    u64 running = scan(value, s.sums);
    if (threadIdx.x == THREADS - 1) s.total = running;
    __syncthreads();
    return s.total;
}

// The last of the shortest prefix of a bin's order whose masses (or, with `counting`, whose number)
// reach `need`, from the whole row: eight bits of the order at a time.
__device__ __noinline__ u64 cut_in_row(Shared& s, const Source& source, u64* digits, u32 bin,
                                       u64 need, bool counting) {
    u32 t = threadIdx.x;
    u64 prefix = 0;
    for (int shift = 56; shift >= 0; shift -= 8) {
        if (shift == 24) continue;  // indices have 18 bits
        __syncthreads();
        digits[t] = 0;
        __syncthreads();
        for (u32 index = t; index < source.vocab; index += THREADS) {
            float x = source.load(index), y = __fmul_rn(x, source.scale);
            u64 order = order_of(x, index);
            if (source.bin(y) == bin && (shift == 56 || order >> (shift + 8) == prefix >> (shift + 8))) {
                atomicAdd(&digits[order >> shift & 255], counting ? 1ull : (u64)mass_of(y));
            }
        }
        __syncthreads();
        u64 own = digits[t], running = scan(own, s.sums);
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

// The mass that a filter keeps of a bin, from the whole row.
__device__ __noinline__ u64 mass_in_row(Shared& s, const Source& source, u32 bin, Filter filter) {
    u64 sum = 0;
    for (u32 index = threadIdx.x; index < source.vocab; index += THREADS) {
        float x = source.load(index), y = __fmul_rn(x, source.scale);
        if (source.bin(y) == bin && filter.keeps(order_of(x, index), y)) sum += mass_of(y);
    }
    return sum_all(s, sum);
}

// How many logits of the row are in each bin from the top to this thread's.
__device__ __noinline__ u32 counts_in_row(Shared& s, const Source& source, u32* counts) {
    u32 t = threadIdx.x;
    __syncthreads();
    counts[t] = 0;
    __syncthreads();
    for (u32 index = t; index < source.vocab; index += THREADS) {
        u32 bin = source.bin(source.scaled(index));
        if (bin < BINS) atomicAdd(&counts[bin], 1);
    }
    __syncthreads();
    u32 running = scan(counts[t], s.counts);
    __syncthreads();
    counts[t] = running;
    __syncthreads();
    return running;
}

// In index order, the element of `bin` at which the kept masses pass `rest`: from the chunks on
// `chunk`, in steps of 1,024 logits, each thread with 4 of them.
__device__ __noinline__ u32 pick_in_row(Shared& s, const Source& source, u32 begin, u32 bin,
                                        u64 rest, Filter filter) {
    u32 t = threadIdx.x;
    for (; begin < source.vocab; begin += 4 * THREADS) {
        u32 masses[4];
        u64 own = 0;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            u32 index = begin + t * 4 + i;
            masses[i] = 0;
            if (index < source.vocab) {
                float x = source.load(index), y = __fmul_rn(x, source.scale);
                bool in = source.bin(y) == bin && filter.keeps(order_of(x, index), y);
                masses[i] = in ? mass_of(y) : 0;
            }
            own += masses[i];
        }
        __syncthreads();
        if (t == 0) s.found = ALL;
        u64 running = scan(own, s.sums);
        if (rest < running && rest >= running - own) {
            u64 before = running - own;
#pragma unroll
            for (int i = 0; i < 4; i++) {
                if (rest >= before && rest < before + masses[i]) s.found = begin + t * 4 + i;
                before += masses[i];
            }
        }
        if (t == THREADS - 1) s.total = running;
        __syncthreads();
        if (s.found != ALL) return s.found;
        rest -= s.total;
    }
    return 0;
}

// 4 logits from `index` on; what is past the vocabulary is -inf.
__device__ __forceinline__ void load_four(const Source& source, u32 index, float* into) {
    if (source.vocab % 4 == 0 && index < source.vocab) {
        if (source.type == F32) {
            load_vector<F32>(source.logits, source.row + index, into);
        } else {
            uint2 v = __ldg((const uint2*)((const u16*)source.logits + source.row + index));
            const u32 words[2] = {v.x, v.y};
#pragma unroll
            for (int i = 0; i < 4; i++) {
                u32 half = words[i / 2] >> (i % 2 * 16) & 0xffff;
                into[i] = source.type == F16 ? widen_f16(half) : __uint_as_float(half << 16);
            }
        }
    } else {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            into[i] = index + i < source.vocab ? source.raw(index + i) : -INFINITY;
        }
    }
    if (source.start < source.end) {
#pragma unroll
        for (int i = 0; i < 4; i++) into[i] = source.edit(index + i, into[i]);
    }
}

// As `pick_in_row`, in the one chunk that has it, without a filter. All its logits are asked for
// before any is used.
__device__ __noinline__ u32 pick_in_chunk(Shared& s, const Source& source, u32 begin, u32 tiles,
                                          u32 bin, u32 rest) {
    __shared__ u32 parts[64];
    u32 t = threadIdx.x, warp = t / 32;
    float x[8][4];
#pragma unroll
    for (u32 tile = 0; tile < 8; tile++) {
        if (tile < tiles) load_four(source, begin + tile * (4 * THREADS) + t * 4, x[tile]);
    }
    if (t < 64) parts[t] = 0;
    __syncthreads();
#pragma unroll
    for (u32 tile = 0; tile < 8; tile++) {
        if (tile >= tiles) break;
        u32 sum = 0;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float y = __fmul_rn(x[tile][i], source.scale);
            if (source.bin(y) == bin) sum += mass_of(y);
        }
#pragma unroll
        for (int d = 16; d > 0; d /= 2) sum += __shfl_down_sync(ALL, sum, d);
        if (lane() == 0) parts[tile * WARPS + warp] = sum;
    }
    __syncthreads();
    u32 own = t < 64 ? parts[t] : 0, running = scan(own, s.counts);
    if (rest < running && rest >= running - own) {
        s.found = t;
        s.total = rest - (running - own);
    }
    __syncthreads();
    u32 part = s.found;
    rest = s.total;
    __syncthreads();
    if (warp == part % WARPS) {
        u32 first = begin + part / WARPS * (4 * THREADS) + t * 4, sum = 0, masses[4];
        float four[4];
        load_four(source, first, four);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float y = __fmul_rn(four[i], source.scale);
            masses[i] = source.bin(y) == bin ? mass_of(y) : 0;
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
            if (rest >= before && rest < before + masses[i]) s.found = first + i;
            before += masses[i];
        }
    }
    __syncthreads();
    return s.found;
}

// Adds the logits of the chosen groups that are in the bins from the top to `last` to the list.
// Lane e of a warp takes logit e of a group: a thread of the scan had `run` of them in a row.
__device__ __forceinline__ void gather(Shared& s, const Source& source, u32 chunk_groups, u32 per,
                                       u32 vector, u32 chunks, u32 last) {
    u32 t = threadIdx.x, words = chunks * chunk_groups / 4;
    if (t == 0) s.group_count = s.count = 0;
    __syncthreads();
    for (u32 word = t; word < words; word += THREADS) {
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
#pragma unroll 4
    for (u32 g = t / 32; g < groups; g += WARPS) {
        u32 group = s.groups[g];
        u32 chunk = group / chunk_groups, member = group % chunk_groups;
        u32 index = chunk * (THREADS * per) + member * run + inside;
        if (index < source.vocab) {
            float x = source.load(index), y = __fmul_rn(x, source.scale);
            u32 bin = source.bin(y);
            if (bin <= last) {
                u32 at = atomicAdd(&s.count, 1);
                if (at < LIST_MAX) {
                    s.order[at] = order_of(x, index);
                    s.mass[at] = mass_of(y);
                    s.bin[at] = bin;
                }
            }
        }
    }
    __syncthreads();
}

// As `cut_in_row`, from the list.
__device__ __forceinline__ u64 cut_in_list(Shared& s, u32 bin, u64 need, bool counting) {
    __syncthreads();
    for (u32 e = threadIdx.x; e < s.count; e += THREADS) {
        if (s.bin[e] != bin) continue;
        u64 order = s.order[e], before = 0;
        for (u32 i = 0; i < s.count; i++) {
            if (s.bin[i] == bin && s.order[i] < order) before += counting ? 1 : s.mass[i];
        }
        u64 own = counting ? 1 : s.mass[e];
        if (before < need && need <= before + own) s.found_sum = order;
    }
    __syncthreads();
    return s.found_sum;
}

__device__ __forceinline__ u64 mass_in_list(Shared& s, u32 bin, Filter filter, float scale) {
    u64 sum = 0;
    for (u32 e = threadIdx.x; e < s.count; e += THREADS) {
        u64 order = s.order[e];
        if (s.bin[e] == bin && filter.keeps(order, order_scaled(order, scale))) sum += s.mass[e];
    }
    return sum_all(s, sum);
}

__device__ __forceinline__ u64 pick_in_list(Shared& s, u32 bin, u64 rest, Filter filter,
                                            float scale) {
    __syncthreads();
    for (u32 e = threadIdx.x; e < s.count; e += THREADS) {
        u64 order = s.order[e], before = 0;
        if (s.bin[e] != bin || !filter.keeps(order, order_scaled(order, scale))) continue;
        for (u32 i = 0; i < s.count; i++) {
            u64 other = s.order[i];
            bool counts = s.bin[i] == bin && (u32)other < (u32)order &&
                          filter.keeps(other, order_scaled(other, scale));
            before += counts ? s.mass[i] : 0;
        }
        if (before <= rest && rest < before + s.mass[e]) s.found_sum = order;
    }
    __syncthreads();
    return s.found_sum;
}

// The lowest index whose logit cannot be: not a number, or +inf.
__device__ __noinline__ u32 first_bad(Shared& s, const Source& source, bool nan) {
    if (threadIdx.x == 0) s.found = ALL;
    __syncthreads();
    for (u32 index = threadIdx.x; index < source.vocab; index += THREADS) {
        float x = source.load(index);
        if (nan ? x != x : x == INFINITY) atomicMin(&s.found, index);
    }
    __syncthreads();
    return s.found;
}

// A row on its way through the draw.
struct Draw {
    Shared& s;
    const Source& source;
    const Row& row;
    const u32* masses;  // of the row's chunks
    u32 chunks, per;
    u32 listed;  // bins from the top that the list holds wholly

    // The element of `bin` at which the kept masses pass `rest`.
    __device__ __forceinline__ u32 pick(u32 bin, u64 rest, bool whole, Filter filter) {
        if (bin < listed) return (u32)pick_in_list(s, bin, rest, filter, source.scale);
        if (!whole) return pick_in_row(s, source, 0, bin, rest, filter);
        u32 t = threadIdx.x, own = 0;
        if (t < chunks && s.offsets[t] <= bin) own = masses[t * 256 + bin - s.offsets[t]];
        __syncthreads();
        u64 running = scan((u64)own, s.sums);
        if (rest < running && rest >= running - own) {
            s.found = t;
            s.found_sum = rest - (running - own);
        }
        __syncthreads();
        u32 chunk = s.found;
        return pick_in_chunk(s, source, chunk * THREADS * per, per / 4, bin, (u32)s.found_sum);
    }

    // Draws from the bins above the edge, and from the edge what the filter keeps.
    __device__ __forceinline__ u32 once(u32 edge, u64 mass, u32 attempt, Filter filter, u32* bin) {
        u64 a, b;
        philox(row, attempt, &a, &b);
        u64 above = edge > 0 ? s.weights[edge - 1] : 0;
        u64 point = __umul64hi(a, above + weigh(edge, mass));
        *bin = point < above ? first_reaching(s, s.weights, point + 1) : edge;
        bool is_edge = *bin == edge;
        u64 rest = __umul64hi(b, is_edge ? mass : s.masses[*bin]);
        Filter none = {~0ull, -INFINITY};
        return pick(*bin, rest, !is_edge || attempt == 0, is_edge ? filter : none);
    }

    __device__ __forceinline__ u64 cut(u32 bin, u64 need, bool counting) {
        if (bin < listed) return cut_in_list(s, bin, need, counting);
        return cut_in_row(s, source, (u64*)s.group_bins, bin, need, counting);
    }

    __device__ __forceinline__ u64 mass(u32 bin, Filter filter) {
        if (bin < listed) return mass_in_list(s, bin, filter, source.scale);
        return mass_in_row(s, source, bin, filter);
    }
};

// Sums of a row's bins from those of its chunks, all seen from the row's top.
__device__ __forceinline__ u64 sum_chunks(const Shared& s, const u32* sums, u32 chunks) {
    u32 t = threadIdx.x;
    u64 sum = 0;
#pragma unroll 8
    for (u32 c = 0; c < chunks; c++) {
        u32 offset = s.offsets[c];
        if (t < BINS && offset <= t) sum += __ldg(sums + c * 256 + t - offset);
    }
    return sum;
}

// The likeliest `n`, in order, into `top`; the list holds them, or is made to.
__device__ __noinline__ void list_top(Shared& s, const Source& source, u32 listed, u32 bin, u32 n,
                                      double ln_total, int octave, Top* top) {
    u32 t = threadIdx.x;
    if (bin >= listed) {
        u32* counts = (u32*)s.group_bins;
        counts_in_row(s, source, counts);
        bin = first_reaching(s, counts, n);
        u64 last = ~0ull;
        if (bin < BINS) {
            u32 above = bin > 0 ? counts[bin - 1] : 0;
            last = cut_in_row(s, source, (u64*)s.group_bins, bin, n - above, true);
        }
        __syncthreads();
        if (t == 0) s.count = 0;
        __syncthreads();
        for (u32 index = t; index < source.vocab; index += THREADS) {
            float x = source.load(index), y = __fmul_rn(x, source.scale);
            u64 order = order_of(x, index);
            if (source.bin(y) < BINS && order <= last) s.order[atomicAdd(&s.count, 1)] = order;
        }
        __syncthreads();
    }
    for (u32 e = t; e < s.count; e += THREADS) {
        u64 order = s.order[e];
        u32 rank = 0;
        for (u32 i = 0; i < s.count && rank < n; i++) rank += s.order[i] < order;
        if (rank < n) {
            double p = ln_scaled(order_scaled(order, source.scale), octave);
            top[rank] = {(u32)order, __double2float_rn(__dadd_rn(p, -ln_total))};
        }
    }
    for (u32 rank = s.count + t; rank < n; rank += THREADS) top[rank] = {ALL, -INFINITY};
}

extern "C" __global__ void __launch_bounds__(THREADS)
    sampling_draw(const void* logits, u32 type, u32 vocab, const Row* rows, const u32* starts,
                  const Edit* edits, const float* edited, u32 chunks, u32 per, u32 top_n,
                  const float* largest, const u32* masses, const u32* moments,
                  const u8* group_bins, Result* results, Top* tops) {
    __shared__ Shared s;
    u32 t = threadIdx.x, chunk_groups = THREADS * per / GROUP;
    u64 number = blockIdx.x, first_chunk = number * chunks;
    Row row = rows[number];
    masses += first_chunk * 256;
    moments += moments ? first_chunk * 256 : 0;

    // The groups' bins are asked for at once; they are wanted last.
    const uint4* from = (const uint4*)(group_bins + first_chunk * chunk_groups);
    for (u32 i = t; i < chunks * chunk_groups / 16; i += THREADS) {
        ((uint4*)s.group_bins)[i] = __ldg(from + i);
    }
    float own = t < chunks ? largest[first_chunk + t] : -INFINITY, most = own;
#pragma unroll
    for (int d = 1; d < 32; d *= 2) most = fmaxf(most, __shfl_xor_sync(ALL, most, d));
    if (lane() == 0) s.warp_max[t / 32] = most;
    bool is_nan = __syncthreads_or(own != own);
    most = s.warp_max[0];
    for (int w = 1; w < WARPS; w++) most = fmaxf(most, s.warp_max[w]);

    Source source = {logits, edits, edited, number * vocab, type, vocab, 0, 0, row.scale, 0};
    if (starts) source.start = starts[number], source.end = starts[number + 1];
    float scaled_max = __fmul_rn(most, row.scale);
    if (is_nan || most == INFINITY || most == -INFINITY || !(fabsf(scaled_max) <= SCALED_MAX)) {
        Result refused = {OUT_OF_RANGE, ALL, -INFINITY, 0.0f};
        if (is_nan || most == INFINITY) {
            refused.status = is_nan ? IS_NAN : INFINITE;
            refused.token = first_bad(s, source, is_nan);
        } else if (most == -INFINITY) {
            refused.status = ALL_MASKED;
        }
        if (t == 0) results[number] = refused;
        for (u32 i = t; i < top_n; i += THREADS) tops[number * top_n + i] = {ALL, -INFINITY};
        return;
    }
    int octave = bin_of(scaled_max) >> 3;
    source.top = octave * 8 + 7;
    if (t < chunks) {
        int below = octave - (bin_of(__fmul_rn(own, row.scale)) >> 3);
        s.offsets[t] = own == -INFINITY ? 256 : min(below, 32) * 8;
    }
    __syncthreads();

    u64 mass = sum_chunks(s, masses, chunks), weight = weigh(t, mass);
    s.masses[t] = mass;
    s.at_least[t] = scan((u32)((mass + MASS_MAX - 1) / MASS_MAX), s.counts);
    s.weights[t] = scan(weight, s.sums);
    __syncthreads();
    s.at_most[t] = scan((u32)(mass / MASS_MIN), s.counts);
    __syncthreads();
    u64 total = s.weights[BINS - 1];

    // How far down the list must reach, and whether it can.
    bool by_count = row.top_k <= s.at_most[BINS - 1], by_mass = row.top_p < 1ull << 32;
    u64 goal = 0;
    u32 reach = 0, top_bin = 0;
    if (by_count) {
        reach = min(first_reaching(s, s.at_least, row.top_k), BINS - 1);
    } else if (by_mass) {
        goal = __umul64hi(total << 1, row.top_p << 31) + ((total * row.top_p & 0xffffffffu) != 0);
        reach = first_reaching(s, s.weights, goal);
    }
    Draw draw = {s, source, row, masses, chunks, per, 0};
    if ((by_count || by_mass) && s.at_most[reach] <= LIST_MAX) draw.listed = reach + 1;
    if (top_n > 0) {
        top_bin = min(first_reaching(s, s.at_least, top_n), BINS - 1);
        if (s.at_most[top_bin] <= LIST_MAX) draw.listed = max(draw.listed, top_bin + 1);
    }
    if (draw.listed > 0) {
        gather(s, source, chunk_groups, per, type == F32 ? 4 : 8, chunks, draw.listed - 1);
    }

    // The edge. `need` is what its cut must reach, which is found when it is wanted.
    Filter filter = {~0ull, -INFINITY};
    u32 edge = BINS - 1;
    u64 need = 0, kept = total;
    if (by_count) {
        u32* counts = (u32*)s.group_bins;
        if (reach < draw.listed) {
            __syncthreads();
            counts[t] = 0;
            __syncthreads();
            for (u32 e = t; e < s.count; e += THREADS) atomicAdd(&counts[s.bin[e]], 1);
            __syncthreads();
            u32 running = scan(counts[t], s.counts);
            __syncthreads();
            counts[t] = running;
        } else {
            counts_in_row(s, source, counts);
        }
        u32 bin = first_reaching(s, counts, row.top_k);
        if (bin < BINS) {
            edge = bin;
            need = row.top_k - (edge > 0 ? counts[edge - 1] : 0);
            filter.last = draw.cut(edge, need, true);
            u64 mass = draw.mass(edge, filter);
            kept = (edge > 0 ? s.weights[edge - 1] : 0) + weigh(edge, mass);
        }
    }
    bool is_cut = false;
    if (by_mass) {
        goal = __umul64hi(kept << 1, row.top_p << 31) + ((kept * row.top_p & 0xffffffffu) != 0);
        edge = first_reaching(s, s.weights, goal);
        need = unweigh(edge, goal - (edge > 0 ? s.weights[edge - 1] : 0));
        filter.last = ~0ull;
        is_cut = true;
    }
    float scaled_min = __fadd_rn(scaled_max, row.min_p);
    u32 min_bin = source.bin(scaled_min);
    if (min_bin <= edge) {
        filter.scaled_min = scaled_min;
        if (min_bin < edge) {
            filter.last = ~0ull;
            is_cut = false;
        }
        edge = min_bin;
    }

    // The draw.
    u32 bin;
    Filter whole = {~0ull, -INFINITY};
    u32 token = draw.once(edge, s.masses[edge], 0, whole, &bin);
    if (bin == edge) {
        if (is_cut) filter.last = draw.cut(edge, need, false);
        float x = source.load(token);
        if (!filter.keeps(order_of(x, token), __fmul_rn(x, row.scale))) {
            u64 inside = draw.mass(edge, filter);
            token = draw.once(edge, inside, 1, filter, &bin);
        }
    }

    double ln_total = 0.0;
    if (t == 0 || top_n > 0) ln_total = ln_weight(total);
    long long distance = 0;
    if (moments) {
        u64 moment = weigh(t, sum_chunks(s, moments, chunks));
        distance = (long long)((weight >> 10) * t + (weight >> 11)) - (long long)(moment >> 10);
        distance = (long long)sum_all(s, (u64)distance);
    }
    if (t == 0) {
        double p = ln_scaled(source.scaled(token), octave);
        Result result = {DONE, token, __double2float_rn(__dadd_rn(p, -ln_total)), 0.0f};
        if (moments) {
            double mean = __ddiv_rn(__ll2double_rn(distance),
                                    __dmul_rn(__ull2double_rn(total), 1.0 / 1024.0));
            double spread = __dmul_rn(__dadd_rn(0.875, -__dmul_rn(mean, 0.125)), LN_2);
            result.entropy = __double2float_rn(__dadd_rn(ln_total, -spread));
        }
        results[number] = result;
    }
    if (top_n > 0) {
        list_top(s, source, draw.listed, top_bin, top_n, ln_total, octave,
                 tops + number * top_n);
    }
}
