# The metrics slab: numbers in memory that processes share. A region is a table of 512-byte rows; one process writes it,
# any number read it, none waits for another. Every word is loaded and stored whole (aligned 64 bits, acquire and
# release), so a reader never sees half a number; it may see one number of an exchange and not yet the next.
#
#   header   word 0 magic, 1 rows, 2 what overflowed, 3 count of bounds, 4.. the bounds of histograms (doubles)
#   row      word 0 length of the key (0: no row here, nor after it), 1..43 the key, 44..63 the numbers
#
# A row is filled before its length is stored. A writer that dies in between leaves no row, and the next one begins it
# again; one that dies later leaves numbers that are true up to the exchange that it was counting.

cdef extern from *:
    """
    typedef unsigned long long slab_word;
    static inline slab_word slab_get(const slab_word *at) { return __atomic_load_n(at, __ATOMIC_ACQUIRE); }
    static inline void slab_put(slab_word *at, slab_word value) { __atomic_store_n(at, value, __ATOMIC_RELEASE); }
    """
    ctypedef unsigned long long slab_word
    slab_word slab_get(const slab_word *at) noexcept
    void slab_put(slab_word *at, slab_word value) noexcept

cdef enum:
    ROW_WORDS = 64
    KEY_WORDS = 43
    NUMBERS = 20      # words of a row behind its key
    SUM = NUMBERS - 1  # of a histogram; its counts, at most 19, lie before it
    MAX_BOUNDS = SUM - 1
    SPARE = 64        # rows kept back for what stands for the others

cdef slab_word MAGIC = 0x31304C5341425543  # "CUBASL01": the layout above; another one gets another number

SLAB_ROW_BYTES = ROW_WORDS * 8
SLAB_KEY_BYTES = KEY_WORDS * 8
SLAB_SPARE_ROWS = SPARE


cdef inline double _real(slab_word word) noexcept:
    cdef double value
    memcpy(&value, &word, 8)
    return value


cdef inline slab_word _word(double value) noexcept:
    cdef slab_word word
    memcpy(&word, &value, 8)
    return word


@cython.final
cdef class Slab:
    """One region of the slab, over writable memory: a whole number of rows, the first of them the header.

    Memory of zeros is laid out; ``bounds`` are the upper bounds of histogram buckets, rising, at most 18. Memory that
    was laid out before keeps its rows; ValueError when it was laid out otherwise. One ``Slab`` may call ``row`` at a
    time, in the one process that owns the region: that is the owner's to see to.
    """

    cdef Py_buffer _view
    cdef bint _held
    cdef slab_word *_words
    cdef double _bounds[MAX_BOUNDS]
    cdef int _bound_count
    cdef Py_ssize_t _capacity  # rows, without the header
    cdef Py_ssize_t _used      # rows that are taken
    cdef dict _places          # key: number of the row

    def __cinit__(self, memory, bounds):
        cdef int i
        if not 0 < len(bounds) <= MAX_BOUNDS:
            raise ValueError("a histogram has 1 to 18 bounds")
        PyObject_GetBuffer(memory, &self._view, PyBUF_WRITABLE)
        self._held = True
        if self._view.len % (ROW_WORDS * 8) or self._view.len // (ROW_WORDS * 8) < SPARE + 2:
            raise ValueError("a region is a whole number of rows, and more than the spare ones")
        if <size_t>self._view.buf % 8:
            raise ValueError("a region is aligned to 8 bytes")
        self._words = <slab_word *>self._view.buf
        self._capacity = self._view.len // (ROW_WORDS * 8) - 1
        self._bound_count = len(bounds)
        for i in range(self._bound_count):
            self._bounds[i] = bounds[i]
        self._lay_out()
        rows = self.rows()
        self._used = len(rows)
        self._places = {(<SlabRow>rows[i]).key: i for i in range(self._used - 1, -1, -1)}  # the first of a key counts

    def __dealloc__(self):
        if self._held:
            PyBuffer_Release(&self._view)

    cdef int _lay_out(self) except -1:
        cdef int i
        cdef slab_word magic = slab_get(self._words)
        if magic == 0:
            slab_put(self._words + 1, self._capacity)
            slab_put(self._words + 3, self._bound_count)
            for i in range(self._bound_count):
                slab_put(self._words + 4 + i, _word(self._bounds[i]))
            slab_put(self._words, MAGIC)
        elif (magic != MAGIC or slab_get(self._words + 1) != <slab_word>self._capacity
                or slab_get(self._words + 3) != <slab_word>self._bound_count):
            raise ValueError("the region was laid out by another version")
        for i in range(self._bound_count):
            if slab_get(self._words + 4 + i) != _word(self._bounds[i]):
                raise ValueError("the region was laid out with other bounds")
        return 0

    @property
    def overflowed(self):
        """How often ``row`` had no room."""
        return slab_get(self._words + 2)

    def rows(self):
        """All rows, in the order in which they were made."""
        cdef Py_ssize_t i
        cdef slab_word *at
        cdef slab_word size
        found = []
        for i in range(1, self._capacity + 1):
            at = self._words + i * ROW_WORDS
            size = slab_get(at)
            if not 0 < size <= KEY_WORDS * 8:
                break
            found.append(_slab_row(self, at, PyBytes_FromStringAndSize(<char *>(at + 1), <Py_ssize_t>size)))
        return found

    def row(self, bytes key not None, bint spare=False):
        """The row of this key, made of zeros when there is none; None, and counted, when the table or the key is full.

        ``spare`` may take the rows that are kept back: for keys that stand for all others.
        """
        cdef slab_word *at
        cdef Py_ssize_t size = PyBytes_GET_SIZE(key), used = self._used
        place = self._places.get(key)
        if place is None:
            if not 0 < size <= KEY_WORDS * 8 or used >= self._capacity - (0 if spare else SPARE):
                slab_put(self._words + 2, slab_get(self._words + 2) + 1)
                return None
            at = self._words + (used + 1) * ROW_WORDS
            memset(at, 0, ROW_WORDS * 8)
            memcpy(at + 1, PyBytes_AS_STRING(key), size)
            slab_put(at, size)
            place = self._places[key] = used
            self._used = used + 1
        return _slab_row(self, self._words + (<Py_ssize_t>place + 1) * ROW_WORDS, key)


@cython.final
cdef class SlabRow:
    """One row: ``key`` and 20 numbers. Only the region's owner changes it. Made by ``Slab`` alone."""

    cdef readonly bytes key
    cdef Slab _slab  # keeps the memory
    cdef slab_word *_at

    def __init__(self):
        raise TypeError("rows are made by a Slab")

    cdef inline void _count(self, Py_ssize_t number, long long more) noexcept:
        cdef slab_word *at = self._at + number
        if more > 0:
            slab_put(at, slab_get(at) + <slab_word>more)

    cdef inline void _time(self, double seconds) noexcept:
        cdef int i = 0
        cdef slab_word *at = self._at + SUM
        if not seconds > 0:  # a clock that stood still; NaN must not stay in the sum for ever
            seconds = 0
        while i < self._slab._bound_count and seconds > self._slab._bounds[i]:
            i += 1
        slab_put(at, _word(_real(slab_get(at)) + seconds))
        slab_put(self._at + i, slab_get(self._at + i) + 1)

    def add(self, Py_ssize_t number, long long more):
        """Count ``more`` (0 or less: nothing) in one of the numbers."""
        self._count(_number(number), more)

    def put(self, Py_ssize_t number, unsigned long long value):
        """Replace one of the numbers."""
        slab_put(self._at + _number(number), value)

    def put_real(self, Py_ssize_t number, double value):
        """Replace one of the numbers by a double."""
        slab_put(self._at + _number(number), _word(value))

    def time(self, double seconds):
        """Add to a histogram."""
        self._time(seconds)

    def numbers(self):
        """The 20 numbers as they are now, in the machine's byte order."""
        cdef slab_word copy[NUMBERS]
        cdef int i
        for i in range(NUMBERS):
            copy[i] = slab_get(self._at + i)
        return PyBytes_FromStringAndSize(<char *>copy, NUMBERS * 8)


cdef SlabRow _slab_row(Slab slab, slab_word *at, bytes key):
    cdef SlabRow row = SlabRow.__new__(SlabRow)
    row.key = key
    row._slab = slab
    row._at = at + 1 + KEY_WORDS
    return row


cdef Py_ssize_t _number(Py_ssize_t number) except -1:
    if not 0 <= number < NUMBERS:
        raise IndexError("a row has 20 numbers")
    return number


@cython.final
cdef class SlabCell:
    """The rows that an exchange with given labels is counted in. One call counts it: no dictionary, no lock.

    ``counts``: exchanges, body bytes in and out, tokens in and out. The other two are histograms.
    """

    cdef SlabRow _counts
    cdef SlabRow _seconds
    cdef SlabRow _first

    def __init__(self, SlabRow counts not None, SlabRow seconds not None, SlabRow first not None):
        self._counts = counts
        self._seconds = seconds
        self._first = first

    def observe(self, Exchange exchange not None):
        """Count an exchange that has ended."""
        self._observe(exchange)

    cdef int _observe(self, Exchange exchange) except -1:
        self._counts._count(0, 1)
        self._counts._count(1, exchange.request_size)
        self._counts._count(2, exchange.response_size)
        self._counts._count(3, _counted(exchange.input_tokens))
        self._counts._count(4, _counted(exchange.output_tokens))
        self._seconds._time(exchange.ended_at - exchange.started_at)
        if exchange.first_byte_at != 0 and exchange.forwarded_at != 0:
            self._first._time(exchange.first_byte_at - exchange.forwarded_at)
        return 0


cdef long long _counted(object tokens) except? -1:
    """What a backend said, as far as it is a number that can be one: 0 for None and for more than 64 bits hold."""
    cdef int overflow
    cdef long long value
    if tokens is None:
        return 0
    value = PyLong_AsLongLongAndOverflow(tokens, &overflow)
    return value if value > 0 and not overflow else 0
