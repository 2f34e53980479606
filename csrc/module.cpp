// The Python module bdam_fast._C. Loading the library registers the operators, whose static initialisers stand in the
// operators' own .cpp files; the module's functions only report and steer what runs.
#include "common/module.h"

#include <cstring>

#include "common/elementary.h"

namespace {

using namespace bdam_fast;

PyObject* isa(PyObject*, PyObject*) { return PyUnicode_FromString(kIsaNames[static_cast<int>(current_isa())]); }

PyObject* available_isas(PyObject*, PyObject*) {
  PyObject* names = PyList_New(0);
  for (int i = 0; names != nullptr && i <= static_cast<int>(best_isa()); ++i) {
    PyObject* name = PyUnicode_FromString(kIsaNames[i]);
    if (name == nullptr || PyList_Append(names, name) != 0) Py_CLEAR(names);
    Py_XDECREF(name);
  }
  return names;
}

PyObject* set_isa_named(PyObject*, PyObject* argument) {
  PyObject* bytes = PyUnicode_AsUTF8String(argument);
  if (bytes == nullptr) return nullptr;
  const char* name = PyBytes_AsString(bytes);
  for (int i = 0; i <= static_cast<int>(best_isa()); ++i) {
    if (std::strcmp(name, kIsaNames[i]) != 0) continue;
    set_isa(static_cast<Isa>(i));
    Py_DECREF(bytes);
    Py_RETURN_NONE;
  }
  PyErr_Format(PyExc_ValueError, "set_isa: this build and this CPU run up to %s, got %s",
               kIsaNames[static_cast<int>(best_isa())], name);
  Py_DECREF(bytes);
  return nullptr;
}

PyObject* elementary_rate_named(PyObject*, PyObject* argument) {
  PyObject* bytes = PyUnicode_AsUTF8String(argument);
  if (bytes == nullptr) return nullptr;
  const char* name = PyBytes_AsString(bytes);
  int function = 0;
  while (function < kElementaryCount && std::strcmp(name, kElementaryNames[function]) != 0) ++function;
  if (function == kElementaryCount)
    PyErr_Format(PyExc_ValueError, "elementary_rate: expected exp2, softplus, sigmoid or exp, got %s", name);
  Py_DECREF(bytes);
  return function == kElementaryCount ? nullptr : PyFloat_FromDouble(elementary_rate(function));
}

PyMethodDef methods[] = {
    BDAM_MODULE_METHODS,
    {"isa", isa, METH_NOARGS, "The instruction set in use: baseline, avx2 or avx512."},
    {"available_isas", available_isas, METH_NOARGS, "The instruction sets that this build holds and this CPU runs."},
    {"set_isa", set_isa_named, METH_O, "Uses one of available_isas() from now on."},
    {"elementary_rate", elementary_rate_named, METH_O,
     "Evaluations per second of an elementary function on one thread."},
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace

extern "C" __attribute__((visibility("default"))) PyObject* PyInit__C() {
  static PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, "_C", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&definition);
}
