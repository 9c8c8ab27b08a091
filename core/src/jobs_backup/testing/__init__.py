"""For authors of providers: the conformance suite (`conformance`), and a network that fails on demand (`fault_proxy`)."""
