"""Making and changing what a node is configured with. In this version: API keys for the configuration file."""
