# The request-line: method, request-target, version (RFC 9112 section 3). One forward pass, as everywhere in this
# scanner: a function returns the offset that it reached, 0 when the bytes ended first, or raises at the first byte that
# cannot be part of a request. So the outcome never depends on how the bytes were cut.


cdef str _method(bytes_ptr b, Py_ssize_t n):
    if n == 4 and memcmp(b, b"POST", 4) == 0:
        return "POST"
    if n == 3 and memcmp(b, b"GET", 3) == 0:
        return "GET"
    if n == 4 and memcmp(b, b"HEAD", 4) == 0:
        return "HEAD"
    if n == 3 and memcmp(b, b"PUT", 3) == 0:
        return "PUT"
    if n == 6 and memcmp(b, b"DELETE", 6) == 0:
        return "DELETE"
    if n == 5 and memcmp(b, b"PATCH", 5) == 0:
        return "PATCH"
    if n == 7 and memcmp(b, b"OPTIONS", 7) == 0:
        return "OPTIONS"
    return None


cdef int _bad_target(Py_ssize_t at, Py_ssize_t stop, str message) except -1:
    """Refuse, unless the byte that is wrong is only the end of what has arrived."""
    if at < stop:
        raise FramingError("bad_target", message)
    return 0


cdef Py_ssize_t _scan_target(bytes_ptr b, Py_ssize_t at, Py_ssize_t stop, Py_ssize_t *query) except -1:
    """Origin-form only (RFC 9112 3.2.1). Refused are paths that programs resolve differently: empty and dot segments
    (also with parameters: ``..;x``), percent-encoding that is broken, not UTF-8 when decoded, of a control, and, in the
    path, of a slash, a backslash, or a character that needs none. Returns the offset of the space behind it."""
    cdef Py_ssize_t segment = at + 1
    cdef unsigned char c
    query[0] = -1
    if b[at] != c'/':
        return _bad_target(at, stop, "The request-target must start with a slash.")
    at += 1
    while TARGET[b[at]]:
        c = b[at]
        if c == c'%':
            at = _scan_encoded(b, at, stop, query[0] < 0)
            if at == 0:
                return 0
            continue
        if query[0] < 0 and (c == c'/' or c == c'?'):
            if c == c'/' and segment == at:
                return _bad_target(at, stop, "The path has an empty segment.")
            if _is_dots(b, segment, at):
                return _bad_target(at, stop, "The path has a dot segment.")
            segment = at + 1
            if c == c'?':
                query[0] = at
        at += 1
    if b[at] != 32:
        return _bad_target(at, stop, "The request-target has a character that is not accepted.")
    if query[0] < 0 and _is_dots(b, segment, at):
        return _bad_target(at, stop, "The path has a dot segment.")
    return at


cdef bint _is_dots(bytes_ptr b, Py_ssize_t start, Py_ssize_t stop) noexcept:
    """Whether the segment is "." or "..", with or without parameters behind a semicolon (RFC 3986 3.3)."""
    cdef Py_ssize_t at = start
    while at < stop and b[at] == c'.':
        at += 1
    return 1 <= at - start <= 2 and (at == stop or b[at] == c';')


cdef int _scan_octet(bytes_ptr b, Py_ssize_t at, Py_ssize_t stop) except -2:
    """The value of the %XX at ``at``; -1 when it is not whole yet."""
    if b[at] != c'%' or HEX[b[at + 1]] < 0:
        at += b[at] == c'%'
        _bad_target(at, stop, "The request-target has a broken percent-encoding.")
        return -1
    if HEX[b[at + 2]] < 0:
        _bad_target(at + 2, stop, "The request-target has a broken percent-encoding.")
        return -1
    return HEX[b[at + 1]] * 16 + HEX[b[at + 2]]


cdef Py_ssize_t _scan_encoded(bytes_ptr b, Py_ssize_t at, Py_ssize_t stop, bint in_path) except -1:
    """Past one percent-encoded character: %XX, or as many as its UTF-8 has octets (RFC 3629 section 4)."""
    cdef int octet = _scan_octet(b, at, stop)
    cdef int low = 0x80, high = 0xBF
    cdef int more
    if octet < 0:
        return 0
    if octet < 0x80:
        if octet < 0x20 or octet == 0x7F or (in_path and (octet == 47 or octet == 92 or UNRESERVED[octet])):
            return _bad_target(at + 2, stop, "The request-target has an encoding that is not accepted.")
        return at + 3
    more = 1 if 0xC2 <= octet <= 0xDF else 2 if 0xE0 <= octet <= 0xEF else 3 if 0xF0 <= octet <= 0xF4 else 0
    if more == 0:
        return _bad_target(at + 2, stop, "The request-target is not UTF-8.")
    if octet == 0xE0:
        low = 0xA0
    elif octet == 0xED:
        high = 0x9F
    elif octet == 0xF0:
        low = 0x90
    elif octet == 0xF4:
        high = 0x8F
    at += 3
    while more:
        octet = _scan_octet(b, at, stop)
        if octet < 0:
            return 0
        if not low <= octet <= high:
            return _bad_target(at + 2, stop, "The request-target is not UTF-8.")
        low, high = 0x80, 0xBF
        more -= 1
        at += 3
    return at


cdef Py_ssize_t _scan_version(bytes_ptr b, Py_ssize_t at, Py_ssize_t stop, int *minor) except -1:
    """Past ``HTTP/1.x``. Any other version is 505, anything else is no request or status line."""
    cdef bytes_ptr form = b"HTTP/0.0"
    cdef int i
    if stop - at >= 8 and memcmp(b + at, b"HTTP/1.1", 8) == 0:
        minor[0] = 1
        return at + 8
    for i in range(8):
        if at + i >= stop:
            return 0
        if not (48 <= b[at + i] <= 57 if form[i] == c'0' else b[at + i] == form[i]):
            raise FramingError("bad_request_line", "The first line is malformed.")
    if b[at + 5] != c'1' or b[at + 7] > c'1':
        raise FramingError("version_not_supported", "The HTTP version is not supported.", 505)
    minor[0] = b[at + 7] - 48
    return at + 8


cdef inline Py_ssize_t _line_end(bytes_ptr b, Py_ssize_t at, Py_ssize_t stop, str code, str message) except -1:
    """Past CRLF."""
    if at + 1 < stop and b[at] == 13 and b[at + 1] == 10:
        return at + 2
    return _scan_line_end(b, at, stop, code, message)


cdef Py_ssize_t _scan_line_end(bytes_ptr b, Py_ssize_t at, Py_ssize_t stop, str code, str message) except -1:
    """Past CRLF, or what is wrong: a lone LF has an error of its own, anything else raises ``code``."""
    if at >= stop:
        return 0
    if b[at] == 13:
        if at + 1 >= stop:
            return 0
        if b[at + 1] == 10:
            return at + 2
    elif b[at] == 10:
        raise FramingError("bare_lf", "A line of the head does not end in CRLF.")
    raise FramingError(code, message)
