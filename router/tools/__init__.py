"""Tool calls: what families of models write, and grammars that make them."""
