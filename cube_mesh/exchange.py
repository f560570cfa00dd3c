"""What one request accumulates on its way: the only object that stages share.

Written by the connection and the gates, read by the observers. It is a C structure (``_fastpath/exchange.pxi``), made
once per request: ``Exchange(head, client_ip)``; everything else begins as "nothing" (empty text, 0, False, None).
Times: ``*_at`` are ``time.perf_counter()`` seconds (0.0 = did not happen), ``started_wall`` is Unix time.
Sizes are body bytes. Text that a client chose (path, user agent, model) is here raw; whoever prints it escapes it.

The request: ``head``, ``method``, ``path`` (request-target up to "?", as received, percent-encoding kept).
Who: ``client_ip``, ``client_tls_version``, ``client_subject`` (of the client's verified certificate, RFC 4514),
``peer_id`` (SPIFFE id of the other end of a mutual TLS channel), ``principal``, ``grant``.
Names: ``request_id``; ``trace_id`` (32 hex), ``span_id`` (16 hex: this node's server span), ``parent_span_id``,
``sampled``, ``tracestate``.
Where to: ``domain_id`` (canonical UUID, set by the tenant stage), ``upstream_target`` (request-target to send on:
domain stripped, query kept), ``endpoint``, ``route``, ``target`` (set by the forward stage: where and how to send),
``upstream`` (host:port that was used), ``attestation`` (of that channel).
The request's body: ``request_size``, ``model``, ``stream`` (asked for by the client), ``max_tokens``, ``temperature``.
The answer: ``status`` (sent, or that would have been sent; 499: the client left before a response),
``upstream_status``, ``response_size``, ``streamed`` (it was an event stream), ``input_tokens``, ``output_tokens``,
``answer_fields`` (field lines, each with its end, that a stage adds to the answer, whoever makes it).
The end: ``error``, ``outcome`` (completed | refused | failed | cancelled), ``left`` (the observers have run; set by
the chain).
When: ``started_wall``, ``started_at``, ``body_at`` (request body complete), ``forwarded_at`` (first byte written
upstream), ``first_byte_at`` (first response body byte), ``ended_at``.
"""

from cube_mesh._fastpath import Exchange

__all__ = ["Exchange"]
