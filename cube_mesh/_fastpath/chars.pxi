# Character classes as 256-entry tables, filled once at import.

ctypedef const unsigned char *bytes_ptr

cdef unsigned char LOWER[256]   # ASCII lower case, every other byte itself
cdef unsigned char TCHAR[256]   # RFC 9110 5.6.2 token: 1, and 3 for the underscore, to some a hyphen
cdef unsigned char VALUE[256]   # RFC 9110 5.5 field-vchar, SP, HTAB; obs-text is allowed, controls and DEL are not
cdef unsigned char TARGET[256]  # RFC 3986 pchar, "/" and "?"; "%" is checked apart
cdef unsigned char UNRESERVED[256]  # RFC 3986 2.3: what needs no percent-encoding anywhere
cdef unsigned char HOSTCH[256]  # registered names as they are used: letters, digits, "-", ".", "_"
cdef signed char HEX[256]       # value of a hex digit, or -1


cdef void _fill_tables():
    cdef int i
    for i in range(256):
        LOWER[i] = i + 32 if 65 <= i <= 90 else i
        TCHAR[i] = 0
        VALUE[i] = 1 if (i >= 0x20 and i != 0x7F) or i == 9 else 0
        TARGET[i] = 0
        UNRESERVED[i] = 0
        HOSTCH[i] = 0
        HEX[i] = -1
    for c in b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ":
        TCHAR[<unsigned char>c] = 1
    for c in b"-._~!$&'()*+,;=:@/?%0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ":
        TARGET[<unsigned char>c] = 1
    for c in b"-._~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ":
        UNRESERVED[<unsigned char>c] = 1
        HOSTCH[<unsigned char>c] = c != c'~'
    TCHAR[c'_'] = 3
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


cdef inline bint _same_folded(bytes_ptr a, bytes_ptr lower, Py_ssize_t n) noexcept nogil:
    """The same for programs that take an underscore for a hyphen (CGI, WSGI)."""
    cdef Py_ssize_t i
    for i in range(n):
        if LOWER[a[i]] != lower[i] and not (a[i] == c'_' and lower[i] == c'-'):
            return False
    return True


cdef inline bint _same_both(bytes_ptr a, bytes_ptr b, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        if LOWER[a[i]] != LOWER[b[i]]:
            return False
    return True


cdef int _utf8_size(bytes_ptr p, Py_ssize_t n) noexcept nogil:
    """Length of the multi-byte character that starts there (RFC 3629 section 4), or 0 if none does."""
    cdef unsigned char c = p[0]
    cdef int size = 2 if 0xC2 <= c <= 0xDF else 3 if 0xE0 <= c <= 0xEF else 4 if 0xF0 <= c <= 0xF4 else 0
    cdef int i
    if size == 0 or size > n:
        return 0
    if ((c == 0xE0 and p[1] < 0xA0) or (c == 0xED and p[1] > 0x9F)
            or (c == 0xF0 and p[1] < 0x90) or (c == 0xF4 and p[1] > 0x8F)):
        return 0
    for i in range(1, size):
        if p[i] & 0xC0 != 0x80:
            return 0
    return size


cdef bint _is_utf8(bytes_ptr p, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t at = 0
    cdef int size
    while at < n:
        size = 1 if p[at] < 0x80 else _utf8_size(p + at, n - at)
        if size == 0:
            return False
        at += size
    return True


cdef bytes _shrink(PyObject *owned, Py_ssize_t size):
    """Cut a bytes object to its final size without a copy. The caller gives its only reference away."""
    cdef bytes out
    _PyBytes_Resize(&owned, size)
    out = <bytes>owned
    Py_DECREF(out)
    return out
