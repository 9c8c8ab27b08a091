"""For authors of providers: the conformance suite (`conformance`), and a network that fails on demand (`fault_proxy`)."""

import sys

if "pytest" in sys.modules:
    import pytest

    # Else a test of the suite that fails would not tell what it compared.
    pytest.register_assert_rewrite(*(f"{__name__}.{module}" for module in ("conformance", "multipart", "refusals", "driver")))
