"""The draft worker: guesses tokens for decode workers, over gRPC."""
