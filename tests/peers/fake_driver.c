// A CUDA driver without a card, for tests: its memory is the host's, its streams are done at once, its kernels do
// nothing, and one of its calls fails. Built as libcuda.so.1.
//
//   FAKE_FAULT=cuLaunchKernel:3:719    the third call of that function returns 719, and as with the real driver all
//                                      calls after it do too, if the context is lost by it (200 and above, but 218);
//                                      memory (2) stays short for that function

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef unsigned long long Pointer;

static int lost;

static int fault(const char *name) {
    static int calls;
    const char *wanted = getenv("FAKE_FAULT");
    if (lost) return lost;
    if (!wanted) return 0;
    size_t length = strlen(name);
    if (strncmp(wanted, name, length) || wanted[length] != ':') return 0;
    int number, code;
    if (sscanf(wanted + length, ":%d:%d", &number, &code) != 2) abort();
    int call = __atomic_add_fetch(&calls, 1, __ATOMIC_SEQ_CST);
    if (code == 2 ? call < number : call != number) return 0;
    if (code >= 200 && code != 218) lost = code;
    return code;
}

#define CALL(name, parameters, work)                                                                                   \
    int name parameters {                                                                                              \
        int code = fault(#name);                                                                                       \
        if (code) return code;                                                                                         \
        work;                                                                                                          \
        return 0;                                                                                                      \
    }

static char handle;

int cuGetErrorName(int code, const char **name) {
    *name = code == 2 ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR_FAKE";
    return 0;
}

CALL(cuInit, (unsigned flags), (void)flags)
CALL(cuDeviceGetCount, (int *count), *count = 1)
CALL(cuDeviceGet, (int *device, int number), *device = number)
CALL(cuDeviceGetName, (char *name, int room, int device), snprintf(name, room, "Fake %d", device))
CALL(cuDeviceTotalMem_v2, (size_t *bytes, int device), *bytes = 1 << 30; (void)device)
CALL(cuDeviceGetPCIBusId, (char *name, int room, int device), snprintf(name, room, "0000:%02d:00.0", device))
// Compute capability 9.0; of all else there are four.
CALL(cuDeviceGetAttribute, (int *value, int which, int device), *value = which == 75 ? 9 : which == 76 ? 0 : 4; (void)device)
CALL(cuDriverGetVersion, (int *version), *version = 13000)
CALL(cuDevicePrimaryCtxRetain, (void **context, int device), *context = &handle; (void)device)
CALL(cuDevicePrimaryCtxRelease_v2, (int device), (void)device)
CALL(cuCtxSetCurrent, (void *context), (void)context)
CALL(cuModuleLoadDataEx, (void **module, const void *image, unsigned n, int *options, void **values),
     *module = &handle; (void)image; (void)n; (void)options; (void)values)
CALL(cuModuleGetFunction, (void **function, void *module, const char *name), *function = &handle; (void)module; (void)name)
CALL(cuModuleUnload, (void *module), (void)module)
CALL(cuMemGetInfo_v2, (size_t *available, size_t *all), *available = *all = 1 << 30)
CALL(cuMemAlloc_v2, (Pointer *at, size_t bytes), *at = (Pointer)aligned_alloc(256, (bytes + 255) / 256 * 256))
CALL(cuMemFree_v2, (Pointer at), free((void *)at))
CALL(cuMemHostAlloc, (void **at, size_t bytes, unsigned flags), *at = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096); (void)flags)
CALL(cuMemFreeHost, (void *at), free(at))
CALL(cuMemHostGetDevicePointer_v2, (Pointer *to, void *from, unsigned flags), *to = (Pointer)from; (void)flags)
CALL(cuMemcpyHtoDAsync_v2, (Pointer to, const void *from, size_t bytes, void *stream), memcpy((void *)to, from, bytes); (void)stream)
CALL(cuMemcpyDtoHAsync_v2, (void *to, Pointer from, size_t bytes, void *stream), memcpy(to, (void *)from, bytes); (void)stream)
CALL(cuMemsetD8Async, (Pointer to, unsigned char value, size_t bytes, void *stream), memset((void *)to, value, bytes); (void)stream)
CALL(cuStreamCreateWithPriority, (void **stream, unsigned flags, int priority), *stream = &handle; (void)flags; (void)priority)
CALL(cuStreamSynchronize, (void *stream), (void)stream)
CALL(cuStreamWaitEvent, (void *stream, void *event, unsigned flags), (void)stream; (void)event; (void)flags)
CALL(cuStreamDestroy_v2, (void *stream), (void)stream)
CALL(cuEventCreate, (void **event, unsigned flags), *event = &handle; (void)flags)
CALL(cuEventRecord, (void *event, void *stream), (void)event; (void)stream)
CALL(cuEventSynchronize, (void *event), (void)event)
CALL(cuEventElapsedTime, (float *ms, void *first, void *last), *ms = 1; (void)first; (void)last)
CALL(cuEventDestroy_v2, (void *event), (void)event)

int cuLaunchKernel(void *function, unsigned x, unsigned y, unsigned z, unsigned tx, unsigned ty, unsigned tz, unsigned shared,
                   void *stream, void **arguments, void **extra) {
    (void)function, (void)x, (void)y, (void)z, (void)tx, (void)ty, (void)tz;
    (void)shared, (void)stream, (void)arguments, (void)extra;
    return fault("cuLaunchKernel");
}
