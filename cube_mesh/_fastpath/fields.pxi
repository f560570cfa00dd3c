# Field lines (RFC 9112 section 5): spans, and what framing needs to know of them, gathered in the same pass.

cdef enum:
    MAX_FIELDS = 128
    MAX_OPTIONS = 16        # connection options of one head
    MAX_CONNECTION = 512    # bytes of one Connection field: every field is compared with it

cdef struct Span:
    unsigned int name
    unsigned int name_len
    unsigned int value
    unsigned int value_len

cdef struct Notes:
    long long length         # Content-Length, -1: none
    int hosts
    int options              # connection options seen
    int minor
    bint chunked
    bint close
    bint keep_alive          # asked for by name, which matters to HTTP/1.0
    bint named               # Connection names fields to drop
    bint expect
    bint underscore          # some field name has one
    unsigned int once        # bits: fields that may be there once
    unsigned long long lengths   # bit n: some field name has length n (63: or more)

cdef enum:
    ONCE_TYPE = 1
    ONCE_CODING = 2
    ONCE_AUTHORIZATION = 4

# A scan fills these and copies out what it needs. Nothing that could scan again runs in between: one thread has the GIL
# and to make heads, bytes and str starts no garbage collection.
cdef Span SPANS[MAX_FIELDS]


cdef inline bint _plain_value8(bytes_ptr p) noexcept nogil:
    """Whether eight bytes are all visible ASCII or space."""
    cdef unsigned long long x, low, rubout
    cdef unsigned long long ones = 0x0101010101010101ULL
    memcpy(&x, p, 8)
    low = (x - ones * 0x20) & ~x
    rubout = x ^ (ones * 0x7F)
    rubout = (rubout - ones) & ~rubout
    return ((x | low | rubout) & (ones * 0x80)) == 0


cdef Py_ssize_t _scan_fields(bytes_ptr start, bytes_ptr b, Py_ssize_t at, Py_ssize_t stop, int max_fields, bint request,
                             Notes *notes, int *count) except -1:
    """Past the empty line, 0 when it has not come yet. No fold, no white space before the colon, no controls, values in
    UTF-8. Span offsets count from ``start``."""
    cdef Py_ssize_t name, colon, value, end
    cdef unsigned char kinds, high
    cdef Span *span
    cdef Py_ssize_t base = start - b
    if max_fields > MAX_FIELDS:
        max_fields = MAX_FIELDS
    count[0] = 0
    while True:
        name = at
        kinds = 0
        while TCHAR[b[at]]:
            kinds |= TCHAR[b[at]]
            at += 1
        if at == name and at < stop and (b[at] == 13 or b[at] == 10):
            return _scan_line_end(b, at, stop, "bad_head", "The head contains a misplaced line ending.")
        if at >= stop:
            return 0
        colon = at
        if colon == name or b[colon] != c':':
            raise FramingError("bad_field_name", "A field name is not a token followed by a colon.")
        at += 1
        while b[at] == 32 or b[at] == 9:
            at += 1
        value = at
        high = 0
        while stop - at >= 8 and _plain_value8(b + at):
            at += 8
        while VALUE[b[at]]:
            high |= b[at]
            at += 1
        end = at
        at = _line_end(b, at, stop, "bad_field_value", "A field value contains a control character.")
        if at == 0:
            return 0
        while end > value and (b[end - 1] == 32 or b[end - 1] == 9):
            end -= 1
        if high & 0x80 and not _is_utf8(b + value, end - value):
            raise FramingError("bad_field_value", "A field value is not UTF-8.")
        if count[0] == max_fields:
            raise FramingError("too_many_fields", "The head has too many fields.", 431)
        span = &SPANS[count[0]]
        span.name = <unsigned int>(name - base)
        span.name_len = <unsigned int>(colon - name)
        span.value = <unsigned int>(value - base)
        span.value_len = <unsigned int>(end - value)
        count[0] += 1
        notes.underscore |= kinds & 2
        notes.lengths |= 1ULL << (colon - name if colon - name < 63 else 63)
        _note_field(notes, request, b + name, colon - name, b + value, end - value)


cdef int _note_field(Notes *notes, bint request, bytes_ptr name, Py_ssize_t n, bytes_ptr value,
                     Py_ssize_t size) except -1:
    """What framing and the connection need to know of a field, by the length of its name first."""
    if n == 14:
        if _same(name, b"content-length", 14):
            return _note_length(notes, value, size)
        if _same_folded(name, b"content-length", 14):
            raise FramingError("bad_field_name", "A field name looks like Content-Length.")
    elif n == 17:
        if _same(name, b"transfer-encoding", 17):
            return _note_coding(notes, value, size)
        if _same_folded(name, b"transfer-encoding", 17):
            raise FramingError("bad_field_name", "A field name looks like Transfer-Encoding.")
    elif n == 10:
        if _same(name, b"connection", 10):
            return _note_connection(notes, value, size)
    elif n == 12:
        if _same(name, b"content-type", 12):
            return _note_once(notes, ONCE_TYPE)
    elif n == 16:
        if _same(name, b"content-encoding", 16):
            return _note_once(notes, ONCE_CODING)
    elif request:
        return _note_request_field(notes, name, n, value, size)
    return 0


cdef int _note_request_field(Notes *notes, bytes_ptr name, Py_ssize_t n, bytes_ptr value, Py_ssize_t size) except -1:
    if n == 4:
        if _same(name, b"host", 4):
            notes.hosts += 1
            if notes.hosts > 1:
                raise FramingError("bad_host", "There must be exactly one Host field.")
            return _check_host(value, size)
    elif n == 6:
        if _same(name, b"expect", 6):
            if notes.expect or size != 12 or not _same(value, b"100-continue", 12):
                raise FramingError("expectation_failed", "The only expectation is 100-continue.", 417)
            notes.expect = True
    elif n == 7:
        if _same(name, b"upgrade", 7):
            raise FramingError("upgrade_not_supported", "Upgrade is not supported.", 501)
    elif n == 13:
        if _same(name, b"authorization", 13):
            return _note_once(notes, ONCE_AUTHORIZATION)
    return 0


cdef int _note_once(Notes *notes, unsigned int which) except -1:
    """Fields of which programs read the first, the last, or all, when there are several."""
    if notes.once & which:
        raise FramingError("repeated_field", "A field that must be there once is repeated.")
    notes.once |= which
    return 0


cdef int _note_coding(Notes *notes, bytes_ptr value, Py_ssize_t size) except -1:
    if notes.chunked or size != 7 or not _same(value, b"chunked", 7):
        raise FramingError("bad_transfer_encoding", "The only transfer coding is a single chunked.", 501)
    notes.chunked = True
    return 0


cdef int _note_length(Notes *notes, bytes_ptr value, Py_ssize_t size) except -1:
    cdef long long length = 0
    cdef Py_ssize_t i
    if notes.length >= 0:
        raise FramingError("repeated_content_length", "Content-Length appears more than once.")
    if size == 0 or size > 18:
        raise FramingError("bad_content_length", "Content-Length is not a number.")
    for i in range(size):
        if not 48 <= value[i] <= 57:
            raise FramingError("bad_content_length", "Content-Length is not a number.")
        length = length * 10 + (value[i] - 48)
    notes.length = length
    return 0


cdef int _check_host(bytes_ptr value, Py_ssize_t size) except -1:
    """A name, an IPv4 address, or an IPv6 address in brackets; then a port or nothing (RFC 9110 7.2). Not resolved."""
    cdef Py_ssize_t at = 0
    if size and value[0] == c'[':
        at = 1
        while at < size and (HEX[value[at]] >= 0 or value[at] == c':' or value[at] == c'.'):
            at += 1
        if at < 3 or at >= size or value[at] != c']':
            raise FramingError("bad_host", "The Host field is not a host.")
        at += 1
    else:
        while at < size and HOSTCH[value[at]]:
            at += 1
    if at == 0 or (at < size and not _is_port(value + at, size - at)):
        raise FramingError("bad_host", "The Host field is not a host.")
    return 0


cdef bint _is_port(bytes_ptr p, Py_ssize_t n) noexcept:
    cdef Py_ssize_t i
    if n < 2 or n > 6 or p[0] != c':':
        return False
    for i in range(1, n):
        if not 48 <= p[i] <= 57:
            return False
    return True


cdef int _note_connection(Notes *notes, bytes_ptr value, Py_ssize_t size) except -1:
    """The options of one Connection field (RFC 9110 7.6.1), a bounded number of tokens."""
    cdef Py_ssize_t at = 0, start, stop
    if size > MAX_CONNECTION:
        raise FramingError("bad_connection", "The Connection field is too long.")
    while at < size:
        start = at
        while at < size and value[at] != c',':
            at += 1
        stop = at
        at += 1
        while start < stop and (value[start] == 32 or value[start] == 9):
            start += 1
        while stop > start and (value[stop - 1] == 32 or value[stop - 1] == 9):
            stop -= 1
        notes.options += 1
        if notes.options > MAX_OPTIONS:
            raise FramingError("bad_connection", "The Connection field has too many options.")
        if start < stop:
            _note_option(notes, value + start, stop - start)
    return 0


cdef int _note_option(Notes *notes, bytes_ptr option, Py_ssize_t n) except -1:
    """An option may take a field of its own hop away, never one that framing, routing or the reading of the body
    needs."""
    cdef Py_ssize_t i
    for i in range(n):
        if not TCHAR[option[i]]:
            raise FramingError("bad_connection", "A Connection option is not a token.")
    if n == 10 and _same(option, b"keep-alive", 10):
        notes.keep_alive = True
    elif n == 5 and _same(option, b"close", 5):
        notes.close = True
    elif ((n == 4 and _same(option, b"host", 4)) or (n == 17 and _same(option, b"transfer-encoding", 17))
            or (n > 8 and _same(option, b"content-", 8)) or (n == 13 and _same(option, b"authorization", 13))):
        raise FramingError("bad_connection", "A Connection option names a field that is not its own.")
    else:
        notes.named = True
    return 0
