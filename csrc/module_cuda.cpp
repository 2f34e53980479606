// The Python module bdam_fast._C_cuda. Loading the library registers the CUDA kernels of the operators whose schemas
// bdam_fast._C defines, which therefore has to be loaded first.
#include "common/module.h"
#include "selective_scan/cuda/launch.h"

// As setup.py hands them to nvcc, separated by commas; empty if it does not say.
#ifndef BDAM_CUDA_ARCHITECTURES
#define BDAM_CUDA_ARCHITECTURES
#endif
#ifndef BDAM_VERSION
#define BDAM_VERSION
#endif
#define BDAM_TEXT_OF(...) #__VA_ARGS__
#define BDAM_TEXT(...) BDAM_TEXT_OF(__VA_ARGS__)

namespace {
PyObject* architectures(PyObject*, PyObject*) { return PyUnicode_FromString(BDAM_TEXT(BDAM_CUDA_ARCHITECTURES)); }

// The library may come from a distribution of its own: the package asks whether it is of the same version.
PyObject* version(PyObject*, PyObject*) { return PyUnicode_FromString(BDAM_TEXT(BDAM_VERSION)); }

PyObject* set_narrow_backward(PyObject*, PyObject* arguments) {
  int card = 0, on = 0;
  if (!PyArg_ParseTuple(arguments, "ip", &card, &on)) return nullptr;
  bdam_fast::narrow_backward(card).store(on != 0);
  Py_RETURN_NONE;
}

PyMethodDef methods[] = {
    BDAM_MODULE_METHODS,
    {"set_narrow_backward", set_narrow_backward, METH_VARARGS,
     "(card, on): the selective scan's backward on a card has fewer channels a block, and more warps."},
    {"architectures", architectures, METH_NOARGS, "What the kernels are compiled for, such as 8.0,9.0+PTX."},
    {"version", version, METH_NOARGS, "The version of bdam_fast whose kernels these are."},
    {nullptr, nullptr, 0, nullptr}};
}  // namespace

extern "C" __attribute__((visibility("default"))) PyObject* PyInit__C_cuda() {
  static PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, "_C_cuda", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&definition);
}
