// The Python module bdam_fast._C_cuda. Loading the library registers the CUDA kernels of the operators whose schemas
// bdam_fast._C defines, which therefore has to be loaded first.
#include "common/module.h"

namespace {
PyMethodDef methods[] = {BDAM_MODULE_METHODS, {nullptr, nullptr, 0, nullptr}};
}  // namespace

extern "C" __attribute__((visibility("default"))) PyObject* PyInit__C_cuda() {
  static PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, "_C_cuda", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&definition);
}
