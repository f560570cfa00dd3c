"""What the node says about itself: log lines, spans, metrics. All of it may be lost in a crash; the audit trail may
not.
"""
