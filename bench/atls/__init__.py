"""What an attested connection costs beside a plain mutual TLS handshake of the same library, at each side."""
