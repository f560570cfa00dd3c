# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""The hot leaves: scan a head into spans, frame a body, scan the top level of a JSON object. No I/O, no state of ours.

Every function takes ``bytes`` and offsets and either answers, says "need more" (None), or raises FramingError with the
status that a client would get. The grammar is RFC 9112 read strictly: what parsers disagree about is refused.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.object cimport PyObject
from cpython.unicode cimport PyUnicode_DecodeASCII, PyUnicode_DecodeUTF8
from libc.string cimport memchr, memcmp, memcpy

from cube_mesh.errors import FramingError

cdef extern from "Python.h":
    int _PyBytes_Resize(PyObject **string, Py_ssize_t newsize) except -1

cdef extern from "string.h":
    void *memmem(const void *haystack, size_t haystack_len, const void *needle, size_t needle_len) nogil

include "_fastpath/chars.pxi"
include "_fastpath/head.pxi"
include "_fastpath/body.pxi"
include "_fastpath/json.pxi"
