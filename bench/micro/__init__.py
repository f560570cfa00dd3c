"""Nanoseconds of the parts that every request or every connection passes, beside public libraries on the same bytes."""
