"""The SIMD vocabulary and the compiled code below the kernels: vectors, memory, atomics, time. Knows no format."""
