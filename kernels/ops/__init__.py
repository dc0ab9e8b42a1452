"""The operations of a program, one family of loops a file, and the block formats they read."""
