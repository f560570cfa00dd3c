# Chunked bodies (RFC 9112 section 7.1), decoded with one copy and re-framed by us: what we send is never what we were
# sent.

cdef enum:
    MAX_LINE = 256          # the extensions of one chunk
    MAX_EXTENSIONS = 16384  # those of a whole body: one-byte chunks would multiply what has to be read
    MAX_TRAILER = 4096      # the whole trailer section

cdef enum ChunkState:
    SIZE = 0
    EXTENSION = 1
    SIZE_LF = 2
    DATA = 3
    DATA_CR = 4
    DATA_LF = 5
    TRAILER_START = 6
    TRAILER = 7
    TRAILER_LF = 8
    END_LF = 9
    DONE = 10


# RFC 9110 6.5.1: what a trailer must not change after the fact: framing, routing, credentials, how the body is read.
cdef FieldSet LATE = FieldSet(
    names=(b"transfer-encoding", b"host", b"trailer", b"connection", b"keep-alive", b"upgrade", b"te", b"expect",
           b"range", b"max-forwards", b"cache-control", b"authorization", b"cookie", b"set-cookie",
           b"www-authenticate", b"proxy-authenticate", b"forwarded"),
    prefixes=(b"content-", b"proxy-", b"x-forwarded-", b"x-cube-", b"x-attestation-", b"x-atls-", b"x-tls-",
              b"x-guardrails-"),
)


cdef Py_ssize_t _write_hex(unsigned char *o, Py_ssize_t value):
    cdef unsigned char digits[16]
    cdef int n = 0, i
    while value or n == 0:
        digits[n] = 48 + (value & 15) if value & 15 < 10 else 87 + (value & 15)
        value >>= 4
        n += 1
    for i in range(n):
        o[i] = digits[n - 1 - i]
    return n


cdef Py_ssize_t _write_chunk(unsigned char *o, bytes_ptr data, Py_ssize_t size):
    cdef Py_ssize_t at = _write_hex(o, size)
    o[at] = 13
    o[at + 1] = 10
    memcpy(o + at + 2, data, size)
    at += size + 2
    o[at] = 13
    o[at + 1] = 10
    return at + 2


def frame_chunk(bytes payload not None, bint last):
    """One chunk around the payload (nothing for an empty one) and, if last, the closing chunk."""
    return _frame_chunk(payload, last)


cdef bytes _frame_chunk(bytes payload, bint last):
    cdef Py_ssize_t size = PyBytes_GET_SIZE(payload)
    cdef PyObject *out = PyBytes_New(NULL, size + 32)
    cdef unsigned char *o = <unsigned char *>PyBytes_Data(out)
    cdef Py_ssize_t at = 0
    if size:
        at = _write_chunk(o, <bytes_ptr>PyBytes_AS_STRING(payload), size)
    if last:
        memcpy(o + at, b"0\r\n\r\n", 5)
        at += 5
    return _shrink(out, at)


cdef class ChunkedReader:
    """Decodes one chunked body. Extensions are bounded and dropped, trailers are checked, bounded and dropped."""

    cdef int _state
    cdef int _digits
    cdef int _line           # bytes of this chunk's extensions
    cdef int _extensions     # of all chunks so far
    cdef int _trailer
    cdef bint _colon
    cdef unsigned char _name[63]     # of the trailer field that is being read, cut there
    cdef int _name_len
    cdef long long _left
    cdef readonly Py_ssize_t pos     # offset just past what feed consumed
    cdef readonly bint done

    def feed(self, bytes data not None, Py_ssize_t pos):
        """Payload bytes of ``data[pos:]``. Afterwards ``done`` says whether the body ended, at ``pos``.

        Raises FramingError; the reader is then of no further use.
        """
        return self._feed(data, pos)

    cdef bytes _feed(self, bytes data, Py_ssize_t pos):
        cdef bytes_ptr b = <bytes_ptr>PyBytes_AS_STRING(data)
        cdef Py_ssize_t n = PyBytes_GET_SIZE(data)
        cdef PyObject *out = PyBytes_New(NULL, _span_size(data, pos, n))
        cdef unsigned char *o = <unsigned char *>PyBytes_Data(out)
        cdef Py_ssize_t written = 0, take
        try:
            while pos < n and self._state != DONE:
                if self._state == DATA:
                    take = n - pos if n - pos < self._left else <Py_ssize_t>self._left
                    memcpy(o + written, b + pos, take)
                    written += take
                    pos += take
                    self._left -= take
                    if self._left == 0:
                        self._state = DATA_CR
                else:
                    self._step(b[pos])
                    pos += 1
        except FramingError:
            Py_DecRef(out)
            raise
        self.pos = pos
        self.done = self._state == DONE
        return _shrink(out, written)

    cdef int _step(self, unsigned char c) except -1:
        if self._state == SIZE:
            self._size(c)
        elif self._state == EXTENSION:
            self._line += 1
            self._extensions += 1
            if self._line > MAX_LINE or self._extensions > MAX_EXTENSIONS:
                raise FramingError("bad_chunk", "A chunk extension is too long.")
            if c == 13:
                self._state = SIZE_LF
            elif not VALUE[c] or c >= 0x80:
                raise FramingError("bad_chunk", "A chunk extension contains a control character.")
        elif self._state == SIZE_LF:
            self._expect(c, 10)
            self._state = DATA if self._left else TRAILER_START
        elif self._state == DATA_CR:
            self._expect(c, 13)
            self._state = DATA_LF
        elif self._state == DATA_LF:
            self._expect(c, 10)
            self._state = SIZE
            self._digits = self._line = 0
            self._left = 0
        else:
            self._step_trailer(c)
        return 0

    cdef int _expect(self, unsigned char c, unsigned char wanted) except -1:
        if c != wanted:
            raise FramingError("bad_chunk", "A chunk does not end where its size says.")
        return 0

    cdef int _size(self, unsigned char c) except -1:
        if HEX[c] >= 0:
            self._digits += 1
            if self._digits > 12:
                raise FramingError("bad_chunk", "A chunk size is too large.")
            self._left = self._left * 16 + HEX[c]
        elif self._digits == 0:
            raise FramingError("bad_chunk", "A chunk size is not a number.")
        elif c == 13:
            self._state = SIZE_LF
        elif c == c';':
            self._state = EXTENSION
        else:
            raise FramingError("bad_chunk", "A chunk size is not a number.")
        return 0

    cdef int _step_trailer(self, unsigned char c) except -1:
        self._trailer += 1
        if self._trailer > MAX_TRAILER:
            raise FramingError("bad_trailer", "The trailer section is too large.", 431)
        if self._state == TRAILER_START:
            self._colon = False
            self._name_len = 0
            if c == 13:
                self._state = END_LF
            elif TCHAR[c]:
                self._name[0] = c
                self._name_len = 1
                self._state = TRAILER
            else:
                raise FramingError("bad_trailer", "A trailer field name is not a token.")
        elif self._state == TRAILER and self._colon:
            if c == 13:
                self._state = TRAILER_LF
            elif not VALUE[c]:
                raise FramingError("bad_trailer", "A trailer field is malformed.")
        elif self._state == TRAILER:
            self._trailer_name(c)
        elif self._state == TRAILER_LF:
            self._expect(c, 10)
            self._state = TRAILER_START
        else:
            self._expect(c, 10)
            self._state = DONE
        return 0

    cdef int _trailer_name(self, unsigned char c) except -1:
        if c == c':':
            if LATE.has(self._name, self._name_len):
                raise FramingError("bad_trailer", "A trailer field must not come after the body.")
            self._colon = True
        elif not TCHAR[c]:
            raise FramingError("bad_trailer", "A trailer field is malformed.")
        elif self._name_len < 63:
            self._name[self._name_len] = c if c != c'_' else <unsigned char>c'-'
            self._name_len += 1
        return 0
