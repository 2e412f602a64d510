"""The compiler proper: records of a file in, a Program out. Knows no LLVM."""
