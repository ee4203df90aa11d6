"""One file per verb of `triptych`: its options, and the way to the code that does it.

Modules here import typer and nothing heavy: `triptych --help` must not wait for grpc or pydantic.
"""
