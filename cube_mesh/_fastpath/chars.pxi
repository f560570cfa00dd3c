# Character classes as 256-entry tables, filled once at import.

ctypedef const unsigned char *bytes_ptr

cdef unsigned char LOWER[256]   # ASCII lower case, every other byte itself
cdef unsigned char TCHAR[256]   # RFC 9110 5.6.2 token
cdef unsigned char VALUE[256]   # RFC 9110 5.5 field-vchar, SP, HTAB; obs-text is allowed, controls and DEL are not
cdef unsigned char TARGET[256]  # RFC 3986 pchar, "/" and "?"; "%" is checked apart
cdef unsigned char HOSTCH[256]  # RFC 3986 host without userinfo, and ":"
cdef signed char HEX[256]       # value of a hex digit, or -1


cdef void _fill_tables():
    cdef int i
    for i in range(256):
        LOWER[i] = i + 32 if 65 <= i <= 90 else i
        TCHAR[i] = 0
        VALUE[i] = 1 if (i >= 0x20 and i != 0x7F) or i == 9 else 0
        TARGET[i] = 0
        HOSTCH[i] = 0
        HEX[i] = -1
    for c in b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ":
        TCHAR[<unsigned char>c] = 1
    for c in b"-._~!$&'()*+,;=:@/?%0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ":
        TARGET[<unsigned char>c] = 1
    for c in b"-._~!$&'()*+;=:[]%0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ":
        HOSTCH[<unsigned char>c] = 1
    for i in range(10):
        HEX[48 + i] = i
    for i in range(6):
        HEX[65 + i] = HEX[97 + i] = 10 + i


_fill_tables()


cdef inline bint _same(bytes_ptr a, bytes_ptr lower, Py_ssize_t n) noexcept nogil:
    """Whether n bytes of a equal the lower-case name, ignoring ASCII case."""
    cdef Py_ssize_t i
    for i in range(n):
        if LOWER[a[i]] != lower[i]:
            return False
    return True


cdef bytes _shrink(bytes owned, Py_ssize_t size):
    """Cut a bytes object that only the caller holds to its final size, without a copy."""
    cdef PyObject *raw
    if PyBytes_GET_SIZE(owned) == size:
        return owned
    return PyBytes_FromStringAndSize(PyBytes_AS_STRING(owned), size)
