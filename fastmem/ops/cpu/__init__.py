"""The operators in C++ for CPUs: AVX-512, AVX2 or plain vectors, chosen when they run."""
