# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""The hot leaves: scan a head into spans, frame a body, scan the top level of a JSON object. No I/O, no state of ours.

Every function takes ``bytes`` and offsets and either answers, says "need more" (None), or raises FramingError with the
status that a client would get. The grammar is RFC 9112 read strictly: what parsers disagree about is refused.
"""

include "_fastpath/prelude.pxi"
include "_fastpath/chars.pxi"
include "_fastpath/target.pxi"
include "_fastpath/fields.pxi"
include "_fastpath/render.pxi"
include "_fastpath/body.pxi"
include "_fastpath/head.pxi"
include "_fastpath/json.pxi"
include "_fastpath/siphash.pxi"
include "_fastpath/exchange.pxi"
include "_fastpath/members.pxi"
include "_fastpath/lines.pxi"
include "_fastpath/slab.pxi"
include "_fastpath/queues.pxi"
include "_fastpath/stages.pxi"
include "_fastpath/connection.pxi"
include "_fastpath/records.pxi"
