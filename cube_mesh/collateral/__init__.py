"""Collateral for evidence, fetched and kept: where vendors publish it, a cache directory, a fetcher, a node's feed.

``attest`` judges and never fetches; this package fetches and never judges. Command line and keeper use it.
"""
