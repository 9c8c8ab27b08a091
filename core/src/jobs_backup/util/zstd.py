"""zstd as in Python 3.14 and later. Imported only where it is used: most spools and inputs are gzip."""

import sys

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

__all__ = ["zstd"]
