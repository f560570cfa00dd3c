# Rendering: a head as it goes on to the next hop, written from spans into one buffer with the body behind it.


cdef inline unsigned char _bucket(bytes_ptr name, Py_ssize_t n) noexcept:
    return <unsigned char>(n * 31 + LOWER[name[0]] * 7 + LOWER[name[n - 1]])


cdef class FieldSet:
    """A fixed set of field names and name prefixes, lower case, for dropping fields while a head is rendered.

    ValueError for a name that is not lower case, empty, or 64 bytes or longer, and for more than 255 names.
    """

    cdef tuple _names
    cdef tuple _prefixes
    cdef unsigned char _heads[256]   # by bucket: place of its first name in _names, from 1; 0 for none
    cdef unsigned char _next[256]    # by place: the next name of the same bucket
    cdef unsigned char _begins[256]  # whether some prefix begins with that byte

    def __init__(self, names=(), prefixes=()):
        cdef bytes name
        cdef int place
        cdef unsigned char bucket
        self._names = tuple(sorted(set(names)))
        self._prefixes = tuple(prefixes)
        if len(self._names) > 255:
            raise ValueError("more than 255 field names")
        for name in self._names + self._prefixes:
            if not 0 < len(name) < 64 or name != name.lower():
                raise ValueError("field names must be lower case and shorter than 64 bytes")
        for place in range(len(self._names)):
            name = self._names[place]
            bucket = _bucket(<bytes_ptr>PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name))
            self._next[place] = self._heads[bucket]
            self._heads[bucket] = place + 1
        for name in self._prefixes:
            self._begins[<unsigned char>name[0]] = 1

    cdef bint has(self, bytes_ptr name, Py_ssize_t n) noexcept:
        cdef int place = self._heads[_bucket(name, n)]
        cdef PyObject *known
        cdef Py_ssize_t i
        while place:
            known = PyTuple_GET_ITEM(self._names, place - 1)
            if PyBytes_Size_(known) == n and _same(name, <bytes_ptr>PyBytes_Data(known), n):
                return True
            place = self._next[place - 1]
        if self._begins[LOWER[name[0]]]:
            for i in range(PyTuple_GET_SIZE(self._prefixes)):
                known = PyTuple_GET_ITEM(self._prefixes, i)
                if n >= PyBytes_Size_(known) and _same(name, <bytes_ptr>PyBytes_Data(known), PyBytes_Size_(known)):
                    return True
        return False

    def __contains__(self, bytes name not None):
        cdef Py_ssize_t n = PyBytes_GET_SIZE(name)
        return n > 0 and self.has(<bytes_ptr>PyBytes_AS_STRING(name), n)


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
