// FlashInfer's samplers behind C names, for scripts/gpu_sampling.py; scripts/gpu_flashinfer.sh compiles it against the
// headers of FlashInfer's package. As it is used by its own Python module: a softmax, which writes probabilities, and
// then a sampler of those, which loops until a draw is kept. All are deterministic.

#include <flashinfer/sampling.cuh>

namespace sampling = flashinfer::sampling;

extern "C" {

int fi_softmax(float *logits, float *probabilities, unsigned rows, unsigned vocab, void *room, size_t room_bytes,
               void *stream) {
    return sampling::OnlineSoftmax<float>(logits, probabilities, rows, vocab, nullptr, 1.0f, room, room_bytes, false,
                                          (cudaStream_t)stream);
}

int fi_top_k(float *probabilities, int *out, bool *valid, unsigned rows, unsigned vocab, unsigned k,
             unsigned long seed, void *stream) {
    return sampling::TopKSamplingFromProb<float, int>(probabilities, out, valid, nullptr, nullptr, rows, k, vocab,
                                                      true, nullptr, seed, nullptr, 0, (cudaStream_t)stream);
}

int fi_top_p(float *probabilities, int *out, bool *valid, unsigned rows, unsigned vocab, float p, unsigned long seed,
             void *stream) {
    return sampling::TopPSamplingFromProb<float, int>(probabilities, out, valid, nullptr, nullptr, rows, p, vocab,
                                                      true, nullptr, seed, nullptr, 0, (cudaStream_t)stream);
}

int fi_both(float *probabilities, int *out, bool *valid, unsigned rows, unsigned vocab, unsigned k, float p,
            unsigned long seed, void *stream) {
    return sampling::TopKTopPSamplingFromProb<float, int>(probabilities, nullptr, nullptr, out, valid, nullptr, rows,
                                                          k, p, vocab, true, nullptr, seed, nullptr, 0,
                                                          (cudaStream_t)stream);
}
}
