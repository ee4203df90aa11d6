"""Rows in, rows out: experts, or the FFNs of dense layers."""
