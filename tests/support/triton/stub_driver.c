/* A CUDA driver that has one GPU of compute capability 9.0 and runs nothing: what Triton's launcher calls, each answered with
 * success. A launch is refused where a GPU would refuse it, and otherwise written as one line to the file STUB_LAUNCHES. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int Result;
typedef unsigned long long Address;
typedef struct {
  unsigned grid[3], block[3], shared;
  void* stream;
  void* attributes;
  unsigned count;
} Launch;

enum { SUCCESS = 0, INVALID_VALUE = 1, INVALID_IMAGE = 200, MOST_SHARED = 232448, MOST_THREADS = 1024 };

Result cuInit(unsigned flags) { return SUCCESS; }
Result cuGetErrorString(Result error, const char** text) {
  *text = error == INVALID_IMAGE ? "stub: not a binary" : "stub: a GPU would refuse this";
  return SUCCESS;
}
Result cuDriverGetVersion(int* version) { *version = 13000; return SUCCESS; }
Result cuDeviceGet(int* device, int index) { *device = index; return SUCCESS; }

/* The attributes of an H100 that Triton asks for, by their numbers in cuda.h. */
Result cuDeviceGetAttribute(int* value, int attribute, int device) {
  static const int known[][2] = {{8, 49152},    {10, 32},        {12, 65536}, {13, 1980000}, {16, 132}, {36, 2619000},
                                 {37, 5120},    {75, 9},         {76, 0},     {81, 233472},  {82, 65536}, {97, MOST_SHARED}};
  *value = 1;
  for (unsigned i = 0; i < sizeof known / sizeof *known; ++i)
    if (known[i][0] == attribute) *value = known[i][1];
  return SUCCESS;
}

Result cuCtxGetCurrent(void** context) { *context = (void*)8; return SUCCESS; }
Result cuCtxSetCurrent(void* context) { return SUCCESS; }
Result cuDevicePrimaryCtxRetain(void** context, int device) { *context = (void*)8; return SUCCESS; }
Result cuCtxGetLimit(size_t* value, int limit) { *value = 0; return SUCCESS; }
Result cuCtxSetLimit(int limit, size_t value) { return SUCCESS; }

Result cuModuleLoadData(void** module, const void* image) {
  *module = (void*)8;
  return memcmp(image, "\177ELF", 4) ? INVALID_IMAGE : SUCCESS;
}
Result cuModuleGetFunction(void** function, void* module, const char* name) { *function = strdup(name); return SUCCESS; }
Result cuFuncGetAttribute(int* value, int attribute, void* function) {
  *value = attribute == 0 ? MOST_THREADS : attribute == 4 ? 128 : 0; /* threads a block, registers */
  return SUCCESS;
}
Result cuFuncSetAttribute(void* function, int attribute, int value) { return SUCCESS; }
Result cuFuncSetCacheConfig(void* function, int config) { return SUCCESS; }
Result cuOccupancyMaxActiveClusters(int* count, void* function, void* config) { *count = 1; return SUCCESS; }
Result cuTensorMapEncodeTiled(void) { return INVALID_VALUE; }
Result cuTensorMapEncodeIm2col(void) { return INVALID_VALUE; }
/* Tensors of the CPU: their addresses are those of the device. */
Result cuPointerGetAttribute(void* data, int attribute, Address address) { *(Address*)data = address; return SUCCESS; }

Result cuLaunchKernelEx(const Launch* launch, void* function, void** arguments, void** extra) {
  const unsigned *grid = launch->grid, *block = launch->block;
  const char* path = getenv("STUB_LAUNCHES");
  FILE* file;
  if (!grid[0] || !grid[1] || !grid[2] || grid[1] > 65535 || grid[2] > 65535 || !block[0] || block[0] > MOST_THREADS ||
      launch->shared > MOST_SHARED || !arguments)
    return INVALID_VALUE;
  file = path ? fopen(path, "a") : NULL;
  if (!file) return INVALID_VALUE;
  fprintf(file, "%s %u %u %u\n", (const char*)function, grid[0] * grid[1] * grid[2], block[0], launch->shared);
  fclose(file);
  return SUCCESS;
}
