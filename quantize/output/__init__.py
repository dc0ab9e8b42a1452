"""The file that is written: its bytes, its appearance under its name, and what it says of its own making."""
