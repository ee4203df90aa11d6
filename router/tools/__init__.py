"""Tool calls and thoughts: what families of models write, and grammars that make them."""
