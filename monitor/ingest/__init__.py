"""Ingest: bytes from Kafka or files to columns."""
