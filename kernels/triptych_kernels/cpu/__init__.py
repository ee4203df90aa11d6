"""Native CPU kernels: C++ sources, compiled once per machine, called through ctypes."""
