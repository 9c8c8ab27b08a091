"""For authors of providers: the conformance suite (`conformance`), and a network that fails on demand (`fault_proxy`)."""

import sys

if "pytest" in sys.modules:
    import pytest

    # Otherwise, a failing test of the suite would not show what it compared.
    pytest.register_assert_rewrite(*(f"{__name__}.{module}" for module in ("conformance", "multipart", "refusals", "driver")))
