"""The prefill worker: computes prompt KV for homes that read it."""
