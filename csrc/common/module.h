// The functions that both Python modules offer, bdam_fast._C and bdam_fast._C_cuda: each reports on its own kernels.
#pragma once
#ifndef Py_LIMITED_API
#define Py_LIMITED_API 0x030a0000
#endif
#include <Python.h>

#include "common/runtime.h"

namespace bdam_fast {

inline PyObject* call_counts(PyObject*, PyObject*) {
  PyObject* counts = PyDict_New();
  for (CallCounter* c = first_counter(); counts != nullptr && c != nullptr; c = c->next) {
    PyObject* value = PyLong_FromLongLong(c->count.load());
    if (value == nullptr || PyDict_SetItemString(counts, c->name, value) != 0) Py_CLEAR(counts);
    Py_XDECREF(value);
  }
  return counts;
}

inline PyObject* reset_call_counts(PyObject*, PyObject*) {
  for (CallCounter* c = first_counter(); c != nullptr; c = c->next) c->count.store(0);
  Py_RETURN_NONE;
}

inline PyObject* set_poison_flag(PyObject*, PyObject* argument) {
  const int on = PyObject_IsTrue(argument);
  if (on < 0) return nullptr;
  set_poison(on != 0);
  Py_RETURN_NONE;
}

// The entries of a method table for the functions above.
#define BDAM_MODULE_METHODS                                                                                 \
  {"call_counts", bdam_fast::call_counts, METH_NOARGS, "Calls of each kernel so far, by name."},            \
      {"reset_call_counts", bdam_fast::reset_call_counts, METH_NOARGS, "Sets every call count to zero."}, { \
    "set_poison", bdam_fast::set_poison_flag, METH_O,                                                       \
        "While on, kernels' results and working memory start as NaN (for tests)."                           \
  }

}  // namespace bdam_fast
