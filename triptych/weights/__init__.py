"""Brings checkpoints from hubs and URLs: listed, resumed, verified, and whole or not there."""
