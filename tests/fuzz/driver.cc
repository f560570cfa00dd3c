// libFuzzer's entry points around harness.pyx: one embedded interpreter, the parser called in it.
#include <Python.h>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "harness.h"

// A C++ file in name only: files called .c here are made by Cython, and no part of the repository.
static bool self_test;

extern "C" int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    self_test = getenv("FUZZ_SELF_TEST") != NULL;
    if (PyImport_AppendInittab("harness", PyInit_harness) < 0)
        abort();
    Py_InitializeEx(0);
    if (PyImport_ImportModule("harness") == NULL) {
        PyErr_Print();
        abort();
    }
    return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    // A fuzzer that cannot fail proves nothing: a test asks for each of the three ways.
    if (self_test && size >= 4 && memcmp(data, "read", 4) == 0)
        return ((volatile const uint8_t *)data)[size] == 255 ? 1 : 0;
    if (self_test && size >= 4 && memcmp(data, "hold", 4) == 0)
        PyErr_SetString(PyExc_AssertionError, "self test");
    if (self_test && size >= 4 && memcmp(data, "leak", 4) == 0)
        *static_cast<volatile char *>(malloc(100)) = 1;
    if (PyErr_Occurred() != NULL || fuzz_one(data, size) < 0) {
        PyErr_Print();
        abort();
    }
    return 0;
}
