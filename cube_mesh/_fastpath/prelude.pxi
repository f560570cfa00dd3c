# What all parts use of CPython and C.

cimport cython
from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytearray cimport PyByteArray_AS_STRING
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.long cimport PyLong_AsLongLongAndOverflow
from cpython.mem cimport PyMem_Free, PyMem_Malloc, PyMem_Realloc
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF
from cpython.unicode cimport PyUnicode_DecodeASCII
from libc.string cimport memchr, memcmp, memcpy, memset

from cube_mesh.errors import FramingError

cdef extern from "Python.h":
    # A bytes object that is being written has one owner, by hand, until _shrink hands it out.
    PyObject *PyBytes_New "PyBytes_FromStringAndSize"(const char *, Py_ssize_t size) except NULL
    char *PyBytes_Data "PyBytes_AS_STRING"(PyObject *)
    Py_ssize_t PyBytes_Size_ "PyBytes_GET_SIZE"(PyObject *)
    PyObject *PyTuple_GET_ITEM(tuple, Py_ssize_t)  # borrowed
    Py_ssize_t PyTuple_GET_SIZE(tuple)
    int _PyBytes_Resize(PyObject **string, Py_ssize_t newsize) except -1
    void Py_DecRef(PyObject *)
