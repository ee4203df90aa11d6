"""Routers side by side: workers of a made-up pace, a load, and how each router is started."""
