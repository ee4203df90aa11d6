"""Which worker holds which prefix: what the router knows of it, expects of it and makes of it."""
