// target: sm_61
//
// The kernels of this name in search.cu, with the instruction that multiplies four bytes by four: for cards of
// compute capability 6.1 and later.

#include "score.cuh"

struct Products {
    static const bool HAS_LENGTH = true;
    __device__ static __forceinline__ int word(unsigned a, unsigned b, int sum) { return __dp4a((int)a, (int)b, sum); }
    __device__ static __forceinline__ float score(int sum, float of_query, float length, unsigned) {
        return cosine((float)sum, of_query, length);
    }
};

SCORE_BYTES(int8_1, Products, 1, 4, true)
SCORE_BYTES(int8_4, Products, 4, 2, true)
SCORE_BYTES(int8_odd, Products, 2, 2, false)
