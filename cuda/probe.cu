// What the driver and the bus cost is measured with this: it copies n floats, and is busy for `turns` more.
//
//   probe   grid: any number of blocks of 256 threads; a stride covers the rest

extern "C" __global__ void __launch_bounds__(256)
probe(const float *__restrict__ from, float *to, unsigned n, unsigned turns) {
    for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
        float v = from[i], w = v;
        for (unsigned turn = 0; turn < turns; turn++) w = __fmaf_rn(w, 0.5f, v);
        // A sum with what is not there keeps the loop, and the value.
        to[i] = w == -1.0f ? w : v;
    }
}
