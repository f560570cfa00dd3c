# The top level of a JSON object (RFC 8259), scanned once, strictly: the members that we act on, and proof that the
# whole is well formed, so that no other parser can see another request than we did.

cdef enum:
    MAX_DEPTH = 64
    ESCAPES = 1
    MULTIBYTE = 2


cdef extern from *:
    """
    /* The place in memory of the lowest flagged byte of a little-endian word that is not 0. */
    #if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    #define first_flag(flags) (__builtin_ctzll(flags) >> 3)
    #else
    #error "written for little-endian machines"
    #endif
    """
    int first_flag(unsigned long long flags) noexcept nogil


cdef inline int _plain8(bytes_ptr p) noexcept nogil:
    """How many of eight bytes are plain ASCII before the first that is a quote, a backslash, a control, or beyond."""
    cdef unsigned long long x, low, quote, slash, flags
    cdef unsigned long long ones = 0x0101010101010101ULL
    memcpy(&x, p, 8)
    low = (x - ones * 0x20) & ~x
    quote = x ^ (ones * 0x22)
    slash = x ^ (ones * 0x5C)
    quote = (quote - ones) & ~quote
    slash = (slash - ones) & ~slash
    flags = (x | low | quote | slash) & (ones * 0x80)  # above the first flag others may be wrong: a borrow
    return 8 if flags == 0 else first_flag(flags)


@cython.internal
cdef class JsonScan:
    """Cursor over one JSON text."""

    cdef bytes data
    cdef bytes_ptr b
    cdef Py_ssize_t at
    cdef Py_ssize_t end

    cdef inline void space(self) noexcept:
        cdef unsigned char c
        while self.at < self.end:
            c = self.b[self.at]
            if c != 32 and c != 10 and c != 13 and c != 9:
                return
            self.at += 1

    cdef int fail(self) except -1:
        raise FramingError("invalid_json", "The request body is not valid JSON.")

    cdef int string(self) except -1:
        """Past one string; 0, or what is unusual in it. UTF-8 is checked (RFC 3629), controls are refused."""
        cdef unsigned char c
        cdef int unusual = 0, plain
        if self.at >= self.end or self.b[self.at] != c'"':
            self.fail()
        self.at += 1
        while self.at < self.end:
            while self.end - self.at >= 8:
                plain = _plain8(self.b + self.at)
                self.at += plain
                if plain < 8:
                    break
            if self.at >= self.end:
                break
            c = self.b[self.at]
            if c == c'"':
                self.at += 1
                return unusual
            if c == c'\\':
                unusual |= ESCAPES
                self.escape()
            elif c < 0x20:
                self.fail()
            elif c < 0x80:
                self.at += 1
            else:
                unusual |= MULTIBYTE
                self.multibyte()
        return self.fail()

    cdef int escape(self) except -1:
        cdef unsigned char c
        cdef int i
        if self.at + 1 >= self.end:
            self.fail()
        c = self.b[self.at + 1]
        if c == c'u':
            if self.at + 6 > self.end:
                self.fail()
            for i in range(2, 6):
                if HEX[self.b[self.at + i]] < 0:
                    self.fail()
            self.at += 6
        elif memchr(b'"\\/bfnrt', c, 8) != NULL:
            self.at += 2
        else:
            self.fail()
        return 0

    cdef int multibyte(self) except -1:
        cdef int size = _utf8_size(self.b + self.at, self.end - self.at)
        if size == 0:
            raise FramingError("invalid_utf8", "The request body is not valid UTF-8.")
        self.at += size
        return 0

    cdef int digits(self) except -1:
        cdef Py_ssize_t start = self.at
        while self.at < self.end and 48 <= self.b[self.at] <= 57:
            self.at += 1
        if self.at == start:
            self.fail()
        return 0

    cdef int number(self) except -1:
        if self.b[self.at] == c'-':
            self.at += 1
        if self.at < self.end and self.b[self.at] == c'0':
            self.at += 1
        else:
            self.digits()
        if self.at < self.end and self.b[self.at] == c'.':
            self.at += 1
            self.digits()
        if self.at < self.end and self.b[self.at] | 0x20 == c'e':
            self.at += 1
            if self.at < self.end and (self.b[self.at] == c'+' or self.b[self.at] == c'-'):
                self.at += 1
            self.digits()
        return 0

    cdef int literal(self, bytes_ptr word, Py_ssize_t n) except -1:
        if self.end - self.at < n or memcmp(self.b + self.at, word, n) != 0:
            self.fail()
        self.at += n
        return 0

    cdef int scalar(self) except -1:
        cdef unsigned char c = self.b[self.at]
        if c == c'"':
            self.string()
        elif c == c't':
            self.literal(b"true", 4)
        elif c == c'f':
            self.literal(b"false", 5)
        elif c == c'n':
            self.literal(b"null", 4)
        elif c == c'-' or 48 <= c <= 57:
            self.number()
        else:
            self.fail()
        return 0

    cdef int key(self) except -1:
        """A member's name and its colon, inside an object."""
        self.string()
        self.space()
        if self.at >= self.end or self.b[self.at] != c':':
            self.fail()
        self.at += 1
        self.space()
        return 0

    cdef int value(self) except -1:
        """Past one value of any kind, without recursion."""
        cdef unsigned char stack[MAX_DEPTH]
        cdef int depth = 0
        cdef unsigned char c
        cdef bint opened
        while True:
            self.space()
            if self.at >= self.end:
                self.fail()
            c = self.b[self.at]
            opened = c == c'{' or c == c'['
            if opened:
                if depth == MAX_DEPTH:
                    raise FramingError("json_too_deep", "The request body is nested too deeply.")
                stack[depth] = c
                depth += 1
                self.at += 1
                self.space()
                if self.at < self.end and self.b[self.at] == stack[depth - 1] + 2:  # "}" and "]" are opener + 2
                    self.at += 1
                    depth -= 1
                else:
                    if c == c'{':
                        self.key()
                    continue
            else:
                self.scalar()
            while depth:
                self.space()
                if self.at >= self.end:
                    self.fail()
                c = self.b[self.at]
                self.at += 1
                if c == c',':
                    if stack[depth - 1] == c'{':
                        self.space()
                        self.key()
                    break
                if c != stack[depth - 1] + 2:
                    self.fail()
                depth -= 1
            if depth == 0:
                return 0


def scan_members(bytes data not None, Py_ssize_t pos, Py_ssize_t end, dict wanted not None):
    """Spans of the wanted top-level members of the JSON object ``data[pos:end]`` as ``{name: raw value bytes}``.

    ``wanted`` maps lower-case member names (bytes) to the name to report. A member that appears twice, or in another
    letter case (Unicode's too), is refused: parsers disagree about which one counts. Raises FramingError.
    """
    cdef JsonScan scan = JsonScan.__new__(JsonScan)
    cdef dict found = {}
    cdef Py_ssize_t start, stop
    cdef int escapes
    cdef bytes key, folded
    if pos < 0 or end > PyBytes_GET_SIZE(data) or pos > end:
        raise ValueError("span outside the data")
    scan.data = data
    scan.b = <bytes_ptr>PyBytes_AS_STRING(data)
    scan.at = pos
    scan.end = end
    scan.space()
    if scan.at >= end or scan.b[scan.at] != c'{':
        raise FramingError("invalid_json", "The request body must be a JSON object.")
    scan.at += 1
    scan.space()
    if scan.at < end and scan.b[scan.at] == c'}':
        scan.at += 1
    else:
        while True:
            start = scan.at
            escapes = scan.string() & ESCAPES
            stop = scan.at
            scan.space()
            if scan.at >= end or scan.b[scan.at] != c':':
                scan.fail()
            scan.at += 1
            scan.space()
            key = _member_name(scan.b, start + 1, stop - 1, escapes)
            start = scan.at
            scan.value()
            folded = _folded(key)
            name = wanted.get(folded) if PyBytes_GET_SIZE(key) <= 64 else None
            if name is not None:
                if key != folded or name in found:
                    raise FramingError("ambiguous_member", "A member of the request body is repeated or miswritten.")
                found[name] = PyBytes_FromStringAndSize(<char *>scan.b + start, scan.at - start)
            scan.space()
            if scan.at < end and scan.b[scan.at] == c',':
                scan.at += 1
                scan.space()
                continue
            if scan.at < end and scan.b[scan.at] == c'}':
                scan.at += 1
                break
            scan.fail()
    scan.space()
    if scan.at != end:
        scan.fail()
    return found


cdef bytes _member_name(bytes_ptr b, Py_ssize_t start, Py_ssize_t stop, bint escapes):
    """The name as UTF-8. Escapes are resolved only as far as ASCII goes: enough to meet any name that we look for."""
    cdef bytes raw = PyBytes_FromStringAndSize(<char *>b + start, stop - start)
    if not escapes:
        return raw
    import json
    return json.loads(b'"' + raw + b'"').encode("utf-8", "surrogatepass")


cdef bytes _folded(bytes key):
    """The name as a parser sees it that ignores case by Unicode (Go's): two letters beyond ASCII fold into it."""
    key = key.lower()
    return key if key.isascii() else key.replace(b"\xc5\xbf", b"s").replace(b"\xe2\x84\xaa", b"k")


def value_end(bytes data not None, Py_ssize_t pos):
    """Offset just past the JSON value that starts at ``pos``, or -1 if it is not whole or not JSON."""
    cdef JsonScan scan = JsonScan.__new__(JsonScan)
    _span_size(data, pos, PyBytes_GET_SIZE(data))
    scan.data = data
    scan.b = <bytes_ptr>PyBytes_AS_STRING(data)
    scan.at = pos
    scan.end = PyBytes_GET_SIZE(data)
    try:
        scan.value()
    except FramingError:
        return -1
    return scan.at
