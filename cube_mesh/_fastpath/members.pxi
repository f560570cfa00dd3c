# What we read of JSON bodies, in C: members of a request as they usually are, and the token usage in an answer.
# Whatever is unusual (escapes in a name, a wrong type, a large number) is left to bodies.py, which decides it.

cdef extern from "Python.h":
    double PyOS_string_to_double(const char *text, char **end, object overflow) except? -1.0

cdef enum:
    MODEL = 0
    STREAM = 1
    MAX_TOKENS = 2
    MAX_COMPLETION_TOKENS = 3
    TEMPERATURE = 4
    WANTED_MEMBERS = 5
    MAX_MODEL = 256

cdef struct Member:
    Py_ssize_t start
    Py_ssize_t end   # 0: not there


cdef int _which_member(bytes_ptr name, Py_ssize_t n) noexcept:
    """The member of that name in any ASCII case, or -1."""
    if n == 5:
        return MODEL if _same(name, b"model", 5) else -1
    if n == 6:
        return STREAM if _same(name, b"stream", 6) else -1
    if n == 10:
        return MAX_TOKENS if _same(name, b"max_tokens", 10) else -1
    if n == 11:
        return TEMPERATURE if _same(name, b"temperature", 11) else -1
    if n == 21:
        return MAX_COMPLETION_TOKENS if _same(name, b"max_completion_tokens", 21) else -1
    return -1


cdef bint _has_upper(bytes_ptr p, Py_ssize_t n) noexcept:
    cdef Py_ssize_t i
    for i in range(n):
        if 65 <= p[i] <= 90:
            return True
    return False


cdef bint _is_ascii(bytes_ptr p, Py_ssize_t n) noexcept:
    cdef Py_ssize_t i
    for i in range(n):
        if p[i] & 0x80:
            return False
    return True


def note_members(exchange not None, bytes data not None, Py_ssize_t pos, Py_ssize_t end):
    """Scan the JSON object ``data[pos:end]`` once and note model, stream, max_tokens and temperature on the exchange.

    False, with nothing noted, when a name or one of these values is not of the plain form: ``scan_members`` tells then.
    Raises FramingError for what is no JSON object, or has one of these members twice.
    """
    return _note_members(<Exchange?>exchange, data, pos, end)


cdef bint _note_members(Exchange exchange, bytes data, Py_ssize_t pos, Py_ssize_t end) except -1:
    cdef JsonScan scan = JsonScan.__new__(JsonScan)
    cdef Member found[WANTED_MEMBERS]
    cdef Py_ssize_t start, n
    cdef int which
    if pos < 0 or end > PyBytes_GET_SIZE(data) or pos > end:
        raise ValueError("span outside the data")
    memset(found, 0, sizeof(found))
    scan.data = data
    scan.b = <bytes_ptr>PyBytes_AS_STRING(data)
    scan.at = pos
    scan.end = end
    scan.space()
    if scan.at >= end or scan.b[scan.at] != c'{':
        return False
    scan.at += 1
    scan.space()
    if scan.at < end and scan.b[scan.at] == c'}':
        return False
    while True:
        start = scan.at + 1
        if scan.string():
            return False
        n = scan.at - 1 - start
        which = _which_member(scan.b + start, n)
        if which >= 0 and (found[which].end or _has_upper(scan.b + start, n)):
            return False
        scan.space()
        if scan.at >= end or scan.b[scan.at] != c':':
            scan.fail()
        scan.at += 1
        scan.space()
        start = scan.at
        scan.value()
        if which >= 0:
            found[which].start = start
            found[which].end = scan.at
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
    return _take_members(exchange, scan.b, found)


cdef bint _take_members(Exchange exchange, bytes_ptr b, Member *found) except -1:
    """All of them, or none: the last that could be refused is read before the first is noted."""
    cdef bytes_ptr model = b + found[MODEL].start
    cdef Py_ssize_t n = found[MODEL].end - found[MODEL].start
    cdef bint stream = False
    cdef long long limit = -1
    cdef object temperature = None
    if n and (n - 2 > MAX_MODEL or model[0] != c'"' or not _is_ascii(model, n)
              or memchr(model, c'\\', n) != NULL):
        return False
    if found[STREAM].end:
        n = found[STREAM].end - found[STREAM].start
        stream = n == 4 and b[found[STREAM].start] == c't'
        if not stream and n != 5:
            return False
        if not stream and b[found[STREAM].start] != c'f':
            return False
    if found[MAX_TOKENS].end and found[MAX_COMPLETION_TOKENS].end:
        return False
    for which in (MAX_TOKENS, MAX_COMPLETION_TOKENS):
        if found[<int>which].end:
            limit = _small(b + found[<int>which].start, found[<int>which].end - found[<int>which].start)
            if limit < 0:
                return False
    if found[TEMPERATURE].end:
        temperature = _short_float(b + found[TEMPERATURE].start, found[TEMPERATURE].end - found[TEMPERATURE].start)
        if temperature is None:
            return False
    if found[MODEL].end:
        exchange.model = PyUnicode_DecodeASCII(<char *>model + 1, found[MODEL].end - found[MODEL].start - 2, NULL)
    exchange.stream = stream
    if limit >= 0:
        exchange.max_tokens = limit
    if temperature is not None:
        exchange.temperature = temperature
    return True


cdef long long _small(bytes_ptr p, Py_ssize_t n) noexcept:
    """A whole number of at most 15 digits, or -1."""
    cdef long long value = 0
    cdef Py_ssize_t i
    if not 0 < n < 16:
        return -1
    for i in range(n):
        if not 48 <= p[i] <= 57:
            return -1
        value = value * 10 + (p[i] - 48)
    return value


cdef object _short_float(bytes_ptr p, Py_ssize_t n):
    """A JSON number of at most 24 characters, or None for anything else. One like 0.7 by a division: that is exact."""
    cdef char text[25]
    if n == 3 and p[1] == c'.' and 48 <= p[0] <= 57 and 48 <= p[2] <= 57:
        return ((p[0] - 48) * 10 + (p[2] - 48)) / 10.0
    if not 0 < n < 25 or not (48 <= p[0] <= 57 or p[0] == c'-'):
        return None
    if memchr(p, c'e', n) != NULL or memchr(p, c'E', n) != NULL:
        return None
    memcpy(text, p, n)
    text[n] = 0
    return PyOS_string_to_double(text, NULL, None)


cdef Py_ssize_t _last_usage(bytes_ptr b, Py_ssize_t n) noexcept:
    """Where the object begins that follows the last ``"usage"``, at most 9 bytes behind it; -1 if there is none."""
    cdef Py_ssize_t at = n - 7, i
    while at >= 0:
        if b[at] == c'"' and memcmp(b + at, b'"usage"', 7) == 0:
            for i in range(at + 7, n if n < at + 16 else at + 16):
                if b[i] == c'{':
                    return i
            return -1
        at -= 1
    return -1


cdef bint _note_usage(Exchange exchange, bytes data) except -1:
    """Token usage of an answer as OpenAI's chat and completions write it; False, with nothing noted, for any other."""
    cdef bytes_ptr b = <bytes_ptr>PyBytes_AS_STRING(data)
    cdef Py_ssize_t n = PyBytes_GET_SIZE(data), at, start, size
    cdef JsonScan scan
    cdef long long value, given = -1, made = -1
    cdef int which
    at = _last_usage(b, n)
    if at < 0:
        return True
    scan = JsonScan.__new__(JsonScan)
    scan.data = data
    scan.b = b
    scan.at = at + 1
    scan.end = n
    try:
        while True:
            scan.space()
            start = scan.at + 1
            if scan.string():
                return False
            size = scan.at - 1 - start
            which = 0
            if size == 13 and memcmp(b + start, b"prompt_tokens", 13) == 0:
                which = 1
            elif size == 17 and memcmp(b + start, b"completion_tokens", 17) == 0:
                which = 2
            elif ((size == 12 and memcmp(b + start, b"input_tokens", 12) == 0)
                    or (size == 13 and memcmp(b + start, b"output_tokens", 13) == 0)):
                return False
            scan.space()
            if scan.at >= n or b[scan.at] != c':':
                return False
            scan.at += 1
            scan.space()
            start = scan.at
            scan.value()
            if which:
                value = _small(b + start, scan.at - start)
                if value < 0:
                    return False
                if which == 1:
                    given = value
                else:
                    made = value
            scan.space()
            if scan.at >= n:
                return False
            if b[scan.at] == c'}':
                break
            if b[scan.at] != c',':
                return False
            scan.at += 1
    except FramingError:
        return False
    if given >= 0:
        exchange.input_tokens = given
    if made >= 0:
        exchange.output_tokens = made
    return True
