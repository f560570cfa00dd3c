# Rendering: a head as it goes on to the next hop, written from spans into one buffer with the body behind it.


cdef class FieldSet:
    """A fixed set of field names and name prefixes, lower case, for dropping fields while a head is rendered."""

    cdef tuple _names
    cdef tuple _prefixes
    cdef unsigned short _first[65]

    def __init__(self, names=(), prefixes=()):
        cdef Py_ssize_t length
        ordered = sorted(set(names), key=len)
        if any(len(n) > 63 or n != n.lower() for n in ordered):
            raise ValueError("field names must be lower case and shorter than 64 bytes")
        self._names = tuple(ordered)
        self._prefixes = tuple(prefixes)
        for length in range(65):
            self._first[length] = sum(1 for n in ordered if len(n) < length)

    cdef bint has(self, bytes_ptr name, Py_ssize_t n):
        cdef Py_ssize_t i, size
        cdef bytes known
        if n < 64:
            for i in range(self._first[n], self._first[n + 1]):
                known = <bytes>self._names[i]
                if _same(name, <bytes_ptr>PyBytes_AS_STRING(known), n):
                    return True
        for i in range(len(self._prefixes)):
            known = <bytes>self._prefixes[i]
            size = PyBytes_GET_SIZE(known)
            if n >= size and _same(name, <bytes_ptr>PyBytes_AS_STRING(known), size):
                return True
        return False

    def __contains__(self, bytes name):
        return self.has(<bytes_ptr>PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name))


cdef Py_ssize_t _write_framing(unsigned char *o, long long length):
    cdef Py_ssize_t at = 0
    if length >= 0:
        memcpy(o, b"content-length: ", 16)
        at = 16 + _write_number(o + 16, length)
        o[at] = 13
        o[at + 1] = 10
        at += 2
    elif length == -2:
        memcpy(o, b"transfer-encoding: chunked\r\n", 28)
        at = 28
    return at


cdef Py_ssize_t _write_number(unsigned char *o, long long value):
    cdef unsigned char digits[20]
    cdef int n = 0, i
    if value == 0:
        digits[0] = 48
        n = 1
    while value:
        digits[n] = 48 + value % 10
        value //= 10
        n += 1
    for i in range(n):
        o[i] = digits[n - 1 - i]
    return n
