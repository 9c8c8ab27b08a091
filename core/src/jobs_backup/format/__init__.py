"""The bytes of objects and their keys: lines, compression, and the layout of the bucket."""
