// Dot products of rows of floats in the order of src/post/sums.rs: 8 lanes that have a row hold four of the 32 partial
// sums each, since they load float4s.
#pragma once

#include "score.cuh"

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
