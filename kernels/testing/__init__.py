"""What tests and benchmarks of the kernels need: a faithful interpreter, and the contract on their numbers."""
