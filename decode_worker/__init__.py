"""The decode worker: a request's home."""
