"""Other gateways on the same machine, in the same rounds, before the same upstream."""
