"""The FFN pool as its homes see it: who hosts which units, who gets which rows, and when."""
